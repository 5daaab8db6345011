"""The messenger's side: pushes signed by Standard Webhooks, whose id stays the same over every retry."""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec
from standardwebhooks import Webhook, WebhookVerificationError

from app.http_client import RETRIED, Answer, Client, Unreached
from app.messengers.adapter import Push
from app.outcome import Done, Outcome, Refused, Retry
from domain import events as e
from domain.events import Json

ID_CHARACTERS_MAX = 255
CODES = (901, 902, 903, 904, 905)
CONTENT_FIELDS = (
    "type", "text", "media", "thumbnail", "file_name", "file_size", "media_duration", "media_group_id",
    "sticker_id", "callback_data", "shared_post", "post", "markup", "template", "forwards",
)  # fmt: skip


class Messenger:
    """Calls a messenger's webhook."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def push(self, url: str, secret: str, push: Push) -> Outcome:
        """Tell the messenger what an event says."""
        body = msgspec.json.encode(request(push))
        try:
            answer = await self._client.call("POST", url, body, signed(secret, push.event.id, body))
        except Unreached as error:
            return Retry(error.reason, unknown=error.unknown)
        return outcome(answer)


def signed(secret: str, webhook_id: str, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks for a body."""
    now = datetime.now(UTC)
    signature = Webhook(secret).sign(webhook_id, now, body.decode())
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
            Webhook(secret).verify(body, dict(headers), json_parse=False)
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
