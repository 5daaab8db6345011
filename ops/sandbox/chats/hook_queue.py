"""A scope that answers hooks slowly or badly is moved to the slow queue until it answers well again."""

from collections import defaultdict

from msgspec import Struct

SLOW_ANSWER_SECONDS = 2.0
IN_A_ROW = 5  # bad hooks in a row lead into the slow queue, good ones out of it: Kommo documents no number


class Standing(Struct, kw_only=True):
    """How a scope's latest hooks were answered."""

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
        """Record how a hook was answered, and after how many seconds."""
        standing = self.standings[scope_id]
        if status == 200 and seconds < SLOW_ANSWER_SECONDS:
            standing.good_in_a_row, standing.bad_in_a_row = standing.good_in_a_row + 1, 0
        else:
            standing.good_in_a_row, standing.bad_in_a_row = 0, standing.bad_in_a_row + 1
        due = {"fast": standing.bad_in_a_row, "slow": standing.good_in_a_row}[standing.queue]
        if due >= IN_A_ROW:
            standing.queue = "slow" if standing.queue == "fast" else "fast"
            standing.moves += 1
