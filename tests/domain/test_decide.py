"""Every cell of commands and states is down once, so that silence is always deliberate."""

from collections.abc import Callable

from domain import commands as c
from domain import events as e
from domain import ids
from domain.decide import NotConnected, OwnMessage, Unknown
from tests.support.ids import SCOPE
from tests.support.ledgers.decisions import (
    Ledger,
    Now,
    accept,
    cells,
    confirm,
    customer,
    delete,
    edit,
    kommo,
    manager,
    own,
    react,
    reject,
    text,
    typing,
)

SHORT = {
    "conversation.": "",
    "message.": "",
    "delivery.": "",
    "channel.": "",
    "reaction.": "",
    "conflict.noticed": "conflict",
    "typing.started": "typing",
}
Commands = dict[str, c.AnyCommand]
States = dict[str, tuple[c.AnyCommand, ...]]


def words(events: list[e.AnyEvent]) -> str:
    """The tags of what was decided, `>` where it is pushed on; a dash for nothing."""
    found = []
    for event in events:
        name = e.tag(event)
        for long, short in SHORT.items():
            name = name.replace(long, short)
        found.append(name + (">" if getattr(event, "push", None) else ""))
    return "+".join(found) or "-"


def cell(command: c.AnyCommand, *before: c.AnyCommand) -> str:
    ledger = Ledger().after(*before)
    try:
        return words(ledger.record(command).events)
    except (OwnMessage, Unknown, NotConnected) as error:
        return type(error).__name__


def grid(commands: Commands, states: States) -> list[list[str]]:
    return [
        list(states),
        *([name, *(cell(each, *before) for before in states.values())] for name, each in commands.items()),
    ]


def delivery(kind: Callable[..., c.AnyCommand], n: int, **more: str) -> c.AnyCommand:
    return kind(**Now(n).stamp("system"), stream=K, cause="the-event", **more)


def channel(command: Callable[..., c.AnyCommand], n: int, /, **more: object) -> c.AnyCommand:
    return command(**Now(n).stamp("operator"), stream=ids.connection_stream(SCOPE), **more)


M, K, X = own("m-1"), kommo("k-1"), own("x-1")
ACCEPTED = (manager(1), accept(2, K, "messenger", "x-1"))

HER_COMMANDS: Commands = {
    "send": customer(9),
    "other": customer(9, words="Something else"),
    "edit": edit(9, M),
    "delete": delete(9, M),
    "delivered": confirm(9, M, "delivered"),
    "react": react(9, M, side="kommo"),
    "accept": accept(9, M, "kommo", "k-9"),
    "reject": reject(9, M),
}
HER_STATES: States = {
    "unknown": (),
    "edited-early": (edit(1, M),),
    "sent": (customer(1),),
    "accepted": (customer(1), accept(2, M, "kommo", "k-9")),
    "deleted": (customer(1), delete(2, M)),
}
HER_DECISIONS = """
           unknown        edited-early           sent            accepted    deleted
send       started+sent>  started+sent>+edited>  -               -           -
other      started+sent>  started+sent>+edited>  conflict        conflict    conflict
edit       edited         -                      edited>         edited>     edited
delete     deleted        deleted                deleted         deleted     -
delivered  delivered      delivered              OwnMessage      OwnMessage  OwnMessage
react      added          added                  added>          added>      added>
accept     Unknown        Unknown                accepted+named  -           accepted+named
reject     Unknown        Unknown                failed          failed      failed
"""


def test_every_decision_about_a_customers_message_is_deliberate() -> None:
    assert cells(HER_DECISIONS) == grid(HER_COMMANDS, HER_STATES)


HIS_COMMANDS: Commands = {
    "send": manager(9),
    "other": manager(9, content=text("Something else")),
    "echo": customer(9, "x-1"),
    "edit": edit(9, K),
    "re-edit": edit(9, X),
    "delete": delete(9, K),
    "react": react(9, X),
    "accept": accept(9, K, "messenger", "x-1"),
}
HIS_STATES: States = {
    "unknown": (),
    "read-early": (confirm(1, X, "read"),),
    "sent": (manager(1),),
    "sent-early": (manager(1), confirm(2, X, "read")),
    "accepted": ACCEPTED,
}
HIS_DECISIONS = """
         unknown                    read-early                 sent            sent-early            accepted
send     started+bound+bound+sent>  started+bound+bound+sent>  -               -                     -
other    started+bound+bound+sent>  started+bound+bound+sent>  conflict        conflict              conflict
echo     started+sent>              started+sent>+read         sent>           sent>+read            -
edit     edited                     edited                     edited          edited                edited
re-edit  edited                     edited                     edited          edited                edited
delete   deleted                    deleted                    deleted         deleted               deleted
react    added                      added                      added           added                 added>
accept   Unknown                    Unknown                    accepted+named  accepted+named+read>  -
"""


def test_every_decision_about_a_managers_message_is_deliberate() -> None:
    assert cells(HIS_DECISIONS) == grid(HIS_COMMANDS, HIS_STATES)


STATUS_COMMANDS: Commands = {
    "delivered": confirm(9, K, "delivered"),
    "read": confirm(9, K, "read"),
    "failed": confirm(9, K, "failed"),
    "alias-delivered": confirm(9, X, "delivered"),
    "alias-read": confirm(9, X, "read"),
    "reject": reject(9, K),
}
STATUS_STATES: States = {
    "unknown": (),
    "sent": (manager(1),),
    "accepted": ACCEPTED,
    "failed": (*ACCEPTED, confirm(3, K, "failed")),
    "delivered": (*ACCEPTED, confirm(3, K, "delivered")),
    "read": (*ACCEPTED, confirm(3, K, "read")),
}
STATUS_DECISIONS = """
                 unknown    sent        accepted    failed      delivered  read
delivered        delivered  delivered>  delivered>  delivered>  -          delivered
read             read       read>       read>       read>       read>      -
failed           failed     failed>     failed>     -           failed     failed
alias-delivered  delivered  delivered   delivered>  delivered>  -          delivered
alias-read       read       read        read>       read>       read>      -
reject           Unknown    failed>     failed>     -           failed     failed
"""


def test_every_decision_about_a_status_is_deliberate() -> None:
    assert cells(STATUS_DECISIONS) == grid(STATUS_COMMANDS, STATUS_STATES)


DELIVERY_COMMANDS: Commands = {
    "complete": delivery(c.Complete, 9),
    "defer": delivery(c.Defer, 9, reason="HTTP 500"),
    "defer-other": delivery(c.Defer, 9, reason="timeout"),
    "park": delivery(c.Park, 9, reason="disconnected"),
    "resume": delivery(c.Resume, 9),
}
DELIVERY_STATES: States = {
    "unknown": (),
    "open": (manager(1),),
    "deferred": (manager(1), delivery(c.Defer, 2, reason="HTTP 500")),
    "parked": (manager(1), delivery(c.Park, 2, reason="disconnected")),
    "resumed": (manager(1), delivery(c.Park, 2, reason="disconnected"), delivery(c.Resume, 3)),
    "completed": (manager(1), delivery(c.Complete, 2)),
}
DELIVERY_DECISIONS = """
             unknown  open       deferred   parked     resumed    completed
complete     Unknown  completed  completed  completed  completed  -
defer        Unknown  deferred   -          deferred   deferred   -
defer-other  Unknown  deferred   deferred   deferred   deferred   -
park         Unknown  parked     parked     -          parked     -
resume       Unknown  -          -          resumed    -          -
"""


def test_every_decision_about_a_delivery_is_deliberate() -> None:
    assert cells(DELIVERY_DECISIONS) == grid(DELIVERY_COMMANDS, DELIVERY_STATES)


CHANNEL_COMMANDS: Commands = {
    "register": channel(c.Register, 9, channel_id="id", kind="webhook", url="http://a"),
    "change": channel(c.Change, 9, url="http://b", bot_id=None, secrets=()),
    "connect": channel(c.Connect, 9, title="Acme"),
    "retitle": channel(c.Connect, 9, title="Acme chat"),
    "reconnect": channel(c.Connect, 9, title="Acme", again=True),
    "disconnect": channel(c.Disconnect, 9),
}
CHANNEL_STATES: States = {
    "unknown": (),
    "registered": (channel(c.Register, 1, channel_id="id", kind="webhook", url="http://a"),),
    "connected": (channel(c.Connect, 1, title="Acme"),),
    "disconnected": (channel(c.Connect, 1, title="Acme"), channel(c.Disconnect, 2)),
}
CHANNEL_DECISIONS = """
            unknown       registered    connected     disconnected
register    registered    -             -             -
change      changed       changed       changed       changed
connect     connected     connected     -             connected
retitle     connected     connected     connected     connected
reconnect   connected     connected     connected     connected
disconnect  NotConnected  NotConnected  disconnected  NotConnected
"""


def test_every_decision_about_a_channel_is_deliberate() -> None:
    assert cells(CHANNEL_DECISIONS) == grid(CHANNEL_COMMANDS, CHANNEL_STATES)


TYPING_COMMANDS: Commands = {
    "fresh": typing(9),
    "late": typing(9, late_ms=4_000),
    "stale": typing(9, late_ms=5_001),
}
TYPING_STATES: States = {
    "unknown": (),
    "chatting": (customer(1),),
    "typing": (typing(9),),
}
TYPING_DECISIONS = """
       unknown          chatting  typing
fresh  started+typing>  typing>   -
late   started+typing>  typing>   -
stale  -                -         -
"""


def test_every_decision_about_typing_is_deliberate() -> None:
    assert cells(TYPING_DECISIONS) == grid(TYPING_COMMANDS, TYPING_STATES)
