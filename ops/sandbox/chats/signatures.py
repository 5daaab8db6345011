"""A request is accepted only if all four signed headers fit its raw bytes and the present time."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

from standardwebhooks import Webhook, WebhookVerificationError

DATE_SECONDS_MAX = 15 * 60


def content_md5(body: bytes) -> str:
    """Lower-case hex MD5 of the raw body, as Kommo's Content-MD5 has it."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def request_signature(secret: str, method: str, md5: str, content_type: str, date: str, path: str) -> str:
    """X-Signature of a request to Kommo: the secret is text, the path has no host and no query."""
    text = "\n".join((method, md5, content_type, date, path))
    return hmac.digest(secret.encode(), text.encode("latin-1"), "sha1").hex()


def hook_signature(secret: str, body: bytes) -> str:
    """X-Signature of a hook: over the body alone."""
    return hmac.digest(secret.encode(), body, "sha1").hex()


def refusal(secret: str, method: str, path: str, headers: dict[str, str], body: bytes, now: datetime) -> str:
    """Why Kommo refuses the request's signature (403); empty if it does not."""
    md5, kind = headers.get("content-md5", ""), headers.get("content-type", "")
    date, signature = headers.get("date", ""), headers.get("x-signature", "")
    if kind != "application/json":
        return "Content-Type: must be application/json"
    if md5 != content_md5(body):
        return "Content-MD5: does not fit the body"
    if not hmac.compare_digest(
        request_signature(secret, method, md5, kind, date, path).encode(), signature.encode("latin-1")
    ):
        return "X-Signature: does not fit"
    sent = _instant(date)
    if sent is None:
        return "Date: not RFC 2822"
    if abs((now - sent).total_seconds()) > DATE_SECONDS_MAX:
        return "Date: more than 15 minutes from now"
    return ""


@lru_cache(maxsize=64)
def _instant(date: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Webhooks:
    """Standard Webhooks with one secret in both directions; without a secret nothing is accepted."""

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret) if secret else None

    def believes(self, headers: dict[str, str], body: bytes) -> bool:
        """Whether the signature of these bytes is right and fresh."""
        if self._webhook is None:
            return False
        try:
            self._webhook.verify(body, headers, json_parse=False)
        except (WebhookVerificationError, ValueError):
            return False
        return True

    def headers(self, webhook_id: str, now: datetime, body: bytes) -> dict[str, str]:
        """The three headers to send with these bytes."""
        signature = ""
        if self._webhook is not None:
            signature = self._webhook.sign(webhook_id, now, body.decode())
        return {
            "Content-Type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signature,
        }


def is_secret(text: str) -> bool:
    """Whether this can be a Standard Webhooks secret."""
    try:
        return bool(base64.b64decode(text.removeprefix("whsec_") + "==", validate=False))
    except ValueError:
        return False
