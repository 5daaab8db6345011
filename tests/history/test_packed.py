"""A file may begin with a byte order mark, and may be packed by gzip: it is read whole, or refused whole."""

import gzip
from codecs import BOM_UTF8

import pytest

from tests.support.import_files import imported, line, ndjson
from tests.support.system import Story, chat


@pytest.mark.parametrize("packed", ["mark", "gzip", "gzip with its header", "two members", "a mark in gzip"])
async def test_a_file_with_a_mark_or_packed_is_read_whole(story: Story, packed: str) -> None:
    name = chat()
    plain = ndjson(line(name, number) for number in range(5))
    body = BOM_UTF8 + plain if "mark" in packed else plain
    if "gzip" in packed:
        body = gzip.compress(body)
    if packed == "two members":
        body = gzip.compress(plain[:100]) + gzip.compress(plain[100:])
    headers = {"Content-Encoding": "gzip"} if "header" in packed else {}
    answer = await imported(story, body, headers=headers)
    assert (answer.status, answer.report["imported"], answer.report["skipped"]) == (200, 5, 0)
    assert (await imported(story, plain, again="true")).report["duplicates"] == 5


@pytest.mark.parametrize("cut", [slice(0, -20), slice(0, 15)])
async def test_a_damaged_gzip_is_refused_before_anything_is_stored(story: Story, cut: slice) -> None:
    body = gzip.compress(ndjson(line(chat(), number) for number in range(5)))
    answer = await imported(story, body[cut])
    assert answer.status == 400
    assert "gzip" in answer.report["detail"]
    answer = await imported(story, body[:30] + b"damage" + body[36:])
    assert answer.status == 400
