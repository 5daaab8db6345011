"""Calls of Kommo's Chats API: signed over their exact bytes, and within the account's budget.

Every attempt gets a signature of its own, because Kommo accepts a Date for 15 minutes.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from urllib.parse import quote

import msgspec
from yarl import URL

from app.http_client import RETRIED, Answer, Client, Unreached, is_borne
from app.kommo.budget import Budget
from app.kommo.chats.history import PAGE_MESSAGES, ChatNames, History, PastMessage, find_in, read
from app.kommo.chats.payloads import Created, participant, request
from app.kommo.chats.signature import Credentials, sign
from app.outcome import Done, Forbidden, Gone, Outcome, Refused, Retry
from app.places import Places
from domain import events as e
from domain.events import Json
from domain.ids import KOMMO

# The statuses by which Kommo refuses the account or us, not the message.
REFUSES_US = frozenset({401, 402, 403, 423})
# How long a call whose caller waits may wait for the budget: chosen, less than people wait for a page.
PATIENCE_SECONDS = 5.0


def nothing() -> None:
    """A callback that does nothing."""


class Kommo:
    """Calls on behalf of any channel, within its account's budget; `url` is the base of the Chats API."""

    def __init__(self, client: Client, url: str, budget: Budget, places: Places | None = None) -> None:
        """`places` are shared with other destinations; None: Kommo has places of its own."""
        self._client = client
        self._budget = budget
        self._places = places or Places()
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
        Then it waits for a place among the calls in flight. `began` is called once it waits no longer.
        """
        account = account_of(path, payload)
        await self._budget.take(account, "chats", live=live, within_seconds=patience_seconds)
        body = b"" if payload is None else msgspec.json.encode(payload)
        url = URL(self._base + path, encoded=True)  # Not a character of it may change: it is signed.

        async def send() -> Answer:
            date = format_datetime(datetime.now(UTC))
            headers = sign(who.secret, method, self._path + path.partition("?")[0], body, date)
            began()
            return await self._client.call(method, url, body, headers)

        answer = await self._places.call(KOMMO, account, send, is_borne)
        await self._budget.observe(account, "chats", answer)
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
        self,
        who: Credentials,
        scope_id: str,
        conversation_id: str,
        user: e.Party,
        source: str | None = None,
        *,
        patience_seconds: float | None = None,
    ) -> Answer:
        """Kommo's chat of a conversation, made if there is none. Raises Unreached.

        With `patience_seconds` it gives way to live calls, and waits so long for its turn at most.
        """
        payload: Json = {"conversation_id": conversation_id, "user": participant(user)}
        if source:
            payload["source"] = {"external_id": source}
        live = patience_seconds is None
        path = f"{scope_id}/chats"
        return await self.call(who, "POST", path, payload, live=live, patience_seconds=patience_seconds)

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
        if it exists. Raises Unreached.
        """
        chat = chat_id or await self._chat(who, scope_id, event)
        if not chat:
            return None
        history = f"{scope_id}/chats/{quote(chat)}/history"

        async def page(number: int) -> list[PastMessage]:
            query = f"offset={number * PAGE_MESSAGES}&limit={PAGE_MESSAGES}"
            return read(await self.call(who, "GET", f"{history}?{query}"), History).messages

        return await find_in(page, event.message or "", event.msec)

    async def _chat(self, who: Credentials, scope_id: str, event: Created) -> str | None:
        user = event.receiver or event.sender
        answer = await self.new_chat(who, scope_id, event.content.conversation_id or "", user)
        return read(answer, ChatNames).id


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
        if isinstance(msgid, int) and not isinstance(msgid, bool):
            msgid = str(msgid)
        return Done(remote_id=msgid if isinstance(msgid, str) and msgid else None)
    if status in RETRIED or not 400 <= status < 500:
        return Retry(f"HTTP {status} from Kommo", answer.retry_after, unknown=status >= 500)
    if status in REFUSES_US:
        return Forbidden(answer.text, status)
    if status == 404:
        return Gone(answer.text)
    return Refused(status, 905, answer.text or f"HTTP {status} from Kommo")


def account_of(path: str, payload: Json | None) -> str:
    """The account that a call is about: its scope's, or the one that is connected or disconnected."""
    account = path.partition("/")[0].partition("_")[2]
    return account or str((payload or {}).get("account_id", ""))


async def ask_scope(kommo: Kommo, who: Credentials, scope_id: str) -> Answer:
    """Kommo's answer to a call that changes nothing: the history of a chat that is not there.

    204 or 200: all is well; 403: it does not take our signature; 404: it does not know the scope. Raises
    Unreached.
    """
    return await kommo.call(who, "GET", f"{scope_id}/chats/{uuid.uuid4()}/history?offset=0&limit=1")
