"""A job goes along the files of delivery in one direction; the clock and chance are handed in."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "app" / "delivery"
# Each file may import those after it. `ledger_tail` brings jobs; the last one is what all pass on.
LINE = [
    *(
        "deliverer",
        "shares",
        "ledger_tail",
        "lane",
        "settle",
        "prepare",
        "decide",
        "destinations",
        "reconnect",
        "gate",
    ),
    *("decoration", "rests", "tries", "job"),
]


def imported(name: str) -> set[str]:
    """The modules that a file of delivery imports."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_the_line_has_every_file_of_delivery() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == set(LINE)


@pytest.mark.parametrize("place", range(len(LINE)), ids=LINE)
def test_no_file_calls_one_before_it(place: int) -> None:
    before = {f"app.delivery.{name}" for name in LINE[:place]}
    assert not imported(LINE[place]) & before


@pytest.mark.parametrize("name", LINE)
def test_no_file_asks_the_machine_for_chance_or_time(name: str) -> None:
    assert not imported(name) & {"random", "time", "datetime", "secrets", "os"}


@pytest.mark.parametrize("name", ["lane", "settle", "prepare", "decide", "destinations", "reconnect", "gate"])
def test_what_pushes_knows_no_connection_and_no_client(name: str) -> None:
    reaches = {"app.database.connection", "app.stream.jetstream", "app.ledger.reader", "aiohttp"}
    assert not imported(name) & (reaches | {"app.kommo.chats.client", "app.messengers.webhook"})
