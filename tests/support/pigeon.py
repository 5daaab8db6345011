"""A second kind of messenger, whole: this module, and the line that registers it before the service starts.

A pigeon's loft posts letters to `/pigeon/{channel}/{account_id}` with its ring in a header, and takes letters
at the channel's URL. An account may have a perch there, with its seed. `python -m tests.support.pigeon` is
`chatledger` with this kind.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from app import clock
from app.channels.directory import Channel, Connection
from app.http_client import Unreached
from app.messengers import checks, kinds
from app.messengers.adapter import (
    Credential,
    Messenger,
    Push,
    Received,
    Request,
    Result,
    Route,
    Unfit,
    UnknownSender,
    Unsigned,
)
from app.messengers.checks import ActionRefused
from app.outcome import Done, Outcome, Refused, Retry
from app.problems import Problem
from domain import events as e

KIND = "pigeon"
RING = "x-pigeon-ring"
PERCH, SEED = "x-pigeon-perch", "x-pigeon-seed"


class Letter(Struct, frozen=True):
    """What a pigeon carries, either way: `loft` is the customer's, and names the conversation too."""

    loft: str
    number: str
    text: str


class Pigeon(Messenger):
    """Letters, one at a time; a pigeon does nothing else."""

    routes = (Route("POST", "/pigeon/{channel}/{account_id}"),)
    credentials = (
        Credential("perch", "Perch"),
        Credential("seed", "Seed", secret=True, hint="The loft gives it to you."),
    )

    def verify(self, request: Request, channels: Mapping[str, Channel]) -> Channel:
        channel = channels.get(request.parts["channel"])
        if channel is None:
            raise UnknownSender
        if request.headers.get(RING) != channel.secrets.messenger:
            raise Unsigned
        return channel

    async def receive(self, request: Request, channel: Channel) -> Received:
        try:
            letter = msgspec.json.decode(request.body, type=Letter)
        except msgspec.ValidationError as error:
            raise ActionRefused("$", f"no letter: {error}") from None
        action = {
            "type": "message.sent",
            "account_id": request.parts["account_id"],
            "conversation_id": letter.loft,
            "message_id": letter.number,
            "at": clock.text(clock.now_ms()),
            "sender": {"id": letter.loft, "name": f"Loft {letter.loft}"},
            "message": {"type": "text", "text": letter.text},
        }
        return Received([checks.parse_one(msgspec.json.encode(action))], array=True)

    def answer(self, results: Sequence[Result | Problem]) -> bytes:
        return b'{"grain":true}'

    async def push(self, channel: Channel, connection: Connection, push: Push) -> Outcome:
        event = push.event
        if not isinstance(event, e.MessageSent):
            return Refused(501, 905, "a pigeon carries letters only")
        letter = Letter(push.conversation_id or "", event.message or "", event.content.text or "")
        headers = {RING: channel.secrets.messenger} | _perched(connection.messenger.fields)
        try:
            answer = await self._http.call("POST", channel.url, msgspec.json.encode(letter), headers)
        except Unreached as error:
            return Retry(error.reason, unknown=error.unknown)
        return Done(str(answer.json()["landed"])) if answer.status == 200 else Retry(f"HTTP {answer.status}")

    async def check(self, channel: Channel) -> str:
        answer = await self._http.call("GET", channel.url, b"", {})
        return f"the loft coos ({answer.status})"

    async def try_credentials(self, channel: Channel, credentials: Mapping[str, str]) -> str | None:
        headers = {RING: channel.secrets.messenger} | _perched(credentials)
        answer = await self._http.call("GET", channel.url, b"", headers)
        if answer.status == 403:
            raise Unfit("the loft does not know this seed", "ask the loft for it")
        return f"Perch {credentials['perch']}"

    @staticmethod
    def faults(secret: str) -> Iterator[tuple[str, str]]:
        if not secret.startswith("ring-"):
            yield "secret", "give the ring's number: ring- and digits"


def _perched(credentials: Mapping[str, str]) -> dict[str, str]:
    return {PERCH: credentials["perch"], SEED: credentials["seed"]} if credentials else {}


if __name__ == "__main__":
    kinds.KINDS[KIND] = Pigeon
    from ops.main import main

    sys.exit(main())
