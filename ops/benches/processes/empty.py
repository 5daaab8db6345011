"""An empty Litestar POST handler under the same server and settings: the baseline of `ingest`."""

import socket

import uvicorn
from litestar import Litestar, post
from litestar.params import FromPath

from app.service.connections import BACKLOG_MAX


@post("/kommo/{scope_id:str}", status_code=200)
async def empty(scope_id: FromPath[str]) -> None:
    """Nothing."""


def main() -> None:
    """Listen on a free port and say which."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG_MAX)
    app = Litestar([empty], openapi_config=None, logging_config=None)
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    print(f"ready on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
