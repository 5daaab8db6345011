"""What a messenger writes in another form than the contract's, and means as the contract does, is taken."""

import base64
import hmac
import json
import time
from codecs import BOM_UTF8
from typing import Any

import pytest

from tests.support.ids import MESSENGER_SECRET
from tests.support.service import Served, refused, sent, signed

NAMES = {
    "no-break space": "a\u00a0b",
    "a family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "an emoji newer than Python": "\U0001fae9",
    "not assigned": "\U000e0fff",
    "a line separator": "a\u2028b",
    "private": "\ue000",
    "another direction": "\u202eabc",
    "no character": "\uffff",
}


@pytest.mark.parametrize("name", NAMES)
async def test_an_id_is_any_text_without_control_characters(service: Served, name: str) -> None:
    own = NAMES[name]
    action = sent(message_id=own, conversation_id=own, sender={"id": own, "name": "Ann"})
    answer = await service.act(action)
    assert answer.status == 200, answer
    assert (await service.act(action)).body["results"][0]["duplicate"]


@pytest.mark.parametrize("letter", ["\0", "\t", "\x1f", "\x7f", "\x80", "\x85", "\x9f"])
@pytest.mark.parametrize("field", ["message_id", "conversation_id", "sender"])
async def test_a_control_character_is_in_no_id(service: Served, field: str, letter: str) -> None:
    head, value = await service.head(), f"a{letter}b"
    action = sent("bad", **{field: {"id": value, "name": "Ann"} if field == "sender" else value})
    problem = await refused(service, await service.act(action), 400, head)
    assert problem["errors"][0]["path"].startswith(f"$.{field}")


TAKEN: dict[str, dict[str, Any]] = {
    "an address in capitals": {"message": {"type": "picture", "media": "HTTPS://Media.Example/A.JPG"}},
    "a space in an address": {"message": {"type": "picture", "media": "https://x/my photo.jpg"}},
    "no avatar": {"sender": {"id": "u-1", "name": "Ann", "avatar": "", "profile_link": "", "user_id": ""}},
    "no media": {"message": {"type": "text", "text": "Hi", "media": "", "sticker_id": ""}},
    "silent of nothing": {"silent": None, "direction": None, "receiver": None, "reply_to": None},
    "an account of nothing": {"account_id": ""},
    "a leap second": {"at": "2016-12-31T23:59:60Z"},
    "a leap second in another zone": {"at": "2017-01-01T05:29:60.25+05:30"},
}


def with_null(changed: dict[str, Any], number: str) -> bytes:
    """`sent` leaves out what is None; here it is null."""
    return json.dumps(sent(number) | changed).encode()


@pytest.mark.parametrize("name", TAKEN)
async def test_what_means_nothing_counts_as_absent(service: Served, name: str) -> None:
    answer = await service.act(with_null(TAKEN[name], name))
    assert answer.status == 200, answer.body
    assert not answer.body["results"][0]["duplicate"]


async def test_a_leap_second_is_the_second_after_it(service: Served) -> None:
    head = await service.head()
    assert (await service.act(sent("leap", at="2016-12-31T23:59:60.5Z"))).status == 200
    (event,) = [one for one in await service.since(head) if one["type"] == "message.sent"]
    assert event["at"] == "2017-01-01T00:00:00.500Z"


async def test_what_is_absent_changes_no_content(service: Served) -> None:
    assert (await service.act(sent("same"))).status == 200
    changed = {"sender": {"id": "u-1", "name": "Ann", "avatar": ""}, "silent": None}
    repeat = json.loads(with_null(changed, "same"))
    repeat["message"] |= {"media": "", "location": None}
    answer = await service.act(repeat)
    assert answer.body["results"][0]["duplicate"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a line end in an address": (
        {"message": {"type": "picture", "media": "https://x/a\n"}},
        "$.message.media",
    ),
    "a tab in an address": (
        {"sender": {"id": "u", "name": "A", "avatar": "https://x/\t"}},
        "$.sender.avatar",
    ),
    "a control character": ({"message": {"type": "picture", "media": "https://x/\x85"}}, "$.message.media"),
    "no host": ({"message": {"type": "picture", "media": "https:///a"}}, "$.message.media"),
    "a needed address": ({"message": {"type": "picture", "media": ""}}, "$.message.media"),
    "a leap second at noon": ({"at": "2016-12-31T12:00:60Z"}, "$.at"),
    "a leap second after which there is nothing": ({"at": "9999-12-31T23:59:60Z"}, "$.at"),
    "a needed text of nothing": ({"conversation_id": None}, "$"),
    "silent of words": ({"silent": "no"}, "$.silent"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_wrong_is_still_refused(service: Served, name: str) -> None:
    changed, path = REFUSED[name]
    head = await service.head()
    problem = await refused(service, await service.act(with_null(changed, "wrong")), 400, head)
    assert problem["errors"][0]["path"].startswith(path)
    assert "regex" not in problem["detail"]


# Encodings.


def raw_headers(body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks over exact bytes, whatever they are."""
    key = base64.b64decode(MESSENGER_SECRET.removeprefix("whsec_"))
    now = str(int(time.time()))
    mac = hmac.digest(key, f"msg_1.{now}.".encode() + body, "sha256")
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": now,
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }


TEXT = json.dumps(sent("encoded", message={"type": "text", "text": "é"}), ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1251"])
async def test_a_body_in_another_encoding_is_told_so(service: Served, encoding: str) -> None:
    body = TEXT.replace("é", "й" if encoding == "cp1251" else "é").encode(encoding)
    head = await service.head()
    answer = await service.request("POST", "/messengers/acme", data=body, headers=raw_headers(body))
    problem = await refused(service, answer, 400, head)
    assert "UTF-8" in problem["detail"]


async def test_a_byte_order_mark_is_no_fault(service: Served) -> None:
    assert (await service.act(BOM_UTF8 + TEXT.encode())).status == 200
    assert (await service.act(BOM_UTF8 + f"[{TEXT}]".encode())).status == 200


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "windows-1251"])
@pytest.mark.parametrize("path", ["/messengers/acme", "/v1/channels"])
async def test_a_charset_that_is_not_ours_is_told_so(service: Served, path: str, charset: str) -> None:
    kind = {"Content-Type": f"application/json; charset={charset}"}
    head = await service.head()
    answer = (
        await service.act(sent("charset"), headers=kind)
        if path == "/messengers/acme"
        else await service.ask("POST", path, {"name": "x"}, headers=kind)
    )
    assert "UTF-8" in (await refused(service, answer, 415, head))["detail"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "us-ascii"])
async def test_a_charset_that_is_ours_passes(service: Served, charset: str) -> None:
    kind = {"Content-Type": f"application/json; charset={charset}"}
    assert (await service.act(sent("charset of ours"), headers=kind)).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "deflate"])
@pytest.mark.parametrize("path", ["/kommo/x", "/messengers/acme", "/v1/channels", "/crm/a/b", "/login"])
async def test_a_compressed_body_is_told_so(service: Served, path: str, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, **signed(b"{}")}
    answer = await service.ask("POST", path, {}, headers=headers)
    assert answer.status == 415
    assert "compressed" in answer.body["detail"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", "identity,identity"])
async def test_an_encoding_that_is_none_passes(service: Served, encoding: str) -> None:
    assert (await service.act(sent("identity"), headers={"Content-Encoding": encoding})).status == 200


# Clocks.


@pytest.mark.parametrize(("age", "side"), [(360, "behind"), (-360, "ahead of")])
async def test_a_clock_that_is_off_is_told_with_its_difference(
    service: Served, age: float, side: str
) -> None:
    head = await service.head()
    problem = await refused(service, await service.act(sent("clock"), age_seconds=age), 401, head)
    assert "clock" in problem["detail"]
    assert side in problem["detail"]
    assert any(f"{seconds} seconds" in problem["detail"] for seconds in (358, 359, 360, 361, 362))


async def test_a_wrong_signature_says_nothing_of_the_clock(service: Served) -> None:
    secret = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    answer = await service.act(sent("clock"), age_seconds=360, secret=secret)
    assert (answer.status, "clock" in answer.body["detail"]) == (401, False)
