"""Who takes hooks slowly or not at all waits in the slow queue, until he takes them well again."""

from collections import defaultdict

from msgspec import Struct

SLOW_ANSWER_SECONDS = 2.0
IN_A_ROW = 5  # so many bad hooks lead into the slow queue, so many good ones out of it


class Standing(Struct, kw_only=True):
    """How the hooks of a scope went of late."""

    queue: str = "fast"
    good_in_a_row: int = 0
    bad_in_a_row: int = 0
    moves: int = 0


class HookQueue:
    """The queue of each scope."""

    def __init__(self) -> None:
        self.standings: defaultdict[str, Standing] = defaultdict(Standing)

    def queue(self, scope_id: str) -> str:
        """`fast` or `slow`."""
        return self.standings[scope_id].queue

    def tell(self, scope_id: str, status: int | None, seconds: float) -> None:
        """A hook was answered so, after so long."""
        standing = self.standings[scope_id]
        if status == 200 and seconds < SLOW_ANSWER_SECONDS:
            standing.good_in_a_row, standing.bad_in_a_row = standing.good_in_a_row + 1, 0
        else:
            standing.good_in_a_row, standing.bad_in_a_row = 0, standing.bad_in_a_row + 1
        due = {"fast": standing.bad_in_a_row, "slow": standing.good_in_a_row}[standing.queue]
        if due >= IN_A_ROW:
            standing.queue = "slow" if standing.queue == "fast" else "fast"
            standing.moves += 1
