"""What must hold whatever breaks, computed from what was accepted and what arrived.

lost         accepted, and neither arrived nor parked
doubled      arrived under two ids, so that nobody can recognise the repeat
misordered   accepted after another of its conversation and side, and arrived before it
repeats      arrived again under its id, after an attempt whose outcome was unknown: documented, no breach
late         those of the repeats that came after a later message of their conversation
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

from msgspec import Struct

from ops.benches.cluster.strangers import Arrival
from ops.benches.cluster.traffic import Accepted


class Verdict(Struct, frozen=True):
    """The counts of the laws; `slowest` is the longest time from acceptance to arrival, in seconds."""

    lost: list[str]
    doubled: list[str]
    misordered: list[str]
    repeats: int
    late: int
    slowest: float

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, doubled or misordered."""
        return not (self.lost or self.doubled or self.misordered)


def judge(
    accepted: Mapping[tuple[str, int], Sequence[Accepted]], arrivals: Sequence[Arrival], parked: Set[str]
) -> Verdict:
    """Hold what arrived against what was accepted; `parked` are the texts that stand visibly parked."""
    first: dict[str, tuple[int, float]] = {}
    ids: defaultdict[str, set[str]] = defaultdict(set)
    for number, one in enumerate(arrivals):
        first.setdefault(one.text, (number, one.at))
        ids[one.text].add(one.id)
    lost, misordered, slowest = [], [], 0.0
    for each in accepted.values():
        there = [one for one in each if one.text in first]
        lost += [one.text for one in each if one.text not in first and one.text not in parked]
        misordered += _misordered([(first[one.text][0], one.text) for one in there])
        slowest = max([slowest, *(first[one.text][1] - one.at for one in there)])
    doubled = [text for text, each_id in ids.items() if len(each_id) > 1]
    return Verdict(lost, doubled, misordered, len(arrivals) - len(first), _late(arrivals, first), slowest)


def _misordered(numbers: Iterable[tuple[int, str]]) -> list[str]:
    """The texts that came before one that was accepted earlier."""
    wrong, last = [], -1
    for number, text in numbers:
        if number < last:
            wrong.append(text)
        last = max(last, number)
    return wrong


def _late(arrivals: Sequence[Arrival], first: Mapping[str, tuple[int, float]]) -> int:
    """How many repeats came after a later message of the same conversation and side."""
    late, newest = 0, dict[str, int]()
    for number, one in enumerate(arrivals):
        chat = one.text.rpartition(" ")[0]
        began = first[one.text][0]
        late += number != began and began < newest.get(chat, -1)
        newest[chat] = max(newest.get(chat, -1), began)
    return late


def longest_gap(moments: Iterable[float], begin: float, end: float) -> float:
    """The longest time, in seconds, between two of the moments from `begin` to `end`."""
    inside = sorted(at for at in moments if begin <= at <= end)
    return max(later - earlier for earlier, later in zip([begin, *inside], [*inside, end], strict=True))
