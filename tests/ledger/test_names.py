"""No two locks share a number, and a number of a lock stands in the register only."""

import re
from pathlib import Path

from app.database import names
from domain.ids import PARTITIONS

LOCKS = {name: number for name, number in vars(names).items() if name.endswith("_LOCK")}
TWO_KEYS = {"IMPORT_LOCK", "TOKEN_LOCK", "CONNECTION_LOCK"}
APP = Path(names.__file__).parent.parent


def test_no_two_locks_share_a_number() -> None:
    one_key = [number for name, number in LOCKS.items() if name not in TWO_KEYS]
    one_key += [names.PARTITION_LOCK + number for number in range(1, PARTITIONS)]
    assert len(one_key) == len(set(one_key))
    assert all(0 < number < 2**63 for number in one_key)


def test_no_two_locks_with_a_second_key_share_the_first() -> None:
    first_keys = [LOCKS[name] for name in TWO_KEYS]
    assert len(first_keys) == len(set(first_keys))
    assert all(0 < number < 2**31 for number in first_keys)


def test_a_lock_takes_its_number_from_the_register() -> None:
    """The SQL of a lock holds a parameter, and no other file writes a number with our prefix."""
    for path in APP.rglob("*.py"):
        text = path.read_text()
        if path == Path(names.__file__):
            continue
        assert "0x63" not in text, path
        assert not re.search(r"advisory\w*\(\s*\d", text), path
