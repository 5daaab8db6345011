"""Who asks is known also behind a proxy, and a source of wrong keys or signatures is slowed down alone."""

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest
from multidict import CIMultiDict
from yarl import URL

from app.access.proxies import Proxies
from app.config.settings import load_settings
from app.service import service as serve
from tests.support.ids import ADMIN_KEY
from tests.support.service import Answer, Served, sent, signed, wrote

FAR = "203.0.113."


def from_(address: str) -> dict[str, str]:
    return {"X-Forwarded-For": address}


async def wrong_key(service: Served, address: str) -> Answer:
    return await service.ask("GET", "/v1/status", key="wrong", headers=from_(address))


async def wrong_hook(service: Served, address: str) -> Answer:
    return await service.hook(wrote("forged"), signature="0" * 40, headers=from_(address))


async def wrong_action(service: Served, address: str) -> Answer:
    secret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    return await service.act(sent("forged"), secret=secret, headers=from_(address))


@pytest.mark.parametrize(
    ("wrong", "status", "address"),
    [(wrong_key, 401, FAR + "1"), (wrong_hook, 403, FAR + "2"), (wrong_action, 401, FAR + "3")],
    ids=["key", "hook", "action"],
)
async def test_many_wrong_ones_are_slowed_down_and_others_are_not(
    service: Served, wrong: object, status: int, address: str
) -> None:
    assert callable(wrong)
    start = time.monotonic()
    for _ in range(10):
        assert (await wrong(service, address)).status == status
    assert time.monotonic() - start < 0.5
    start = time.monotonic()
    assert (await wrong(service, address)).status == status
    assert time.monotonic() - start > 0.45
    await asyncio.gather(*(wrong(service, address) for _ in range(25)))
    answer = await wrong(service, address)
    assert answer.status == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 60
    assert "right" in answer.body["detail"] or "signature" in answer.body["detail"]
    # Another source is not slowed down, and a right one passes whoever shares the source.
    assert (await wrong(service, FAR + "9")).status == status
    assert (await service.ask("GET", "/v1/status", headers=from_(address))).status == 200
    assert (await service.hook(wrote("known"), headers=from_(address))).status == 200
    assert (await service.act(sent("known"), headers=from_(address))).status == 200


async def test_two_keys_are_refused(service: Served) -> None:
    headers = [("Authorization", f"Bearer {ADMIN_KEY}"), ("Authorization", "Bearer wrong")]
    for order in (headers, headers[::-1]):
        answer = await service.request("GET", "/v1/status", headers=order)
        assert answer.status == 400
        assert "several" in answer.body["detail"]


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
async def test_two_headers_of_a_signature_are_refused(service: Served, name: str) -> None:
    body = json.dumps(sent("known")).encode()
    headers = CIMultiDict(signed(body))
    headers.add(name, headers[name])
    answer = await service.request("POST", "/messengers/acme", data=body, headers=headers)
    assert answer.status == 400
    assert name in answer.body["detail"]


CLIENTS = {
    "no proxy": ((), "192.0.2.1", [], "192.0.2.1"),
    "nobody is trusted": ((), "127.0.0.1", ["203.0.113.7"], "127.0.0.1"),
    "a proxy": (("127.0.0.1",), "127.0.0.1", ["203.0.113.7"], "203.0.113.7"),
    "another than the proxy": (("127.0.0.1",), "192.0.2.1", ["203.0.113.7"], "192.0.2.1"),
    "a client that lies": (("127.0.0.1",), "127.0.0.1", ["198.51.100.1, 203.0.113.7"], "203.0.113.7"),
    "two headers": (("127.0.0.1",), "127.0.0.1", ["198.51.100.1", "203.0.113.7"], "203.0.113.7"),
    "two proxies": (("127.0.0.1", "10.0.0.0/8"), "127.0.0.1", ["203.0.113.7, 10.1.2.3"], "203.0.113.7"),
    "only proxies": (("10.0.0.0/8",), "10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
    "IPv6": (("::1",), "::1", ["2001:db8::7"], "2001:db8::7"),
    "IPv4 in IPv6": (("127.0.0.0/8",), "::ffff:127.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
    "a port": (("127.0.0.1",), "127.0.0.1", ["203.0.113.7:4711"], "203.0.113.7"),
    "a port of IPv6": (("127.0.0.1",), "127.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
    "nonsense": (("127.0.0.1",), "127.0.0.1", ["unknown"], "127.0.0.1"),
    "nothing": (("127.0.0.1",), "127.0.0.1", [""], "127.0.0.1"),
    "nonsense before": (("127.0.0.1",), "127.0.0.1", ["<script>, 203.0.113.7"], "203.0.113.7"),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_the_client_is_who_the_last_trusted_proxy_names(name: str) -> None:
    trusted, peer, forwarded, client = CLIENTS[name]
    headers = [(b"x-forwarded-for", one.encode()) for one in forwarded]
    assert Proxies(trusted).client(peer, headers) == client


@pytest.mark.parametrize(
    ("trusted", "proto", "secure"),
    [("127.0.0.1", "https", True), ("127.0.0.1", "http", False), ("", "https", False)],
)
def test_only_a_trusted_proxy_says_https(trusted: str, proto: str, secure: bool) -> None:
    headers = [(b"x-forwarded-proto", proto.encode())]
    assert Proxies(filter(None, [trusted])).is_https("127.0.0.1", headers) is secure


@pytest.fixture
async def second(service: Served) -> AsyncIterator[str]:
    """A second web process on the same ledger, which browsers reach over https."""
    settings = service.run.services.settings
    given = {
        "CHATLEDGER_DATA": str(settings.data),
        "CHATLEDGER_DATABASE_URL": settings.database_url or "",
        "CHATLEDGER_NATS_URL": settings.nats_url or "",
        "CHATLEDGER_ADMIN_KEY": ADMIN_KEY,
        "CHATLEDGER_MASTER_KEY": settings.master_key or "",
        "CHATLEDGER_PORT": "0",
        "CHATLEDGER_ROLES": "web",
        "CHATLEDGER_PUBLIC_URL": "https://chat.example.com",
    }
    async with serve.running(load_settings(environment=given)) as run:
        yield run.url or ""


async def test_a_session_ends_on_every_process_and_https_makes_its_cookie_secure(
    service: Served, second: str
) -> None:
    link = service.run.services.login_links.make(service.url)
    answer = await service.request("GET", URL(link).path_qs)
    assert "Secure" not in answer.headers["Set-Cookie"]
    assert "Secure" in (await service.request("GET", "/login", url=second)).headers["Set-Cookie"]
    headers = {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}
    for url in (service.url, second):
        assert (await service.request("GET", "/status", url=url, headers=headers)).status == 200
    page = (await service.request("GET", "/status", headers=headers)).raw.decode()
    token = page.partition('name="csrf" value="')[2].partition('"')[0]
    gone = await service.request("POST", "/logout", url=second, headers=headers, data={"csrf": token})
    assert gone.status == 303
    for url in (service.url, second):
        assert (await service.request("GET", "/status", url=url, headers=headers)).status == 401
