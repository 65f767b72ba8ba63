"""What stands before every server: the key, the size of bodies, errors in one form, the address.

Errors are JSON, {"error": {"message": …, …}}, in OpenAI's terms.
"""

from __future__ import annotations

import hmac
import logging
import socket

import uvicorn
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from unipic.errors import BadInput, UnipicError
from unipic.serve.chat import Refused

log = logging.getLogger(__name__)


def bare_app(title: str) -> FastAPI:
    """An application without routes, which says in one form why a request is not served."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    for kind in (Refused, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # no such route or method
        error = Refused(str(error.detail), status=error.status_code)
    if not isinstance(error, Refused):  # the client has gone
        return Response(status_code=400)
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    said = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return JSONResponse({"error": said}, error.status)


class Guard:
    """Lets requests pass that bring the key, in constant time."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    async def __call__(self, request: Request) -> None:
        scheme, _, brought = request.headers.get("authorization", "").partition(" ")
        same = self.key is None or hmac.compare_digest(brought.strip().encode("latin-1"), self.key.encode())
        if not same or (self.key is not None and scheme.lower() != "bearer"):
            raise Refused("this needs the right key: Authorization: Bearer KEY", code="invalid_api_key", status=401)


async def body_of(request: Request, most: int) -> bytes:
    """Reads to the end, so that a client that sends too much hears of it; keeps no more than `most` bytes."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            chunks.append(chunk)
    if size > most:
        raise Refused(f"the body is larger than {most // 10**6} MB", status=413)
    return b"".join(chunks)


def listen(app: FastAPI, host: str, port: int, what: str, path: str = "") -> None:
    """Serve until interrupted. port: 0 takes a free one. Logs where `what` listens.

    Raises BadInput for a host that is none of this machine's, UnipicError for a port that is taken.
    """
    listening = _bound(host, port)
    # asyncio sets it only on sockets that name their protocol. Without it replies wait 40 ms to be acknowledged.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    logging.disable(logging.NOTSET)  # a server has nothing to speak with but its log
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    address = f"[{host}]" if ":" in host else host
    log.info("%s listens at http://%s:%d%s", what, address, listening.getsockname()[1], path)
    config = uvicorn.Config(
        app,
        http="h11",  # httptools, which uvicorn prefers where it is installed, takes headers of any size, before the key
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()  # where no port is to be had, another one mends nothing
    except (OSError, UnicodeError) as error:
        mend = "give --host an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        raise BadInput("nothing can be served at that host", f"{host}: {error}", mend) from None
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UnipicError("nothing can be served there", f"{host}:{port}: {error}", "choose another port") from None
