"""Ordered faults: each occurs exactly as often as ordered, and only where ordered."""

from msgspec import Struct

FAULTS_MAX = 100
SECONDS_MAX = 600

# where an endpoint answers instead of, or after, doing its work
BEFORE = {"drop", "html"}
AFTER = {"slow", "drop_after", "html_after"}
HOOK = {"slow", "twice", "skip", "newline", "forged"}
CRM_HOOK = {"slow", "twice", "skip"}


class Fault(Struct, kw_only=True):
    """One ordered misbehaviour; `times` null lasts until it is cleared, `every` n hits each n-th call.

    `where` is a prefix: `kommo` is every endpoint of Kommo, `kommo.new_message` one of them. `status` is that
    of a page of HTML.
    """

    where: str
    action: str
    times: int | None = 1
    every: int = 1
    seconds: float = 30.0
    retry_after: float | None = None
    conversation_id: str = ""
    body: dict[str, object] | None = None
    status: int = 403
    seen: int = 0
    hits: int = 0

    def problem(self) -> str:
        """Why the fault is not possible; empty if it is."""
        side = self.where.split(".")[0]
        if side not in ("kommo", "messenger", "hook", "crm", "crmhook"):
            return "where: kommo, messenger, hook, crm or crmhook, and after a dot what of it"
        known = HOOK if side == "hook" else CRM_HOOK if side == "crmhook" else BEFORE | AFTER
        if self.action not in known and not ("hook" not in side and self.is_status):
            return f"action: a status 400..599 or one of {', '.join(sorted(known))}"
        if not 0 <= self.seconds <= SECONDS_MAX:
            return f"seconds: 0..{SECONDS_MAX}"
        if not 200 <= self.status <= 599:
            return "status: 200..599"
        if self.every < 1 or (self.times is not None and self.times < 1):
            return "times and every: at least 1"
        return ""

    @property
    def is_status(self) -> bool:
        """Whether the action is an HTTP status of a refusal or failure."""
        return self.action.isascii() and self.action.isdigit() and 400 <= int(self.action) <= 599


class Faults:
    """The ordered faults. The first one that fits a call is taken."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Order one; the caller has checked `problem()` and that there is room."""
        self.faults.append(fault)

    def take(self, where: str, conversation: str = "") -> Fault | None:
        """The fault that hits this call, used up by one."""
        for fault in self.faults:
            if not _covers(fault, where, conversation):
                continue
            fault.seen += 1
            if fault.seen % fault.every:
                continue
            fault.hits += 1
            if fault.times is not None and fault.hits >= fault.times:
                self.faults.remove(fault)
            return fault
        return None

    def clear(self) -> None:
        """Remove all faults."""
        self.faults.clear()


def _covers(fault: Fault, where: str, conversation: str) -> bool:
    if fault.conversation_id and fault.conversation_id != conversation:
        return False
    return where == fault.where or where.startswith(fault.where + ".")
