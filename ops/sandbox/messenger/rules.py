"""The demo messenger accepts every push once, and repeats what its customers do until it is accepted."""

import asyncio
import contextlib
import random
import time
from datetime import UTC, datetime

import aiohttp
import msgspec

from ops.sandbox.chats.signatures import Webhooks
from ops.sandbox.config import ACTION_SECONDS, ACTION_WORKERS, CHATS_MAX, WAITING_MAX, Config
from ops.sandbox.feed import Feed
from ops.sandbox.lanes import Lanes
from ops.sandbox.messenger.schemas import PROBE, PUSHED, Pushed, Receiver, Unfit
from ops.sandbox.state.messenger import (
    Action,
    Conversation,
    Customer,
    MessengerMessage,
    MessengerReaction,
    MessengerState,
    Push,
    instant,
    new_id,
)

RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX = 0.1, 5.0
RETRIED = {408, 425, 429}
TYPING_SECONDS = 3.0


class Messenger:
    """Both directions of the messenger, over its tables."""

    def __init__(self, config: Config, state: MessengerState, feed: Feed) -> None:
        self.config, self.state, self.feed = config, state, feed
        self.webhooks = Webhooks(config.messenger_secret)
        self.lanes = Lanes(WAITING_MAX)
        self._workers = asyncio.Semaphore(ACTION_WORKERS)
        self._session: aiohttp.ClientSession | None = None
        self._typed: dict[str, float] = {}

    def start(self, session: aiohttp.ClientSession) -> None:
        """Use this session, and resume what was not accepted before a restart."""
        self._session = session
        for action in self.state.pending:
            self._queue(action)

    # What comes in.

    def take(self, webhook_id: str, body: bytes) -> dict[str, object]:
        """Accept a push; a repeated webhook-id changes nothing and gets the same answer. Raises Unfit."""
        known = self.state.pushes.get(webhook_id)
        if known is not None:
            known.repeats += 1
            return known.answer
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            PROBE.decode(body)
            return {}
        try:
            pushed = PUSHED.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unfit(422, str(error)) from error
        match pushed.type:
            case "message.send":
                answer = self._take_message(pushed)
            case "typing":
                answer = self._take_typing(pushed)
            case _:
                answer = self._take_reaction(pushed)
        push = Push(
            n=next(self.state.arrivals),
            webhook_id=webhook_id,
            type=pushed.type,
            id=pushed.id,
            conversation_id=str(answer.get("conversation_id") or pushed.conversation_id or ""),
            body=msgspec.json.decode(body),
            answer=answer,
            arrived_ns=time.monotonic_ns(),
        )
        self.state.save_push(push)
        return answer

    def _take_message(self, pushed: Pushed) -> dict[str, object]:
        if not pushed.id or not pushed.message or not pushed.at or pushed.receiver is None:
            raise Unfit(422, "message.send needs id, message, receiver and at")
        if pushed.conversation_id is None and not pushed.receiver.phone:
            raise Unfit(422, "message.send needs conversation_id or receiver.phone")
        conversation = self._addressed(pushed, pushed.receiver)
        letter = MessengerMessage(
            id=new_id("x"),
            conversation_id=conversation.id,
            mine=False,
            message=pushed.message,
            status="delivered",
            sender_name=pushed.sender.name,
            ledger_id=pushed.id,
            at=pushed.at,
            reply_to=pushed.reply_to.message_id if pushed.reply_to else "",
        )
        self.state.add_letter(letter)
        self._show(letter)
        answer: dict[str, object] = {"message_id": letter.id}
        if pushed.conversation_id is None:
            answer |= {"conversation_id": conversation.id, "receiver_id": conversation.customer_id}
        if self.config.receipts:
            self.tell_status(letter, "message.delivered")
        return answer

    def _addressed(self, pushed: Pushed, receiver: Receiver) -> Conversation:
        if pushed.conversation_id is None:
            customer = self.state.by_phone(receiver.phone)
            return self.state.conversation(new_id("conv"), customer.id, pushed.account_id)
        known = self.state.conversations.get(pushed.conversation_id)
        if known is not None:
            return known
        customer = self.state.customer(receiver.id or new_id("u"), receiver.phone, receiver.phone)
        return self.state.conversation(pushed.conversation_id, customer.id, pushed.account_id)

    def _take_typing(self, pushed: Pushed) -> dict[str, object]:
        if pushed.conversation_id is None or not pushed.expires_at:
            raise Unfit(422, "typing needs conversation_id and expires_at")
        left = (datetime.fromisoformat(pushed.expires_at) - datetime.now(UTC)).total_seconds()
        if left > 0:
            self.feed.publish(
                "customer", "typing", chat=pushed.conversation_id, milliseconds=min(int(left * 1000), 10_000)
            )
        return {}

    def _take_reaction(self, pushed: Pushed) -> dict[str, object]:
        letter = self.state.letters.get(pushed.message_id)
        if letter is None or letter.conversation_id != pushed.conversation_id:
            raise Unfit(404, "no such message in this conversation")
        if pushed.type == "reaction.added" and not pushed.emoji:
            raise Unfit(422, "reaction.added needs emoji")
        react(letter, pushed.sender.id, pushed.emoji if pushed.type == "reaction.added" else "")
        self.state.save_letter(letter)
        self._show(letter)
        return {}

    # What goes out.

    def write(
        self,
        customer: Customer,
        conversation_id: str,
        message: dict[str, object],
        *,
        message_id: str = "",
        at: str = "",
        reply_to: str = "",
        more: dict[str, object] | None = None,
    ) -> tuple[MessengerMessage, Action, "asyncio.Future[None]"]:
        """A customer's message: shown at once, posted until it is accepted. Raises lanes.Full."""
        conversation = self.state.conversation(conversation_id, customer.id, self.config.messenger_account)
        at = at or instant()
        letter = MessengerMessage(
            id=message_id or new_id("m"),
            conversation_id=conversation.id,
            mine=True,
            message=message,
            status="sending",
            at=at,
            reply_to=reply_to,
        )
        sender = {"id": customer.id, "name": customer.name}
        body: dict[str, object] = {
            "message_id": letter.id,
            "at": at,
            "sender": sender | {"phone": customer.phone} if customer.phone else sender,
            "message": message,
            **(more or {}),
        }
        if reply_to:
            body["reply_to"] = {"message_id": reply_to}
        action, done = self.tell("message.sent", conversation.id, body)
        self.state.add_letter(letter)
        self._show(letter)
        return letter, action, done

    def tell(
        self, type: str, conversation_id: str, body: dict[str, object]
    ) -> tuple[Action, "asyncio.Future[None]"]:
        """Post an action to chatledger, after the earlier ones of its conversation."""
        account = self.config.messenger_account
        head: dict[str, object] = {"type": type, "conversation_id": conversation_id}
        action = Action(
            n=next(self.state.numbers),
            type=type,
            conversation_id=conversation_id,
            body=head | ({"account_id": account} if account else {}) | {"at": instant()} | body,
            message_id=str(body.get("message_id") or body.get("id") or ""),
            queued_ns=time.monotonic_ns(),
        )
        done = self._queue(action)
        self.state.actions.append(action)
        self.state.save_action(action)
        return action, done

    def edit(
        self, letter: MessengerMessage, message: dict[str, object], at: str = ""
    ) -> tuple[Action, "asyncio.Future[None]"]:
        """Edit a customer's message."""
        letter.message, letter.edited = letter.message | message, True
        self.state.save_letter(letter)
        self._show(letter)
        body: dict[str, object] = {"message_id": letter.id, "message": letter.message}
        return self.tell("message.edited", letter.conversation_id, body | ({"at": at} if at else {}))

    def delete(self, letter: MessengerMessage, at: str = "") -> tuple[Action, "asyncio.Future[None]"]:
        """Delete a customer's message."""
        letter.deleted = True
        self.state.save_letter(letter)
        self._show(letter)
        body: dict[str, object] = {"message_id": letter.id}
        return self.tell("message.deleted", letter.conversation_id, body | ({"at": at} if at else {}))

    def tell_reaction(
        self, conversation_id: str, message_id: str, customer: Customer, emoji: str, at: str = ""
    ) -> tuple[Action, "asyncio.Future[None]"]:
        """Report that the customer reacted, or with an empty emoji that the reaction is gone."""
        body: dict[str, object] = {
            "message_id": message_id,
            "sender": {"id": customer.id, "name": customer.name},
        }
        if emoji:
            body["emoji"] = emoji
        type = "reaction.added" if emoji else "reaction.removed"
        return self.tell(type, conversation_id, body | ({"at": at} if at else {}))

    def tell_status(self, letter: MessengerMessage, type: str) -> None:
        """Report the status of a received message, if a messenger URL is set."""
        if self.config.messenger_url:
            self.tell(type, letter.conversation_id, {"message_id": letter.id})

    def tell_typing(self, customer: Customer, conversation_id: str) -> bool:
        """Report that the customer is typing: tried once, at most every 3 s."""
        now = time.monotonic()
        if now - self._typed.get(conversation_id, -TYPING_SECONDS) < TYPING_SECONDS:
            return False
        if len(self._typed) >= CHATS_MAX:
            self._typed.clear()
        self._typed[conversation_id] = now
        self.tell("typing", conversation_id, {"sender": {"id": customer.id, "name": customer.name}})
        return True

    def read(self, conversation_id: str) -> int:
        """The customer opens the conversation: everything received in it is read."""
        conversation = self.state.conversations[conversation_id]
        if not conversation.unread:
            return 0
        unread = [
            one for one in self.state.timelines[conversation_id] if not one.mine and one.status == "delivered"
        ]
        for letter in unread:
            letter.status = "read"
            self.state.save_letter(letter)
            if self.config.receipts:
                self.tell_status(letter, "message.read")
        conversation.unread = 0
        self.state.save_conversation(conversation)
        self.feed.publish("customer", "chats")
        return len(unread)

    def again(self, letter: MessengerMessage) -> None:
        """Post a refused message once more, under the same id."""
        for action in reversed(self.state.actions):
            if action.message_id == letter.id and action.type == "message.sent":
                letter.status, letter.problem = "sending", ""
                self._show(letter)
                self.tell("message.sent", letter.conversation_id, action.body)
                return

    async def post(self, webhook_id: str, body: bytes) -> tuple[int, str]:
        """One signed POST of these very bytes; status and text. Raises aiohttp.ClientError, TimeoutError."""
        assert self._session is not None
        headers = self.webhooks.headers(webhook_id, datetime.now(UTC), body)
        timeout = aiohttp.ClientTimeout(total=ACTION_SECONDS)
        async with (
            self._workers,
            self._session.post(
                self.config.messenger_url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as answer,
        ):
            return answer.status, (await answer.read()).decode("utf-8", "replace")[:4000]

    def _queue(self, action: Action) -> "asyncio.Future[None]":
        return self.lanes.put(action.conversation_id, lambda: self._carry(action))

    async def _carry(self, action: Action) -> None:
        body = msgspec.json.encode(action.body)
        webhook_id, wait_seconds = new_id("act"), RETRY_SECONDS_FIRST
        while action.state == "waiting":
            action.attempts += 1
            try:
                action.status, action.answer = await self.post(webhook_id, body)
                action.error = ""
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                action.status, action.error = None, type(error).__name__
            action.answered_ns = time.monotonic_ns()
            self._settle(action)
            if action.state == "waiting":
                self._show_action(action)
                await asyncio.sleep(wait_seconds * random.uniform(0.5, 1.0))
                wait_seconds = min(wait_seconds * 2, RETRY_SECONDS_MAX)
        self.state.save_action(action)
        self._show_action(action)

    def _settle(self, action: Action) -> None:
        status = action.status
        if status is not None and 200 <= status < 300:
            action.state = "accepted"
        elif status is not None and status < 500 and status not in RETRIED:
            action.state = "refused"
        elif action.type == "typing":
            action.state = "dropped"
        elif not self.config.messenger_url:
            action.state, action.error = "refused", "no messenger url"

    def _show_action(self, action: Action) -> None:
        """Update the status of a customer's own message."""
        letter = self.state.letters.get(action.message_id)
        if letter is None or action.type != "message.sent":
            return
        before = (letter.status, letter.problem)
        reason = f"{action.status or action.error}"
        if action.state == "accepted":
            letter.status, letter.problem = "sent", ""
        elif action.state == "refused":
            letter.status, letter.problem = "failed", _refusal(action)
        else:
            letter.problem = f"not taken yet ({reason}), trying again"
        if before != (letter.status, letter.problem):
            self.state.save_letter(letter)
            self._show(letter)

    def _show(self, letter: MessengerMessage) -> None:
        self.feed.publish("customer", "message", chat=letter.conversation_id, message=letter.id)


def react(letter: MessengerMessage, by: str, emoji: str) -> None:
    """Set the one reaction of a person, or take it away with an empty emoji."""
    letter.reactions = [one for one in letter.reactions if one.by != by]
    if emoji:
        letter.reactions.append(MessengerReaction(by=by, emoji=emoji))


def _refusal(action: Action) -> str:
    """The reason in the words of the problem, if it has any."""
    reasons = {409: "not connected yet", 401: "the signature was refused", 404: "no such channel"}
    if action.status in reasons:
        return f"refused: {action.status}, {reasons[action.status]}"
    return f"refused: {action.status or action.error}"
