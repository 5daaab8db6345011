"""Kommo's Chats API: requests signed over their exact bytes, events as its payloads, its answers as outcomes.

Signature: HMAC-SHA1 over METHOD, Content-MD5, Content-Type, Date and path, each on a line, keyed with the
channel's secret as text; lower-case hex. Every attempt is signed anew, for a Date is valid for 15 minutes.
"""

import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import TypeAlias, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct
from yarl import URL

from app.http_client import RETRIED, Answer, Client, Unreached
from app.kommo.budget import Budget
from app.outcome import Done, Forbidden, Gone, Outcome, Refused, Retry
from domain import events as e
from domain.events import Json

Told = TypeVar("Told", bound=Struct)
Created: TypeAlias = e.MessageSent | e.MessageMirrored
CONTENT_TYPE = "application/json"
HISTORY_PAGE = 50
HISTORY_PAGES_MAX = 60  # in one search; the steps reach back a million messages with forty
TYPING_MS = 5000
PATIENCE_SECONDS = 5.0
STATUS_CODES: dict[type, int] = {e.MessageDelivered: 1, e.MessageRead: 2, e.MessageFailed: -1}
SENT_FIELDS = (
    "type", "text", "media", "file_name", "file_size", "media_duration", "sticker_id", "callback_data",
    "shared_post", "post",
)  # fmt: skip


class Credentials(Struct, frozen=True):
    """A channel of Kommo: the path's id and the secret that signs."""

    channel_id: str
    secret: str

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Credentials({self.channel_id})"


def sign(secret: str, method: str, path: str, body: bytes, date: str) -> dict[str, str]:
    """The four headers of a request (`path` without host and query)."""
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    text = "\n".join((method, md5, CONTENT_TYPE, date, path))
    signature = hmac.digest(secret.encode(), text.encode(), "sha1").hex()
    return {"Date": date, "Content-Type": CONTENT_TYPE, "Content-MD5": md5, "X-Signature": signature}


def nothing() -> None:
    """For whoever need not be told."""


class Kommo:
    """Calls on behalf of any channel, within its account's budget; `url` is the base of the Chats API."""

    def __init__(self, client: Client, url: str, budget: Budget) -> None:
        self._client = client
        self._budget = budget
        self._base = url.rstrip("/") + "/v2/origin/custom/"
        self._path = "/" + self._base.split("://", 1)[1].partition("/")[2]

    async def call(
        self,
        who: Credentials,
        method: str,
        path: str,
        payload: Json | None = None,
        *,
        live: bool = True,
        patience_seconds: float | None = PATIENCE_SECONDS,
        began: Callable[[], None] = nothing,
    ) -> Answer:
        """A signed request; `path` follows `/v2/origin/custom/`, its query is unsigned. Raises Unreached.

        It waits for the account's budget as long as the patience lasts; what is not `live` gives way there.
        `began` is called once it does so no longer.
        """
        account = account_of(path, payload)
        await self._budget.take(account, "chats", live=live, within_seconds=patience_seconds)
        body = b"" if payload is None else msgspec.json.encode(payload)
        date = format_datetime(datetime.now(UTC))
        headers = sign(who.secret, method, self._path + path.partition("?")[0], body, date)
        url = URL(self._base + path, encoded=True)  # Not a character of it may change: it is signed.
        began()
        answer = await self._client.call(method, url, body, headers)
        await self._budget.told(account, "chats", answer)
        return answer

    async def connect(
        self, who: Credentials, account: str, title: str, *, is_time_window_disabled: bool = False
    ) -> Answer:
        """Connect the channel to an account. Raises Unreached."""
        payload: Json = {"account_id": account, "title": title, "hook_api_version": "v2"}
        if is_time_window_disabled:
            payload["is_time_window_disabled"] = True
        return await self.call(who, "POST", f"{who.channel_id}/connect", payload)

    async def disconnect(self, who: Credentials, account: str) -> Answer:
        """Disconnect it. Raises Unreached."""
        return await self.call(who, "DELETE", f"{who.channel_id}/disconnect", {"account_id": account})

    async def new_chat(
        self, who: Credentials, scope_id: str, conversation_id: str, user: e.Party, source: str | None = None
    ) -> Answer:
        """Kommo's chat of a conversation, made if there is none. Raises Unreached."""
        payload: Json = {"conversation_id": conversation_id, "user": _participant(user)}
        if source:
            payload["source"] = {"external_id": source}
        return await self.call(who, "POST", f"{scope_id}/chats", payload)

    async def push(
        self, who: Credentials, scope_id: str, event: e.AnyEvent, began: Callable[[], None] = nothing
    ) -> Outcome:
        """Tell Kommo what an event says, once the account's budget allows it: what is imported gives way.

        `began` is called as soon as Kommo is.
        """
        path, payload = request(scope_id, event)
        live = not (isinstance(event, e.MessageSent) and event.imported)
        patience = PATIENCE_SECONDS if isinstance(event, e.TypingStarted) else None
        try:
            answer = await self.call(
                who, "POST", path, payload, live=live, patience_seconds=patience, began=began
            )
        except Unreached as error:
            return Retry(error.reason, unknown=error.unknown)
        return outcome(answer)

    async def find(self, who: Credentials, scope_id: str, event: Created, chat_id: str | None) -> str | None:
        """Kommo's id of a message that may have arrived, from the chat's history; None if it is not there.

        Without a chat id the chat is asked for by our own name, which Kommo answers without making a new one
        if it exists. The history is newest first, so the message's time says how far back it is: the first
        page that is not all newer is found by ever longer steps, then by halves. Raises Unreached.
        """
        chat = chat_id or await self._chat(who, scope_id, event)
        if not chat:
            return None
        history, pages = f"{scope_id}/chats/{quote(chat)}/history", dict[int, list[_Past]]()

        async def page(number: int) -> list[_Past]:
            if number not in pages:
                if len(pages) == HISTORY_PAGES_MAX:
                    raise Unreached("too much of its chat's history is to be looked through", unknown=False)
                query = f"offset={number * HISTORY_PAGE}&limit={HISTORY_PAGE}"
                answer = await self.call(who, "GET", f"{history}?{query}")
                pages[number] = _told(answer, _History).messages
            return pages[number]

        newer, there = -1, 0
        while _is_newer(await page(there), event.msec):
            newer, there = there, there * 2 + 1
        while there - newer > 1:
            middle = (newer + there) // 2
            if _is_newer(await page(middle), event.msec):
                newer = middle
            else:
                there = middle
        while messages := await page(there):
            for past in messages:
                if past.message.client_id == event.message:
                    return past.message.id
            if len(messages) < HISTORY_PAGE or _is_older(messages, event.msec):
                break
            there += 1
        return None

    async def _chat(self, who: Credentials, scope_id: str, event: Created) -> str | None:
        user = event.receiver or event.sender
        answer = await self.new_chat(who, scope_id, event.content.conversation_id or "", user)
        return _told(answer, _Chat).id


class _PastMessage(Struct, frozen=True):
    id: str
    client_id: str | None = None


class _Past(Struct, frozen=True):
    message: _PastMessage
    timestamp: int = 0
    msec_timestamp: int = 0

    @property
    def msec(self) -> int:
        return self.msec_timestamp or self.timestamp * 1000


def _is_newer(page: list[_Past], msec: int) -> bool:
    """Whether a full page, newest first, ends before it has come back to a time."""
    return len(page) == HISTORY_PAGE and page[0].msec >= page[-1].msec > msec


def _is_older(page: list[_Past], msec: int) -> bool:
    """Whether a page, newest first, lies before a time; of some histories only the second is known."""
    return page[0].msec >= page[-1].msec and page[0].msec < msec - 1000


class _History(Struct, frozen=True):
    messages: list[_Past] = []


class _Chat(Struct, frozen=True):
    id: str | None = None


def _told(answer: Answer, shape: type[Told]) -> Told:
    """What was asked for, or nothing of it if Kommo says so (204, 400, 404); else raises Unreached."""
    if answer.status in (204, 400, 404) and not answer.html:
        return shape()
    try:
        if answer.status == 200:
            return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.DecodeError, UnicodeError):
        pass
    raise Unreached(f"HTTP {answer.status} from Kommo, and no answer to read", unknown=False)


def outcome(answer: Answer) -> Outcome:
    """What an answer to a push means; decided on the status alone, for error bodies are not documented.

    A page is none of Kommo's answers, whatever its status: its firewall sends one in place of passing the
    call on, but a gateway that answers 502 or 504 may have passed it on before.
    """
    status = answer.status
    if answer.html or status == 429:
        reason = f"Kommo asks to wait (HTTP {status})"
        return Retry(reason, answer.retry_after, unknown=status >= 500, pause=True)
    if 200 <= status < 300:
        new = answer.json().get("new_message")
        msgid = new.get("msgid") if isinstance(new, dict) else None
        return Done(remote_id=msgid if isinstance(msgid, str) and msgid else None)
    if status in RETRIED or not 400 <= status < 500:
        return Retry(f"HTTP {status} from Kommo", answer.retry_after, unknown=status >= 500)
    if status == 403:
        return Forbidden(answer.text)
    if status == 404:
        return Gone(answer.text)
    return Refused(status, 905, answer.text or f"HTTP {status} from Kommo")


def account_of(path: str, payload: Json | None) -> str:
    """The account that a call is about: its scope's, or the one that is connected or disconnected."""
    account = path.partition("/")[0].partition("_")[2]
    return account or str((payload or {}).get("account_id", ""))


def request(scope_id: str, event: e.AnyEvent) -> tuple[str, Json]:
    """The path (after `/v2/origin/custom/`) and the payload that tell Kommo of an event."""
    match event:
        case e.MessageSent() | e.MessageMirrored():
            return scope_id, {"event_type": "new_message", "payload": _new_message(event)}
        case e.MessageEdited():
            return scope_id, {"event_type": "edit_message", "payload": _edit(event)}
        case e.MessageDelivered() | e.MessageRead() | e.MessageFailed():
            return f"{scope_id}/{quote(event.remote_id or '', safe='')}/delivery_status", _status(event)
        case e.TypingStarted():
            where = event.content.conversation_id
            sender = {"id": event.sender.id}
            return f"{scope_id}/typing", {
                "conversation_id": where,
                "sender": sender,
                "duration_ms": event.duration_ms or TYPING_MS,
            }
        case e.ReactionAdded() | e.ReactionRemoved():
            return f"{scope_id}/react", _reaction(event)
        case _:
            raise AssertionError(f"{e.tag(event)} is not pushed to Kommo")


def _new_message(event: Created) -> Json:
    """From the customer without a receiver, else to the customer: then Kommo's `ref_id` says who wrote."""
    content = event.content
    payload: Json = {
        "timestamp": event.msec // 1000,
        "msec_timestamp": event.msec,
        "msgid": event.message,
        "conversation_id": content.conversation_id,
        "silent": event.silent if isinstance(event, e.MessageSent) else True,
        "sender": _participant(event.sender),
        "message": _message(content),
    }
    if event.receiver:
        payload["receiver"] = _participant(event.receiver)
    if content.chat_id:
        payload["conversation_ref_id"] = content.chat_id
    if event.source:
        payload["source"] = {"external_id": event.source}
    if reply := _reply(content.reply_to):
        payload["reply_to"] = {"message": reply}
    if forwards := _forwards(content):
        payload["forwards"] = forwards
    return payload


def _message(content: e.Content) -> Json:
    message: Json = {name: value for name in SENT_FIELDS if (value := getattr(content, name)) is not None}
    message.setdefault("text", "")
    if content.location:
        message["location"] = {"lon": content.location.lon, "lat": content.location.lat}
    if content.contact:
        message["contact"] = {"name": content.contact.name, "phone": content.contact.phone}
    return message


def _participant(party: e.Party) -> Json:
    profile = {name: value for name in ("phone", "email") if (value := getattr(party, name))}
    participant: Json = {"id": party.id, "name": party.name or party.id}
    for name in ("ref_id", "avatar", "profile_link"):
        if value := getattr(party, name):
            participant[name] = value
    if profile:
        participant["profile"] = profile
    return participant


def _reply(reply: e.Reply | None) -> Json | None:
    """A message as Kommo knows it: by our id if we brought it there, else by Kommo's own; or told whole."""
    if reply is None or reply.message is None:
        return reply.quoted if reply else None
    return {"id": reply.own_id} if reply.sent_by == "kommo" else {"msgid": reply.message}


def _forwards(content: e.Content) -> Json | None:
    """What is forwarded: one message that Kommo knows, or one told whole; None if it is neither."""
    forwards = content.forwards or {}
    told = forwards.get("messages")
    whole = told[0] if isinstance(told, list) and told and "type" in told[0] else None
    message = _reply(content.forwarded) or whole
    if message is None:
        return None
    named: Json = {"messages": [message]}
    named |= {name: forwards[name] for name in ("conversation_id", "conversation_ref_id") if name in forwards}
    return named


def _edit(event: e.MessageEdited) -> Json:
    moment = int(datetime.fromisoformat(event.at).timestamp() * 1000 + 0.5)
    message = _message(event.content)
    if event.delivery_status:
        message["delivery_status"] = msgspec.to_builtins(event.delivery_status)
    named: Json = {"id": event.remote_id} if event.remote_id else {}
    return {
        **named,
        "timestamp": moment // 1000,
        "msec_timestamp": moment,
        "msgid": event.message,
        "conversation_id": event.content.conversation_id,
        "message": message,
    }


def _status(event: e.MessageDelivered | e.MessageRead | e.MessageFailed) -> Json:
    payload: Json = {"msgid": event.remote_id, "delivery_status": STATUS_CODES[type(event)]}
    if isinstance(event, e.MessageFailed):
        payload |= {"error_code": event.code, "error": event.text or "not delivered"}
    return payload


def _reaction(event: e.ReactionAdded | e.ReactionRemoved) -> Json:
    removed = isinstance(event, e.ReactionRemoved)
    sender = event.sender
    user = {"ref_id": sender.ref_id} if sender.ref_id else {"id": sender.id}  # a manager's is on his behalf
    payload: Json = {"user": user, "type": "unreact" if removed else "react"}
    if event.content.conversation_id:
        payload["conversation_id"] = event.content.conversation_id
    else:
        payload["conversation_ref_id"] = event.content.chat_id
    if event.sent_by == "kommo":
        payload["id"] = event.own_id
    else:
        payload["msgid"] = event.message
    if not removed:
        payload["emoji"] = event.emoji
    return payload
