"""A growing mapping is a value: whatever is added to it, each version reads as if it had been copied."""

from hypothesis import given
from hypothesis import strategies as st

from domain.growing import Growing

STEPS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8), st.integers(0, 99)), max_size=40)


@given(STEPS, st.lists(st.integers(0, 40), max_size=40))
def test_every_version_reads_as_a_copy_would(steps: list[tuple[int, int, int]], reads: list[int]) -> None:
    versions: list[tuple[Growing[int, int], dict[int, int]]] = [(Growing(), {})]
    for which, key, value in steps:
        mapping, model = versions[which % len(versions)]
        versions.append((mapping.put(key, value), {**model, key: value}))
    for which in reads:
        mapping, model = versions[which % len(versions)]
        assert dict(mapping) == model
        assert (len(mapping), mapping.get(3, -1), 5 in mapping) == (len(model), model.get(3, -1), 5 in model)
    assert all(mapping == Growing(model) for mapping, model in versions)


def test_adding_to_the_latest_copies_nothing() -> None:
    mapping: Growing[int, int] = Growing()
    for number in range(200_000):  # quadratic copying would take minutes
        mapping = mapping.put(number, number)
    assert len(mapping) == 200_000
