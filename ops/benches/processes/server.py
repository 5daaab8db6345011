"""The server of the benches' counterparts: the same settings for all of them, and for ours."""

import socket
from typing import Any

import uvicorn

from app.service.connections import BACKLOG_MAX


def serve(app: Any, port: int = 0, *, lifespan: bool = False) -> None:
    """Listen on a port (0: a free one), say which, and serve an ASGI application until the end."""
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG_MAX)
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="on" if lifespan else "off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    print(f"ready on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
