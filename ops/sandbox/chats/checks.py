"""Checks of a Chats API request beyond its shape; a request that fails one is refused with a reason."""

from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from ops.sandbox.chats import schemas

ERROR_CODES = (901, 902, 903, 904, 905)
T = TypeVar("T")


class Refused(Exception):
    """The request is refused with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


def read(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body in its shape, or 400."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, str(error)) from error


def required(value: str | UnsetType, name: str) -> str:
    """The value, or 400 without one."""
    if value is UNSET:
        raise Refused(400, f"{name}: required")
    return str(value)


def quoted_problem(order: schemas.NewMessage) -> str:
    """What a quoted or forwarded message lacks; empty if nothing."""
    if isinstance(order.reply_to, schemas.ReplyTo) and (problem := order.reply_to.quoted.problem()):
        return f"reply_to.message.{problem}"
    if isinstance(order.forwards, schemas.Forwards):
        for message in order.forwards.messages:
            if problem := message.problem():
                return f"forwards.messages.{problem}"
    return ""


def status_problem(order: schemas.DeliveryStatus) -> str:
    """The fault of a delivery status, whose code is in `status_code`; empty if there is none."""
    status = order.status_code
    if status not in (1, 2, -1):
        return "delivery_status: must be 1, 2 or -1"
    if order.error_code is not UNSET and order.error_code not in ERROR_CODES:
        return "error_code: must be 901..905"
    if status == -1 and order.error_code is UNSET:
        return "error_code: required with -1"
    if order.error_code == 905 and not order.error:
        return "error: required with 905"
    return ""
