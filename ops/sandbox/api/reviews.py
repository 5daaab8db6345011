"""WhatsApp's review of a template: one review per WhatsApp source, requested by a webhook."""

from typing import Annotated, Literal

from litestar import Response, post
from litestar.params import FromPath
from msgspec import Meta, Struct

from ops.sandbox.api.crm import Caller, Reply, Wrong, answer
from ops.sandbox.config import CrmAccount
from ops.sandbox.crm.webhooks import CrmHooks, Sent
from ops.sandbox.responses import Call
from ops.sandbox.state.crm import CrmState, Review, Source, Template

PATH = "/api/v4/chats/templates/{template_id:int}/review"


class Reviewed(Struct):
    status: Literal["approved", "paused", "rejected"]
    reject_reason: Annotated[str, Meta(max_length=65_535)] = ""


@post(PATH, status_code=200)
async def send_to_review(request: Call, template_id: FromPath[int]) -> Response[bytes]:
    """Send a WhatsApp template out for review to every WhatsApp source, and notify the subscribers."""

    def work(caller: Caller) -> Reply:
        template, sandbox = _template(caller, template_id), caller.sandbox
        reviews, _ = begin(sandbox.crm_state, sandbox.crm_hooks, caller.account, template)
        return Reply(200, {"_embedded": {"reviews": [shown_review(one) for one in reviews]}})

    return await answer(request, "templates", work)


@post(PATH + "/{review_id:int}", status_code=200)
async def set_review(request: Call, template_id: FromPath[int], review_id: FromPath[int]) -> Response[bytes]:
    """Set the verdict of one source's review."""

    def work(caller: Caller) -> Reply:
        order, template = caller.read(Reviewed), _template(caller, template_id)
        for review in template.reviews:
            if review.id == review_id:
                review.status, review.reject_reason = order.status, order.reject_reason
                caller.sandbox.crm_state.templates.save(template)
                return Reply(200, shown_review(review))
        raise Wrong(404, "There is no such review of this template")

    return await answer(request, "templates", work)


ROUTES = [send_to_review, set_review]


def begin(
    state: CrmState, hooks: CrmHooks, account: CrmAccount, template: Template
) -> tuple[list[Review], list[Sent]]:
    """Send a template out for review; raises Wrong (400) if the account has no WhatsApp source."""
    if template.told["type"] != "waba":
        raise Wrong(400, "Only a template of type waba can be reviewed")
    sources = [one for one in state.sources.of(template.account) if _is_whatsapp(one)]
    if not sources:
        raise Wrong(400, "No source has services[].params.waba: make one first")
    template.reviews = []
    for source in sources:
        state.reviews += 1
        template.reviews.append(Review(id=state.reviews, source_id=source.id))
    state.templates.save(template)
    told: dict[str, object] = {"add": [hook_fields(template) | {"account_id": account.id}]}
    return template.reviews, hooks.tell(account, "add_chat_template_review", "template", told)


def hook_fields(template: Template) -> dict[str, object]:
    """A template as a webhook reports it."""
    told = template.told
    return {
        "id": template.id,
        "type": told["type"],
        "name": told["name"],
        "content": told["content"],
        "created_at": template.created_at,
        "updated_at": template.updated_at,
        "is_editable": told["is_editable"],
        "reviews": [shown_review(one) for one in template.reviews],
        "is_on_review": any(one.status == "review" for one in template.reviews),
        "waba_footer": told.get("waba_footer"),
        "waba_category": told.get("waba_category"),
        "waba_language": told.get("waba_language"),
    }


def review_status(template: Template) -> str:
    """The worst of the reviews; `draft` before the first."""
    statuses = {one.status for one in template.reviews}
    order = ("review", "rejected", "paused", "approved")
    return next((one for one in order if one in statuses), "draft")


def shown_review(review: Review) -> dict[str, object]:
    """A review as the CRM shows it."""
    return {
        "id": review.id,
        "source_id": review.source_id,
        "status": review.status,
        "reject_reason": review.reject_reason,
    }


def _template(caller: Caller, template_id: int) -> Template:
    found = caller.sandbox.crm_state.templates.get(template_id)
    if found is None or (found.account, found.client) != (caller.amojo_id, caller.client):
        raise Wrong(404, "There is no such template")
    return found


def _is_whatsapp(source: Source) -> bool:
    params = [one.get("params") for one in source.services]
    return any(isinstance(one, dict) and one.get("waba") is True for one in params)
