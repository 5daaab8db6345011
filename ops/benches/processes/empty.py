"""An empty Litestar POST handler under the same server and settings: the baseline of `ingest`."""

from litestar import Litestar, post
from litestar.params import FromPath

from ops.benches.processes.server import serve


@post("/kommo/{scope_id:str}", status_code=200)
async def empty(scope_id: FromPath[str]) -> None:
    """Nothing."""


def main() -> None:
    """Listen on a free port and say which."""
    serve(Litestar([empty], openapi_config=None, logging_config=None))


if __name__ == "__main__":
    main()
