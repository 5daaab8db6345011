"""The kind "webhook": a messenger that speaks the contract, both ways signed by Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hmac
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from uuid import uuid4

import msgspec
import standardwebhooks
from standardwebhooks import WebhookVerificationError
from standardwebhooks.webhooks import EmptyWebhookSecretError

from app import clock, problems
from app.channels.directory import Channel, Connection
from app.http_client import RETRIED, Answer, Unreached
from app.limits import FAILURE_CODES, INTEGER_MAX, OTHER_FAILURE, SECRET_BITS_MIN, is_name
from app.messengers import checks
from app.messengers.adapter import (
    Http,
    Messenger,
    Push,
    Received,
    Request,
    Result,
    Route,
    Unfit,
    UnknownSender,
    Unsigned,
    WrongClock,
)
from app.messengers.calls import Probe
from app.outcome import Done, Forbidden, Outcome, Refused, Retry
from app.problems import Problem
from app.turns import Turns
from domain import events as e
from domain.content import Way, part_fields, plain_fields
from domain.events import Json

# The statuses of a messenger that refuses us, not the message, unless it gives a reason of the contract's.
REFUSES_US = frozenset({401, 403, 404, 405, 410})
WHSEC_ADVICE = "give a Standard Webhooks secret: whsec_ and what `openssl rand -base64 32` prints"

SHAPE = 'answer message.send with {"message_id": "…"} and everything else with {}, as JSON'
SIGN = "give both sides the same secret, and check the signature over the exact bytes of the body"
WHERE = "mend the url of the channel: PUT /v1/channels, or the file"
KNOW = "answer {} to what you do not know"
GONE = (404, 405, 410)  # What a server answers where nobody expects a POST.

# Chosen: some half a millisecond of Python.
ACTIONS_A_TURN = 64
TOLERANCE_SECONDS = 300  # Of Standard Webhooks' library.
# Of an answer's text: it is for people, and is kept in an event.
TEXT_CHARACTERS_MAX = 500


REQUEST_CHARACTERS = 24  # 96 bits: no two of a message's requests share them by chance


class Webhook(Messenger):
    """A messenger that speaks the contract: it posts actions here, and we post to the channel's URL."""

    routes = (Route("POST", "/messengers/{channel}"),)

    def __init__(self, http: Http) -> None:
        super().__init__(http)
        self._turns = Turns(ACTIONS_A_TURN)

    def verify(self, request: Request, channels: Mapping[str, Channel]) -> Channel:
        """The channel that the path names, if one of its secrets signed the body."""
        channel = channels.get(request.parts["channel"])
        if channel is None:
            raise UnknownSender
        secrets = _secrets(channel)
        if not verified(secrets, request.headers, request.body) and not _verified_bytes(secrets, request):
            raise Unsigned
        return channel

    async def receive(self, request: Request, channel: Channel) -> Received:
        """The body's action, or its array of them."""
        name = request.headers[
            "webhook-id"
        ]  # Any text of the messenger's, so events hold a short form of it.
        short = sha256(name.encode(errors="surrogateescape")).hexdigest()[:REQUEST_CHARACTERS]
        return (await checks.parse(request.body, self._turns))._replace(request=short)

    def answer(self, results: Sequence[Result | Problem]) -> bytes:
        """One result for each action, in their order; a problem stands under `error`."""
        bodies = [{"error": problems.plain(one)} if isinstance(one, Problem) else one for one in results]
        return msgspec.json.encode({"results": bodies})

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
        """A signed probe, whose answer shows whether messages can be sent."""
        probe = Probe(str(uuid4()), clock.text(clock.now_ms()))
        body = msgspec.json.encode(probe)
        headers = signed(channel.secrets.messenger, probe.id, body)
        return probed(await self._http.call("POST", channel.url, body, headers))

    @staticmethod
    def faults(secret: str) -> Iterator[tuple[str, str]]:
        """The secret is one of Standard Webhooks."""
        try:
            standardwebhooks.Webhook(secret)
            weak = len(base64.b64decode(secret.removeprefix("whsec_"))) * 8 < SECRET_BITS_MIN
        except (ValueError, EmptyWebhookSecretError):
            yield "secret", WHSEC_ADVICE
            return
        if weak:
            yield "secret", f"it holds less than {SECRET_BITS_MIN} bits: {WHSEC_ADVICE}"


def _secrets(channel: Channel) -> list[str]:
    """The secrets that may sign now: a replaced one is accepted for a day, unless that was ended."""
    secrets = channel.secrets
    old = secrets.old_messenger(clock.now_ms())
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


def _verified_bytes(secrets: list[str], request: Request) -> bool:
    """Whether one of the secrets signed a body that the library cannot read, because it is not UTF-8.

    Raises WrongClock if the signature is right for its time, which is too far from ours.
    """
    headers = request.headers
    try:
        then = datetime.fromtimestamp(float(headers["webhook-timestamp"]), UTC)
        given = [one.removeprefix("v1,") for one in headers["webhook-signature"].split(" ")]
        begin = f"{headers['webhook-id']}.{int(then.timestamp())}.".encode()
    except (KeyError, ValueError, OverflowError, OSError):
        return False
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_") + "==")
        right = base64.b64encode(hmac.digest(key, begin + request.body, "sha256"))
        if any(hmac.compare_digest(right, one.encode()) for one in given):
            break
    else:
        return False
    off = round(datetime.now(UTC).timestamp() - then.timestamp())
    if abs(off) < TOLERANCE_SECONDS:
        return True
    side = "behind" if off > 0 else "ahead of"
    raise WrongClock(
        f"the signature is right, but webhook-timestamp is {abs(off)} seconds {side} our clock,"
        f" and may be {TOLERANCE_SECONDS} off: set the sender's clock"
    )


def outcome(answer: Answer) -> Outcome:
    """2xx is done; 408, 425, 429 and any status that is no 4xx are tried again; any other 4xx is final.

    An exception is a 4xx that says nothing of the message: a wrong path or secret was deployed.
    """
    status, body = answer.status, answer.json()
    if 200 <= status < 300:
        return Done(_id(body, "message_id"), _id(body, "conversation_id"))
    if status in RETRIED or not 400 <= status < 500:  # A redirect is a wrong address, which can be corrected.
        return Retry(f"HTTP {status} from the messenger", answer.retry_after, pause=status == 429)
    code, text = body.get("code"), body.get("text")
    if code in FAILURE_CODES and isinstance(code, int):
        text = text[:TEXT_CHARACTERS_MAX] if isinstance(text, str) else ""
        return Refused(status, code, text, sure=True)
    if status in REFUSES_US:
        return Forbidden(answer.text, status)
    return Refused(status, OTHER_FAILURE, f"HTTP {status} from the messenger")


def probed(answer: Answer) -> str:
    """What the answer to a probe says, if the messenger takes our calls; raises Unfit if it does not."""
    status = answer.status
    asked = f"HTTP {status} to a signed probe"
    if 200 <= status < 300:
        if not is_object(answer):
            raise Unfit(f"it answers {asked}, but with no JSON object, so a message gets no id", SHAPE)
        return f"it takes our calls ({asked})"
    if status in (401, 403):
        raise Unfit(f"it does not take our signature ({asked})", SIGN)
    if status in GONE:
        raise Unfit(f"nothing takes our calls at its URL ({asked})", WHERE)
    if status in RETRIED or not 400 <= status < 500:
        raise Unfit(f"it answers {asked}", "look at the messenger's log")
    return f"it takes our signature, and does not know the probe ({asked}): {KNOW}"


def is_object(answer: Answer) -> bool:
    """Whether the body is a JSON object, or is empty, which stands for one."""
    body = answer.body.removeprefix(BOM_UTF8).strip()
    try:
        return not body or isinstance(msgspec.json.decode(body), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _id(body: Json, field: str) -> str | None:
    """One of the messenger's ids, a number as its digits; None if it cannot be an id."""
    value = body.get(field)
    if isinstance(value, float) and value.is_integer() and abs(value) <= INTEGER_MAX:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return value if isinstance(value, str) and is_name(value) else None


def request(push: Push) -> Json:
    """The body of the call that an event asks for."""
    event = push.event
    common: Json = {"account_id": event.account, "conversation_id": push.conversation_id}
    match event:
        case e.MessageSent():
            return {"type": "message.send", "id": event.message, **common, **_message(event, push)}
        case e.TypingStarted():
            post = {"post_id": event.post_id} if event.post_id else {}
            sender = {"id": event.sender.id}
            return {"type": "typing", **common, "sender": sender, "expires_at": event.expires_at, **post}
        case e.ReactionAdded() | e.ReactionRemoved():
            reaction: Json = {"message_id": push.message_id, "sender": {"id": event.sender.id}}
            if event.emoji:
                reaction["emoji"] = event.emoji
            return {"type": e.tag(event), **common, **reaction, "at": event.at}


def _message(event: e.MessageSent, push: Push) -> Json:
    content = event.content
    message = plain_fields(content, Way.TO_MESSENGER) | part_fields(content, Way.TO_MESSENGER)
    if push.forwards:
        message["forwards"] = push.forwards
    body: Json = {"message": message, "sender": _sender(event.sender), "at": event.at}
    receiver = event.receiver or e.Party()
    receiver_id = receiver.id if event.sent_by == "operator" else receiver.client_id
    fields = {"id": receiver_id, "phone": receiver.phone}
    body["receiver"] = {name: value for name, value in fields.items() if value}
    if push.reply_id:
        body["reply_to"] = {"message_id": push.reply_id}
    elif content.reply_to and content.reply_to.quoted:  # Neither the ledger nor the messenger ever had it.
        body["reply_to"] = {"quoted": content.reply_to.quoted}
    if event.source:
        body["source"] = {"external_id": event.source}
    return body


def _sender(sender: e.Party) -> Json:
    return {"id": sender.id, "name": sender.name} if sender.name else {"id": sender.id}
