"""What follows from every result of every kind of push, each cell decided on purpose."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.channels.directory import Connection
from app.delivery.decide import LATER_SECONDS, RETRY_SECONDS_LATER, TOLD_MAX, Decision, Moment, decide
from app.delivery.job import (
    Disconnected,
    Doubt,
    Expired,
    Job,
    Lost,
    Missing,
    Progress,
    Pushed,
    Reconnected,
    Result,
    Settled,
    Superseded,
)
from app.outcome import Done, Forbidden, Gone, Refused, Retry
from domain import commands as c
from domain import events as e
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import Now

GOLDEN = Path(__file__).parents[1] / "golden" / "events"
REFUSED, GONE, FORBIDDEN = Refused(400, 905, "no"), Gone("who?"), Forbidden("no")
BUSY = Retry("HTTP 503")
RESULTS: dict[str, Result] = {
    "done": Done("x-1"),
    "settled": Settled(),
    "superseded": Superseded("a later edit"),
    "disconnected": Disconnected("disconnected"),
    "missing": Missing("its message is parked"),
    "retry": BUSY,
    "refused": REFUSED,
    "gone": GONE,
    "forbidden": FORBIDDEN,
    "unpaid": Forbidden("pay first", 402),
    "expired": Expired("the messenger did not take it within 15m: HTTP 404", "no such page"),
    "reconnected": Reconnected(Connection(SCOPE, "Acme", True, "")),
    "lost": Lost("HTTP 400"),
}


def event_of(name: str, **changes: object) -> Pushed:
    event = replace(e.decode((GOLDEN / f"{name}.json").read_bytes()), **changes)
    assert isinstance(event, Pushed)
    return event


PLAIN = {
    "content": e.Content(type="text", text="Hi"),
    "sender": e.Party(id="u-1", name="Ann"),
    "source": None,
}
EVENTS = {
    "message": event_of("message.sent", push="kommo", imported=False, **PLAIN),
    "manager's": event_of("message.sent", push="messenger", imported=False, **PLAIN),
    "copy": event_of("message.mirrored", push="kommo", **PLAIN),
    "edit": event_of("message.edited", push="kommo"),
    "typing": event_of("typing.started", push="kommo"),
}
# What is recorded, then what the job does: wait, go on at once to clear up a doubt, or (nothing) be settled.
FIRST_TRY = """
              message            manager's     copy               edit               typing
done          Accept             Accept        Accept             Complete           -
settled       -                  -             -                  -                  -
superseded    Complete           Complete      Complete           Complete           -
disconnected  Park               Park          Park               Park               -
missing       Park               Park          Park               Park               -
retry         Defer,wait         Defer,wait    Defer,wait         Defer,wait         -
refused       Reject             Reject        Park               doubt:ledger       -
gone          doubt:connection   doubt:connection  doubt:connection  doubt:ledger    -
forbidden     doubt:connection   Defer,wait    doubt:connection   doubt:connection   -
unpaid        Defer,wait         Defer,wait    Defer,wait         Defer,wait         -
expired       Reject             Reject        Park               Park               -
"""
WITHOUT_AN_ANSWER_BEFORE = """
              message            manager's     copy               edit               typing
refused       doubt:history      Reject        doubt:history      doubt:ledger       -
"""
RECONNECTED_BEFORE = """
              message            manager's     copy               edit               typing
gone          Park               Park          Park               doubt:ledger       -
forbidden     Defer,wait         Defer,wait    Defer,wait         Defer,wait         -
"""
AFTER_THE_LEDGER = """
              edit
missing       Park
retry         Defer,wait
refused       Park
gone          doubt:connection
"""
AFTER_THE_HISTORY = """
              message            copy
done          Accept             Accept
retry         Defer,wait         Defer,wait
refused       Reject             Park
"""
AFTER_CONNECTING_FOR_404 = """
              message            copy               edit
reconnected   Connect,again      Connect,again      Connect,again
retry         Defer,wait         Defer,wait         Defer,wait
lost          Park               Park               Park
disconnected  Park               Park               Park
"""
AFTER_CONNECTING_FOR_403 = """
              message            copy               edit
reconnected   Connect,again      Connect,again      Connect,again
retry         Defer,wait         Defer,wait         Defer,wait
lost          Defer,wait         Defer,wait         Defer,wait
disconnected  Park               Park               Park
"""
TABLES = {
    "first try": (FIRST_TRY, Progress()),
    "without an answer before": (WITHOUT_AN_ANSWER_BEFORE, Progress(again=True, unknown=True)),
    "reconnected before": (RECONNECTED_BEFORE, Progress(again=True, reconnected=True)),
    "after the ledger": (AFTER_THE_LEDGER, Progress(doubt=Doubt(GONE, "ledger"))),
    "after the history": (AFTER_THE_HISTORY, Progress(unknown=True, doubt=Doubt(REFUSED, "history"))),
    "after connecting for 404": (AFTER_CONNECTING_FOR_404, Progress(doubt=Doubt(GONE, "connection"))),
    "after connecting for 403": (AFTER_CONNECTING_FOR_403, Progress(doubt=Doubt(FORBIDDEN, "connection"))),
}


def moment(time: float = 100.0, chance: float = 0.5) -> Moment:
    return Moment(Now(1).stamp("system"), time - 1, time, chance)


def word(decision: Decision) -> str:
    words = [type(decision.command).__name__] if decision.command else []
    if decision.progress.doubt:
        words.append(f"doubt:{decision.progress.doubt.look}")
    elif decision.after_seconds is not None:
        words.append("wait" if decision.after_seconds else "again")
    return ",".join(words) or "-"


@pytest.mark.parametrize("name", TABLES)
def test_every_decision_is_deliberate(name: str) -> None:
    table, progress = TABLES[name]
    (columns, *rows) = [line.split() for line in table.strip().splitlines()]
    decided = [
        [row, *(word(decide(RESULTS[row], Job(1, EVENTS[kind], progress), moment())) for kind in columns)]
        for row, *_ in rows
    ]
    assert decided == rows


@given(st.floats(0, 0.999), st.integers(0, 10_000), st.floats(0, 1e6), st.floats(0, 3600))
def test_a_pause_is_bounded_and_as_long_as_was_asked_for(
    chance: float, attempts: int, failing: float, asked: float
) -> None:
    progress = Progress(attempts=attempts, since=1_000.0, reason="HTTP 503")
    job = Job(1, EVENTS["edit"], progress)
    decision = decide(Retry("HTTP 503", asked), job, moment(1_000.0 + failing, chance))
    assert decision.command is None
    assert decision.after_seconds is not None
    assert asked <= decision.after_seconds <= max(asked, RETRY_SECONDS_LATER)
    assert decision.progress.attempts == attempts + 1


def told(reasons: list[str]) -> list[str]:
    """The reasons that are recorded of attempts that fail one after the other."""
    found, progress = [], Progress()
    for reason in reasons:
        decision = decide(Retry(reason), Job(1, EVENTS["edit"], progress), moment(1_000.0))
        progress = decision.progress
        if isinstance(decision.command, c.Defer):
            found.append(decision.command.reason)
    assert progress.attempts == len(reasons)
    return found


def test_a_failure_is_recorded_when_its_kind_changes_and_not_without_end() -> None:
    """Answers that alternated between 500 and 502 made an event for each attempt."""
    alternating = ["HTTP 500 from the messenger", "HTTP 502 from the messenger"]
    assert told(alternating * 100) == alternating[:1]
    assert told([*alternating, "HTTP 429 from the messenger"]) == [
        alternating[0],
        "HTTP 429 from the messenger",
    ]
    assert len(told(["HTTP 500 from Kommo", "no connection: refused"] * 100)) == TOLD_MAX


def test_only_what_is_imported_is_given_up_after_an_hour() -> None:
    progress, now = Progress(since=0.0, reason="HTTP 503"), moment(LATER_SECONDS + 1)
    imported = event_of("message.sent", push="kommo", imported=True)
    assert word(decide(BUSY, Job(1, imported, progress), now)) == "Park"
    assert word(decide(BUSY, Job(1, EVENTS["message"], progress), now)) == "wait"
    assert word(decide(Retry("HTTP 503", pause=True), Job(1, imported, progress), now)) == "wait"
