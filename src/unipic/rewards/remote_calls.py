"""One exchange with a reward server over HTTP: its answer comes whole and within its time, or counts as none.

Over the standard library's client: sending a picture takes it a third of the CPU that others take, and nothing is read
from the environment, no redirect is followed.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult

from unipic.rewards import wire

CONNECT = 5.0  # seconds; /health, too, has no longer
LEAST = 0.05  # seconds that a socket waits


class NoAnswer(Exception):
    """The server could not be reached, or did not answer in time."""


class BadAnswer(Exception):
    """What came is not a reply."""


class Busy(Exception):
    """The server is well, but has no room for another request."""


class Connections:
    """Of threads with servers, kept from one exchange to the next until they are closed. over: nothing is sent then."""

    def __init__(self, over: threading.Event, context: ssl.SSLContext) -> None:
        self.over, self.ssl = over, context
        self.kept: dict[tuple[int, SplitResult], HTTPConnection] = {}  # of each thread
        self.waiting: dict[socket.socket, float] = {}  # for an answer, until when

    def close(self) -> None:
        for connection in list(self.kept.values()):
            connection.close()

    def hang_up(self, now: float) -> None:
        """On those that should have answered before now: a socket's own timeout begins anew with every byte."""
        for connected, until in list(self.waiting.items()):
            if until < now:
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)

    def exchange(
        self,
        at: SplitResult,
        method: str,
        path: str,
        timeout: float,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of the answer. Raises NoAnswer, and BadAnswer for one that is too long."""
        until = time.monotonic() + timeout
        kept = threading.get_ident(), at
        old = self.kept.get(kept)
        while True:
            connection = self.kept[kept] = old or self._connection(at)
            try:
                return self._on(connection, method, at.path + path, until, body, headers or {})
            except (OSError, HTTPException, ValueError, AttributeError) as error:  # the last two: closed meanwhile
                connection.close()
                late = time.monotonic() >= until or isinstance(error, TimeoutError)
                if old is None or late or self.over.is_set():
                    raise NoAnswer(f"no answer within {timeout:g} seconds" if late else _why(error)) from None
                old = None  # it may have been closed for having been idle
            except BadAnswer:
                connection.close()
                raise

    def _on(
        self, connection: HTTPConnection, method: str, path: str, until: float, body: bytes | None, headers: Any
    ) -> tuple[int, bytes]:
        if connection.sock is None:
            connection.connect()
        connected: socket.socket = connection.sock
        connected.settimeout(max(until - time.monotonic(), LEAST))
        self.waiting[connected] = until
        try:
            if self.over.is_set():
                raise OSError("the call is over")
            connection.request(method, path, body, headers)
            with connection.getresponse() as answer:
                content = answer.read(wire.MOST_REPLY + 1)
        finally:
            del self.waiting[connected]
        if len(content) > wire.MOST_REPLY:
            raise BadAnswer("its answer is too long")
        return answer.status, content

    def _connection(self, at: SplitResult) -> HTTPConnection:
        host, port = at.hostname or "", at.port
        if at.scheme == "https":
            return HTTPSConnection(host, port, timeout=CONNECT, context=self.ssl)
        return HTTPConnection(host, port, timeout=CONNECT)


def _why(error: Exception) -> str:
    """The system's own words only: others repeat what was sent, such as the key, or what came."""
    return (str(error) if isinstance(error, OSError) else "") or type(error).__name__


def json_object(content: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def error_in(content: bytes) -> tuple[str, str]:
    """Message and code of an error in our servers' form; empty where there is none."""
    error = json_object(content).get("error")
    fields = (error.get("message"), error.get("code")) if isinstance(error, dict) else (None, None)
    message, code = (field if isinstance(field, str) else "" for field in fields)
    return message, code
