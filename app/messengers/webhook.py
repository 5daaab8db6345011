"""The kind "webhook": a messenger that speaks the contract, both ways signed by Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import standardwebhooks
from standardwebhooks import WebhookVerificationError
from standardwebhooks.webhooks import EmptyWebhookSecretError

from app import clock, problems
from app.channels.directory import Channel, Connection
from app.http_client import RETRIED, Answer, Unreached
from app.messengers import checks
from app.messengers.adapter import (
    Messenger,
    Push,
    Received,
    Request,
    Result,
    Route,
    UnknownSender,
    Unsigned,
)
from app.outcome import Done, Outcome, Refused, Retry
from app.problems import Problem
from domain import events as e
from domain.events import Json

WHSEC_ADVICE = "give a Standard Webhooks secret: whsec_ and what `openssl rand -base64 32` prints"

ID_CHARACTERS_MAX = 255
CODES = (901, 902, 903, 904, 905)
CONTENT_FIELDS = (
    "type", "text", "media", "thumbnail", "file_name", "file_size", "media_duration", "media_group_id",
    "sticker_id", "callback_data", "shared_post", "post", "markup", "template", "forwards",
)  # fmt: skip


class Webhook(Messenger):
    """A messenger that speaks the contract: it posts actions here, and we post to the channel's URL."""

    routes = (Route("POST", "/messengers/{channel}"),)

    def verify(self, request: Request, channels: Mapping[str, Channel]) -> Channel:
        """The channel that the path names, if one of its secrets signed the body."""
        channel = channels.get(request.parts["channel"])
        if channel is None:
            raise UnknownSender
        if not verified(_secrets(channel), request.headers, request.body):
            raise Unsigned
        return channel

    def receive(self, request: Request, channel: Channel) -> Received:
        """The body's action, or its array of them."""
        return checks.parse(request.body)

    def answer(self, results: Sequence[Result | Problem]) -> bytes:
        """One result for each action, in their order; a problem stands under `error`."""
        told = [{"error": problems.plain(one)} if isinstance(one, Problem) else one for one in results]
        return msgspec.json.encode({"results": told})

    async def push(self, channel: Channel, connection: Connection, push: Push) -> Outcome:
        """One signed POST; its `webhook-id` is the event's id, the same over every retry."""
        body = msgspec.json.encode(request(push))
        headers = signed(channel.secrets.messenger, push.event.id, body)
        try:
            answer = await self._http.call("POST", channel.url, body, headers)
        except Unreached as error:
            return Retry(error.reason, unknown=error.unknown)
        return outcome(answer)

    async def check(self, channel: Channel) -> str:
        """Anything that answers HTTP will do: a push shows whether the messenger takes our calls."""
        answer = await self._http.call("GET", channel.url, b"", {})
        return f"it answers (HTTP {answer.status} to a GET)"

    @staticmethod
    def faults(secret: str) -> Iterator[tuple[str, str]]:
        """The secret is one of Standard Webhooks."""
        try:
            standardwebhooks.Webhook(secret)
        except (ValueError, EmptyWebhookSecretError):
            yield "secret", WHSEC_ADVICE


def _secrets(channel: Channel) -> list[str]:
    """The secrets that may sign now: a replaced one is accepted for a day."""
    secrets = channel.secrets
    old = secrets.previous if secrets.previous and secrets.previous_until > clock.now_ms() else None
    return [secrets.messenger, old] if old else [secrets.messenger]


def signed(secret: str, webhook_id: str, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks for a body."""
    now = datetime.now(UTC)
    signature = standardwebhooks.Webhook(secret).sign(webhook_id, now, body.decode())
    return {
        "Content-Type": "application/json",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }


def verified(secrets: list[str], headers: Mapping[str, str], body: bytes) -> bool:
    """Whether one of the secrets signed the body, within five minutes (Standard Webhooks)."""
    for secret in secrets:
        try:
            standardwebhooks.Webhook(secret).verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError):  # ValueError: a header or body out of shape
            continue
        return True
    return False


def outcome(answer: Answer) -> Outcome:
    """2xx is done; 408, 425, 429 and what is no 4xx are tried again; any other is final."""
    status = answer.status
    if 200 <= status < 300:
        told = answer.json()
        return Done(_name(told, "message_id"), _name(told, "conversation_id"), _name(told, "receiver_id"))
    if (
        status in RETRIED or not 400 <= status < 500
    ):  # A redirect is a mistake in the address: it can be mended.
        return Retry(f"HTTP {status} from the messenger", answer.retry_after, pause=status == 429)
    told = answer.json()
    code, text = told.get("code"), told.get("text")
    if code in CODES and isinstance(code, int):
        return Refused(status, code, text[:500] if isinstance(text, str) else "")
    return Refused(status, 905, f"HTTP {status} from the messenger")


def _name(told: Json, field: str) -> str | None:
    """An id of the messenger's; one out of shape is as good as none."""
    name = told.get(field)
    return name if isinstance(name, str) and 0 < len(name) <= ID_CHARACTERS_MAX else None


def request(push: Push) -> Json:
    """The body that tells the messenger of an event."""
    event = push.event
    common: Json = {"account_id": event.account, "conversation_id": push.conversation_id}
    match event:
        case e.MessageSent():
            return {"type": "message.send", "id": event.message, **common, **_message(event, push)}
        case e.TypingStarted():
            typing = {"sender": {"id": event.sender.id}, "expires_at": event.expires_at}
            post = {"post_id": event.post_id} if event.post_id else {}
            return {"type": "typing", **common, **typing, **post}
        case e.ReactionAdded() | e.ReactionRemoved():
            told: Json = {"message_id": push.message_id, "sender": {"id": event.sender.id}}
            if event.emoji:
                told["emoji"] = event.emoji
            return {"type": e.tag(event), **common, **told, "at": event.at}


def _message(event: e.MessageSent, push: Push) -> Json:
    content = event.content
    message: Json = {name: value for name in CONTENT_FIELDS if (value := getattr(content, name)) is not None}
    if content.location:
        message["location"] = {"lon": content.location.lon, "lat": content.location.lat}
    if content.contact:
        message["contact"] = {"name": content.contact.name, "phone": content.contact.phone}
    if push.forwards:
        message["forwards"] = push.forwards
    body: Json = {"message": message, "sender": _sender(event.sender), "at": event.at}
    receiver = event.receiver or e.Party()
    own = receiver.id if event.sent_by == "operator" else receiver.client_id
    names = {"id": own, "phone": receiver.phone}
    body["receiver"] = {name: value for name, value in names.items() if value}
    if push.reply_id:
        body["reply_to"] = {"message_id": push.reply_id}
    elif content.reply_to and content.reply_to.quoted:  # Neither we nor the messenger ever had it.
        body["reply_to"] = {"quoted": content.reply_to.quoted}
    if event.source:
        body["source"] = {"external_id": event.source}
    return body


def _sender(sender: e.Party) -> Json:
    return {"id": sender.id, "name": sender.name} if sender.name else {"id": sender.id}
