"""A query parameter that a route does not know is refused with the nearest one that it knows.

A misspelt filter would be answered with everything, which looks like an answer; so would a parameter given
twice, of which only one counts. Every route of the API asks this. Those do not that others call by addresses
of ours (webhooks, the way back from Kommo's consent), because they may add to an address, nor pages.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from litestar.routes import BaseRoute, HTTPRoute

from app.http.request import Call
from app.problems import Fault, ProblemError

NEAREST = 0.6  # difflib's own: finds `acount` for `account_id`, and nothing for `q`
FAULTS_MAX = 100  # Chosen: far more parameters than a route has; an address of 64 KB holds thousands.
TIMES = ("since", "until")
DATE = re.compile("[0-9]{4}-")
Names = dict[tuple[str, str], list[str]]


def query_names(routes: Iterable[BaseRoute]) -> Names:
    """Returns the names of the query parameters that each route takes, by its path and method."""
    return {
        (route.path_format, str(method)): sorted(one.field_alias for one in model.expected_query_params)
        for route in routes
        if isinstance(route, HTTPRoute)
        for method, (_, model) in route.route_handler_map.items()
    }


async def refuse_unknown(request: Call) -> None:
    """Raises ProblemError (400) for a query parameter that the route does not know or that is given twice."""
    if not request.scope["query_string"]:
        return
    names: Names = request.app.state.query_names
    known = names.get((request.scope["path_template"], request.method), [])
    given = [name for name, _ in request.query_params.multi_items()]
    faults = [Fault(name, _advice(name, known)) for name in dict.fromkeys(given) if name not in known]
    faults += [
        Fault(name, "it is given twice: give one value")
        for name in dict.fromkeys(given)
        if name in known and given.count(name) > 1
    ]
    faults += [
        Fault(name, f"{value} is no time: leave it out, or give one such as 2026-11-22T08:00:00Z")
        for name, value in request.query_params.multi_items()
        if name in TIMES and not DATE.match(value)  # Litestar takes null for none, and a number for seconds.
    ]
    if faults:
        detail = "; ".join(f"query parameter {fault.path}: {fault.message}" for fault in faults[:3])
        raise ProblemError(400, detail, errors=faults[:FAULTS_MAX])


def nearest(text: str, known: Iterable[str]) -> str:
    """Returns "did you mean …?" with the nearest of the known words, or nothing if none is near."""
    words = {word.lower(): word for word in known}
    found = get_close_matches(text.lower()[:100], words, n=1, cutoff=NEAREST)
    return f"did you mean {words[found[0]]}?" if found else ""


def _advice(name: str, known: list[str]) -> str:
    if not known:
        return "it is not known: this path takes no query parameters"
    return f"it is not known: {nearest(name, known) or 'give one of ' + ', '.join(known)}"
