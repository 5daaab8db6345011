"""Names of streams: the same outside id always gives the same stream, so a repeat meets its own past."""

from functools import lru_cache
from hashlib import sha1
from zlib import crc32

from msgspec import Struct

KOMMO = "kommo"
MESSENGER = "messenger"
OPERATOR = "operator"
PARTITIONS = 64  # fixed for ever: subjects of the stream and rows of the views contain the number
IDS_KEPT = 16_384  # chosen: the active conversations of a process, a few megabytes
TYPING_WINDOW_MS = 5_000  # Kommo documents 5000 ms as the default duration of typing
_HEX = tuple(f"{n:02x}" for n in range(256))
VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
"""A random hexadecimal digit as the one that holds the variant of a UUID (RFC 9562)."""
_ROOT = bytes.fromhex("a1f0c3d25b8e4c4f9d6e2b7a90c1e853")


class Scope(Struct, frozen=True):
    """A channel connected to one Kommo account: where an action belongs, and the namespace of its ids."""

    channel: str
    account: str
    scope_id: str
    namespace: bytes


def scope_of(channel: str, channel_id: str, account: str) -> Scope:
    """Returns the scope of a channel and an account; its id is `{channel_id}_{account}`, as in Kommo."""
    scope_id = f"{channel_id}_{account}"
    namespace = sha1(_ROOT + scope_id.encode(), usedforsecurity=False).digest()[:16]
    return Scope(channel, account, scope_id, namespace)


def other(side: str) -> str:
    """Returns the opposite side: the messenger for Kommo, Kommo for the messenger and an operator."""
    return MESSENGER if side == KOMMO else KOMMO


def uuid5(namespace: bytes, name: str) -> str:
    """Returns an RFC 9562 UUIDv5 (36 characters), at a third of the cost of `uuid.uuid5` and `str`."""
    digits = sha1(namespace + name.encode(), usedforsecurity=False).hexdigest()
    variant = VARIANTS[digits[16]]
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:32]}"


_kept_uuid5 = lru_cache(maxsize=IDS_KEPT)(uuid5)


def message_id(scope: Scope, side: str, own_id: str) -> str:
    """Returns the id of a message, which is the stream named by `own_id`, the sender's own id for it."""
    return uuid5(scope.namespace, f"{side}:{own_id}")


def message_id_within(scope: Scope, conversation: str, side: str, own_id: str) -> str:
    """Returns the stream of a message whose `own_id` is unique only within a conversation.

    `conversation` is the side's own id of the conversation. The length in front of it keeps two pairs of ids
    with the same concatenation apart.
    """
    return uuid5(scope.namespace, f"within:{side}:{len(conversation)}:{conversation}:{own_id}")


def claimed_id(scope: Scope, side: str, message: str) -> str:
    """Returns the stream in which facts wait that name a message by an id of ours that is not in their scope.

    Strangers choose what they name, so the name counts inside their own namespace only.
    """
    return uuid5(scope.namespace, f"claimed:{side}:{message}")


def conversation_id(scope: Scope, side: str, own_id: str) -> str:
    """Returns the stream named by a side's own id of a conversation; cached, as every message needs it."""
    return _kept_uuid5(scope.namespace, f"conversation:{side}:{own_id}")


def typing_id(scope: Scope, conversation: str, sender: str, at_ms: int) -> str:
    """Returns the stream of a sender's typing in a window of 5 s, so that it is recorded once in it."""
    return uuid5(scope.namespace, f"typing:{conversation}:{sender}:{at_ms // TYPING_WINDOW_MS}")


def channel_stream(name: str) -> str:
    """Returns the stream of a channel's registration."""
    return uuid5(_ROOT, f"channel:{name}")


def connection_stream(scope: Scope) -> str:
    """Returns the stream of a channel's connection to one account."""
    return uuid5(scope.namespace, "connection")


def account_stream(account: str) -> str:
    """Returns the stream of our consent to use an account's CRM."""
    return uuid5(_ROOT, f"account:{account}")


def talk_stream(account: str, talk_id: int) -> str:
    """Returns the stream of a talk of an account's CRM."""
    return uuid5(_ROOT, f"talk:{account}:{talk_id}")


def lead_stream(account: str, uid: str) -> str:
    """Returns the stream of an incoming lead of an account's CRM."""
    return uuid5(_ROOT, f"lead:{account}:{uid}")


def template_stream(account: str, template_id: int) -> str:
    """Returns the stream of a message template of an account's CRM."""
    return uuid5(_ROOT, f"template:{account}:{template_id}")


def nth(base: str, n: int) -> str:
    """Returns the id of a command's n-th event, from a base that ends in `00`; carries beyond 255."""
    if n > 0xFF:
        return f"{base[:24]}{(int(base[24:], 16) + n) % 2**48:012x}"
    return base[:-2] + _HEX[n] if n else base


def partition(conversation: str | None) -> int:
    """Returns crc32 of the conversation id mod 64, 0 without a conversation. Fixed for ever."""
    return crc32(conversation.encode()) % PARTITIONS if conversation else 0


def subject(conversation: str | None, account: str | None, tag: str) -> str:
    """Returns `ledger.<p00..p63>.<account>.<conversation>.<type>`, with a dash where there is none."""
    where = f"p{partition(conversation):02d}.{account or '-'}.{conversation or '-'}"
    return f"ledger.{where}.{tag.replace('.', '_')}"
