"""Names of streams: the same outside id always gives the same stream, so a repeat meets its own past.

Outside ids may be phone numbers, and a name is seen by many who may not see its message. So the namespace of
names is made with a secret of the ledger: without the secret, nobody finds out a name's outside id by trying
all of them. Ledgers that began before chatledger 0.3 have no secret, and their names stay public ones.
"""

import hmac
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
_PUBLIC_ROOT = bytes.fromhex("a1f0c3d25b8e4c4f9d6e2b7a90c1e853")


class NamespaceUnset(RuntimeError):
    """An id is made before it is known whose: open the ledger's database first."""


class OtherNamespace(RuntimeError):
    """This process has made ids of another ledger: each ledger needs a process of its own."""


class _Namespace(Struct, frozen=True):
    """What all names of a ledger are made with; `secret` is None if they are public."""

    root: bytes
    secret: bytes | None


_namespace: _Namespace | None = None


class Scope(Struct, frozen=True):
    """A channel connected to one Kommo account: where an action belongs, and the namespace of its ids."""

    channel: str
    account: str
    scope_id: str
    namespace: bytes


def scope_of(channel: str, channel_id: str, account: str) -> Scope:
    """Returns the scope of a channel and an account; its id is `{channel_id}_{account}`, as in Kommo."""
    scope_id = scope_id_of(channel_id, account)
    root, secret = _root(), _namespace.secret if _namespace else None
    if secret is None:
        namespace = sha1(root + scope_id.encode(), usedforsecurity=False).digest()[:16]
    else:
        namespace = _keyed(secret, f"scope:{scope_id}")
    return Scope(channel, account, scope_id, namespace)


def scope_id_of(channel_id: str, account: str) -> str:
    """Returns Kommo's id of a channel that is connected to an account."""
    return f"{channel_id}_{account}"


def use_namespace(secret: bytes | None) -> None:
    """Set the ledger whose names this process makes, by its secret, or None if it has none; before the first.

    Raises OtherNamespace if names of another ledger may have been made.
    """
    global _namespace
    root = _PUBLIC_ROOT if secret is None else _keyed(secret, "root")
    if _namespace is not None and _namespace.root != root:
        raise OtherNamespace("each ledger needs a process of its own")
    _namespace = _Namespace(root, secret)


def are_keyed() -> bool:
    """Whether names are made with a secret of the ledger. Raises NamespaceUnset."""
    return _root() != _PUBLIC_ROOT


def _root() -> bytes:
    if _namespace is None:
        raise NamespaceUnset("open the ledger's database before the first id is made")
    return _namespace.root


def _keyed(secret: bytes, name: str) -> bytes:
    return hmac.digest(secret, name.encode(), "sha256")[:16]


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
    return uuid5(_root(), f"channel:{name}")


def connection_stream(scope: Scope) -> str:
    """Returns the stream of a channel's connection to one account."""
    return uuid5(scope.namespace, "connection")


def account_stream(account: str) -> str:
    """Returns the stream of our consent to use an account's CRM."""
    return uuid5(_root(), f"account:{account}")


def talk_stream(account: str, talk_id: int) -> str:
    """Returns the stream of a talk of an account's CRM."""
    return uuid5(_root(), f"talk:{account}:{talk_id}")


def lead_stream(account: str, uid: str) -> str:
    """Returns the stream of an incoming lead of an account's CRM."""
    return uuid5(_root(), f"lead:{account}:{uid}")


def template_stream(account: str, template_id: int) -> str:
    """Returns the stream of a message template of an account's CRM."""
    return uuid5(_root(), f"template:{account}:{template_id}")


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
