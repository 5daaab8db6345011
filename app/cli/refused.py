"""`chatledger refused retry`: has a running service take up what it refused, one after the other."""

from collections.abc import Callable, Iterable
from typing import Any

import aiohttp
import msgspec

PAGE = 1000  # The largest page that the service gives.
Line = Callable[[str], None]


async def retry(url: str, key: str, ids: Iterable[str], line: Line) -> int:
    """Take up the hooks of these ids, or all of them, in the order in which they came; returns how many stay.

    `line` gets a sentence about each. Raises OSError and aiohttp.ClientError.
    """
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        kept = await _kept(session, url)
        wanted = list(dict.fromkeys(ids)) or kept
        unknown = [one for one in wanted if one not in kept]
        for one in unknown:
            line(f"{one}: no refused hook has this id")
        left = [one for one in kept if one in set(wanted) and not await _take_up(session, url, one, line)]
    return len(unknown) + len(left)


async def _kept(session: aiohttp.ClientSession, url: str) -> list[str]:
    """The ids of all refused hooks, the one that came first at the beginning."""
    found: list[str] = []
    query = {"order": "asc", "limit": str(PAGE)}
    while True:
        status, page = await _ask(session, "GET", f"{url}/v1/refused", query)
        if status != 200:
            raise OSError(f"{url} answered {status}: {page.get('detail')}")
        found += [item["id"] for item in page["items"]]
        if page["next"] is None:
            return found
        query["cursor"] = page["next"]


async def _take_up(session: aiohttp.ClientSession, url: str, id_: str, line: Line) -> bool:
    """Whether the hook is recorded now. Raises OSError where asking for the next one is of no use."""
    status, answer = await _ask(session, "POST", f"{url}/v1/refused/{id_}/retry", {})
    if status == 200:
        place = f"at position {answer['position']}" if answer["position"] else "nothing of it is news"
        line(f"{id_}: recorded, {place}")
        return True
    if status not in (404, 409, 422):
        raise OSError(f"{url} answered {status}: {answer.get('detail')}")
    line(f"{id_}: {answer.get('detail')}")
    return status == 404  # Somebody else took it up meanwhile.


async def _ask(
    session: aiohttp.ClientSession, method: str, url: str, query: dict[str, str]
) -> tuple[int, dict[str, Any]]:
    async with session.request(method, url, params=query) as answer:
        try:
            return answer.status, msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except msgspec.MsgspecError:
            raise OSError(f"{url} answered {answer.status}, but not as chatledger does") from None
