"""The OpenAPI document at `/schema`: Litestar's list of routes, with our shapes, examples and headers.

Litestar knows paths and parameters; the shapes come from msgspec, which also checks bodies by them, so that
the two cannot differ. What every route of a kind may answer is added here, once.
"""

import http
import inspect
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import msgspec
from litestar import Litestar, Request, Response
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Reference, SecurityScheme
from litestar.response import Redirect
from litestar.routes import HTTPRoute
from litestar.serialization import encode_json

from app import problems
from app.http.openapi import webhooks
from app.http.openapi.examples import SHAPES
from app.http.openapi.parameters import PARAMETERS, PATTERNS
from app.http.openapi.responses import Said, Taken, problem
from app.problems import Fault, Problem

Json = dict[str, Any]
JSON, NDJSON = "application/json", "application/x-ndjson"
REF = "#/components/schemas/{name}"
KEY, KOMMO, MESSENGER = "key", "kommo", "messenger"
SECURITY: dict[str, SecurityScheme | Reference] = {
    KEY: SecurityScheme(type="http", scheme="bearer", description="a key; the admin key may do everything"),
    KOMMO: SecurityScheme(
        type="apiKey",
        name="X-Signature",
        security_scheme_in="header",
        description="lower-case hex HMAC-SHA1 of the body's bytes; the key is the channel's secret, as text",
    ),
    MESSENGER: SecurityScheme(
        type="apiKey",
        name="webhook-signature",
        security_scheme_in="header",
        description="Standard Webhooks: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`; the id and "
        "the unix time are in webhook-id and webhook-timestamp, and the time is right within 5 minutes",
    ),
}
# The names of shapes are published, so they stay what they were when a class or its module had another name.
# msgspec qualifies the names that several modules have.
PUBLISHED = {
    "Embedded": "app.catalog.Embedded",
    "HookAction": "Action",
    "HookConversation": "Where",
    "HookMessage": "Body",
    "HookSource": "Origin",
    "Manager": "AuthorTold",
    "MessageNames": "app.hooks.Embedded",
    "Participant": "Who",
    "ReportedStatus": "StatusTold",
    "app.channels.attempts.Problem": "app.connecting.Problem",
    "app.messengers.contract.Contact": "app.said.Contact",
    "app.messengers.contract.Location": "app.said.Location",
    "app.messengers.contract.Message": "app.said.Message",
    "app.views.messages.Message": "app.shapes.Message",
}
NO_RIGHT = "this needs a key with the right send: yours has read"
OUT_OF_REACH = "nothing of this id is in the key's reach"
MANY_KEYS = "too many wrong keys from your address: wait 26 seconds, or give the right one"
BAD = Fault("$.title", "Expected `str`, got `int`")
HEADERS: dict[str, Json] = {
    "Ledger-Position": {
        "description": "the position of the last event that this wrote: for `at_least` of a later read",
        "schema": {"type": "integer", "minimum": 0},
        "example": 12,
    },
    "Link": {
        "description": "RFC 8288: the next page, if there is one",
        "schema": {"type": "string"},
        "example": '</v1/conversations?cursor=eyJhIjoxfQ>; rel="next"',
    },
    "Retry-After": {
        "description": "seconds after which to ask again",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
        "example": 1,
    },
    "WWW-Authenticate": {"description": "which key", "schema": {"const": "Bearer"}, "example": "Bearer"},
    "Location": {"description": "where it is now", "required": True, "schema": {"type": "string"}},
}


class DocumentPlugin(JsonRenderPlugin):
    """Renders the document; it is made once."""

    def __init__(self, path: str) -> None:
        super().__init__(path=path)
        self._rendered = b""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document as JSON."""
        if not self._rendered:
            self._rendered = msgspec.json.encode(document(request.app, openapi_schema))
        return self._rendered


class Route(NamedTuple):
    """An operation: where it is, who answers it, and what is told of it."""

    method: str
    handler: HTTPRouteHandler
    told: Json

    @property
    def responses(self) -> dict[int, ResponseSpec]:
        """All answers: the success by the handler's types, what it says itself, what all such routes have."""
        found: dict[int, ResponseSpec] = {}
        own: Mapping[int, ResponseSpec] = self.handler.responses or {}
        secured = any(KEY in each for each in self.told.get("security") or [])
        shape, moved = success(self.handler.parsed_fn_signature.return_type.annotation)
        found[self.handler.status_code] = Said(data_container=shape, description="")
        if moved:
            found[307] = Said(data_container=None, description="it is elsewhere now")
        if self.told.get("parameters"):
            found[400] = problem(400)
        if self.takes:
            found[400] = problem(400, f"{BAD.path}: {BAD.message}", BAD)
            found[413] = problem(413)
        if secured:
            found |= {401: problem(401), 403: problem(403, NO_RIGHT), 404: problem(404, OUT_OF_REACH)}
            found |= {429: problem(429, MANY_KEYS), 503: problem(503)}
        return dict(sorted(({**found, **own}).items()))

    @property
    def takes(self) -> Taken | None:
        """The body, if there is one."""
        taken = self.handler.opt.get("takes")
        if isinstance(taken, Taken):
            return taken
        data = self.handler.parsed_data_field
        if data is None:
            return None
        shape, kinds = data.annotation, get_args(data.annotation)
        if optional := NoneType in kinds:
            shape = next(one for one in kinds if one is not NoneType)
        return Taken(shape, {"example": SHAPES.get(_name(shape))}, required=not optional)

    @property
    def shapes(self) -> Iterator[Any]:
        """The types of all bodies."""
        if self.takes:
            yield self.takes.shape
        yield from (spec.data_container for spec in self.responses.values() if spec.data_container)


def success(annotation: Any) -> tuple[Any, bool]:
    """The shape that a handler's return type promises (None: no body), and whether it may redirect."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    shape: Any = None
    for part in parts:
        bare = get_origin(part) or part
        inner = (
            get_args(part)[0]
            if isinstance(bare, type) and issubclass(bare, Response) and get_args(part)
            else part
        )
        of_litestar = isinstance(bare, type) and issubclass(bare, Response) and inner is part
        if inner not in (None, NoneType, bytes) and not of_litestar:
            shape = inner
    return shape, Redirect in parts


def document(app: Litestar, litestars: Json) -> Json:
    """The whole document, made of Litestar's."""
    parts = litestars["components"] | {"schemas": {}}  # Its own shapes are not wanted.
    told: Json = msgspec.json.decode(encode_json(litestars | {"components": parts}))
    routes = list(_routes(app, told["paths"]))
    found = [shape for route in routes for shape in route.shapes] + webhooks.SHAPES
    shapes = list({repr(shape): shape for shape in found}.values())
    schemas, components = msgspec.json.schema_components(shapes, schema_hook=_anything, ref_template=REF)
    schemas, components = _published((schemas, components))
    told["components"]["schemas"] = dict(sorted(components.items()))
    known = {repr(shape): schema for shape, schema in zip(shapes, schemas, strict=True)}
    for route in routes:
        _describe(route, known)
    told["webhooks"] = webhooks.described(known)
    return told


def _published(value: Any) -> Any:
    """The same JSON with the published names of shapes, as keys, as titles and in references."""
    match value:
        case {"title": str(title), **rest} if title in PUBLISHED:
            return {"title": PUBLISHED[title].rpartition(".")[2]} | _published(rest)
        case dict():
            return {PUBLISHED.get(key, key): _published(each) for key, each in value.items()}
        case list() | tuple():
            return [_published(each) for each in value]
        case str() if value.startswith(REF[: -len("{name}")]):
            prefix, _, name = value.rpartition("/")
            return f"{prefix}/{PUBLISHED.get(name, name)}"
        case _:
            return value


def _routes(app: Litestar, paths: Json) -> Iterator[Route]:
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in sorted(map(str, handler.http_methods)):
                    told = paths.get(route.path_format, {}).get(method.lower())
                    if told is not None:
                        yield Route(method, handler, told)


def _name(shape: Any) -> str:
    return getattr(shape, "__name__", "")


def _anything(kind: type) -> Json:
    """JSON of any kind is what stands as `object` in our types."""
    if kind is object:
        return {"description": "any JSON"}
    raise NotImplementedError


def _describe(route: Route, known: Mapping[str, Json]) -> None:
    told = route.told
    told.pop("deprecated", None)
    told["description"] = inspect.getdoc(route.handler.fn) or ""
    for parameter in told.get("parameters", ()):
        _parameter(route, parameter)
    if taken := route.takes:
        examples = {name: {"value": value} for name, value in taken.examples.items()}
        schema = known[repr(taken.shape)]
        if taken.media_type == NDJSON:
            schema = {"type": "string", "contentMediaType": JSON, "contentSchema": schema}
        if not taken.required:
            schema = {"anyOf": [schema, {"type": "null"}]}
        content = {"schema": schema, "examples": examples}
        told["requestBody"] = {"required": taken.required, "content": {taken.media_type: content}}
    told["responses"] = {
        str(status): _answer(route, status, spec, known) for status, spec in route.responses.items()
    }


def _parameter(route: Route, told: Json) -> None:
    """A parameter of a query is there or not, but never null; its bounds are those of our types."""
    for odd in ("deprecated", "allowEmptyValue", "allowReserved"):
        told.pop(odd, None)
    schema = told["schema"]
    if options := [one for one in schema.pop("oneOf", ()) if one != {"type": "null"}]:
        told["schema"] = schema = {**options[0], **schema}
    fields = route.handler.parsed_fn_signature.parameters
    field = fields.get(told["name"]) or fields.get(f"{told['name']}_")
    bounds = field.kwarg_definition if field else None
    for name, bound in (
        ("minimum", "ge"),
        ("maximum", "le"),
        ("minLength", "min_length"),
        ("pattern", "pattern"),
    ):
        if (value := getattr(bounds, bound, None)) is not None:
            schema[name] = value
    schema.pop("description", None)
    if told["name"] in PATTERNS and (told["in"] == "path" or told["name"] == "conversation"):
        schema["pattern"] = PATTERNS[told["name"]]
    description, example = PARAMETERS.get(told["name"], ("", None))
    told.setdefault("description", description)
    if example is not None:
        told["example"] = example


def _answer(route: Route, status: int, spec: ResponseSpec, known: Mapping[str, Json]) -> Json:
    told: Json = {"description": spec.description or http.HTTPStatus(status).phrase}
    shape, content = spec.data_container, dict[str, Json]()
    if shape is Problem:
        content[problems.MEDIA_TYPE] = {"schema": known[repr(shape)]}
    elif shape is not None:
        content[JSON] = {"schema": known[repr(shape)], "example": SHAPES.get(_name(shape))}
    for media_type, text in getattr(spec, "texts", {}).items():
        is_json = media_type.endswith("json") and not media_type.endswith("ndjson")
        schema = content.get(media_type, {}).get("schema", {"type": "string"})
        content[media_type] = {"schema": schema, "example": msgspec.json.decode(text) if is_json else text}
    if content:
        told["content"] = content
    if headers := {name: HEADERS[name] for name in _headers(route, status, shape)}:
        told["headers"] = headers
    return told


def _headers(route: Route, status: int, shape: Any) -> Iterator[str]:
    if status == 307:
        yield "Location"
    if status == 401 and any(KEY in each for each in route.told.get("security") or []):
        yield "WWW-Authenticate"
    if status in (429, 503):
        yield "Retry-After"
    if status < 300 and "next" in getattr(shape, "__struct_fields__", ()):
        yield "Link"
    if status < 300 and route.method != "GET" and route.handler.opt.get("writes", True):
        yield "Ledger-Position"
