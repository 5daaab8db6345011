"""Talks (§4.4): read one, close one; a closed one cannot be closed again."""

from litestar import Response, get, post
from litestar.params import FromPath
from msgspec import Struct

from ops.sandbox.api.crm import Caller, Reply, Wrong, answer
from ops.sandbox.crm.payloads import talk_fields
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import Talk

PATH = "/api/v4/talks/{talk_id:int}"


class Close(Struct):
    """`force_close` false would run the NPS bot first, which no account here has."""

    force_close: bool = False


@get(PATH)
async def read_talk(request: Call, talk_id: FromPath[int]) -> Response[bytes]:
    """One talk."""
    return await answer(request, "talks", lambda caller: Reply(200, _shown(caller, _talk(caller, talk_id))))


@post(PATH + "/close", status_code=202)
async def close_talk(request: Call, talk_id: FromPath[int]) -> Response[bytes]:
    """Close a talk; 422 if it is closed already."""

    def work(caller: Caller) -> Reply:
        if caller.body:
            caller.read(Close)
        talk = _talk(caller, talk_id)
        if not talk.is_in_work:
            raise Wrong(422, "The talk is closed already")
        caller.sandbox.crm_rules.change(talk, is_in_work=False)
        return Reply(202)

    return await answer(request, "talks", work)


ROUTES = [read_talk, close_talk]


def _talk(caller: Caller, talk_id: int) -> Talk:
    found = caller.sandbox.crm_state.talks.get(talk_id)
    if found is None or found.account != caller.amojo_id:
        raise Wrong(404, "There is no such talk")
    return found


def _shown(caller: Caller, talk: Talk) -> dict[str, object]:
    contacts = [{"id": talk.contact_id, "_links": caller.link(f"contacts/{talk.contact_id}")}]
    leads = [{"id": talk.entity_id, "_links": caller.link(f"leads/{talk.entity_id}")}]
    return {
        **talk_fields(talk),
        "missed_at": None,
        "account_id": caller.account.id,
        "_links": caller.link(f"talks/{talk.id}"),
        "_embedded": {"contacts": contacts, "leads": leads if talk.entity_id else [], "customers": []},
    }
