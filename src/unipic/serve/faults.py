"""What goes wrong between a client and a judge: fourteen faults, to be planted on purpose.

Some spoil what is said (a choice's content, or the choices), the others how it is sent. Which call meets which fault
is a function of the seed and the call's number alone.

- html: status 200 with a page of HTML
- truncated: the content ends after `{"instruction_following":`
- fraction: each score is a text, "9.5/10"
- nan: each score is NaN, which is no JSON
- out_of_range: each score is 11
- fewer: one choice fewer than asked; of one choice the first score is missing
- reordered: choices from the last to the first; of one choice the keys, and it stands in a Markdown fence
- huge: 10 MB of blanks follow the content
- slow: the body comes at one byte a second
- rate_limited: status 429, without Retry-After
- server_error: status 500 with a page of HTML
- dropped: the connection closes in the middle of the body
- empty: no choices
- stalled: nothing for ten minutes, then status 504
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from unipic.errors import BadInput

KINDS = (
    "html",
    "truncated",
    "fraction",
    "nan",
    "out_of_range",
    "fewer",
    "reordered",
    "huge",
    "slow",
    "rate_limited",
    "server_error",
    "dropped",
    "empty",
    "stalled",
)
HUGE = 10_000_000  # bytes
STALL = 600.0  # seconds
PAGE = "<!doctype html><html><head><title>{0}</title></head><body><h1>{0}</h1></body></html>"


@dataclass(frozen=True)
class Faults:
    """share: of the calls that meet a fault, 0 to 1. kinds: of KINDS, all equally likely."""

    share: float
    seed: int = 0
    kinds: Sequence[str] = KINDS

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise BadInput("the share of faults is none", f"share {self.share}", "give a number from 0 to 1")
        if unknown := [kind for kind in self.kinds if kind not in KINDS] or (not self.kinds and ["none"]):
            raise BadInput("there is no such fault", f"kinds {', '.join(unknown)}", f"give some of {', '.join(KINDS)}")

    def of(self, call: int) -> str | None:
        """The fault that the call of this number meets; None if it is served well."""
        rng = random.Random(f"{self.seed} {call}")
        return rng.choice(self.kinds) if rng.random() < self.share else None


# --- what is said -----------------------------------------------------------------------------------------------------


def choices(
    fault: str | None, answer: Mapping[str, Any], n: int, write: Callable[[Mapping[str, Any]], str] = json.dumps
) -> list[tuple[int, str]]:
    """Index and content of each choice. answer: the genuine one. write: an answer as content."""
    content = write(_spoilt(fault, answer, n))
    if fault == "truncated":
        content = '{"instruction_following":'
    if fault == "reordered" and n == 1:
        content = f"```json\n{content}\n```"
    if fault == "huge":
        content += " " * HUGE
    said = [(i, content) for i in range(n)]
    match fault:
        case "empty":
            return []
        case "fewer" if n > 1:
            return said[:-1]
        case "reordered":
            return said[::-1]
    return said


def _spoilt(fault: str | None, answer: Mapping[str, Any], n: int) -> dict[str, Any]:
    match fault:
        case "fraction":
            return _changed(answer, lambda score: "?/10" if score is None else f"{score:g}/10")
        case "nan":
            return _changed(answer, lambda score: float("nan"))
        case "out_of_range":
            return _changed(answer, lambda score: 11)
        case "fewer" if n == 1:
            return _without_first_score(answer)
        case "reordered" if n == 1:
            return dict(reversed([*answer.items()]))
    return dict(answer)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _changed(answer: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The answer with each of its scores changed, those in lists too."""
    return {
        name: value if _is_text(value) else [change(v) for v in value] if isinstance(value, list) else change(value)
        for name, value in answer.items()
    }


def _without_first_score(answer: Mapping[str, Any]) -> dict[str, Any]:
    first = next((name for name, value in answer.items() if not _is_text(value)), None)
    if first is not None and isinstance(answer[first], list):
        return {**answer, first: answer[first][1:]}
    return {name: value for name, value in answer.items() if name != first}


# --- how it is sent ---------------------------------------------------------------------------------------------------


def response(fault: str | None, body: bytes) -> Response:
    """body: of the completion, JSON."""
    match fault:
        case "html":
            return HTMLResponse(PAGE.format("Welcome"))
        case "server_error":
            return HTMLResponse(PAGE.format("Internal Server Error"), 500)
        case "rate_limited":
            error = {"message": "too many requests", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
            return JSONResponse({"error": error}, 429)
        case "slow":
            return _Slow(body, media_type="application/json")
        case "dropped":
            return _Dropped(body, media_type="application/json")
        case "stalled":
            return _Stalled(PAGE.format("Gateway Timeout"), 504, media_type="text/html")
    return Response(body, media_type="application/json")


class _Dropped(Response):
    """Promises its whole length, sends the first half; the server then closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.body", "body": half, "more_body": True})


class _Slow(Response):
    """A byte a second, until the client goes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for byte in bytes(self.body):
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
            if await _gone(receive, 1):
                return
        await send({"type": "http.response.body"})


class _Stalled(Response):
    """Nothing for ten minutes, or until the client goes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await _gone(receive, STALL):
            await super().__call__(scope, receive, send)


async def _gone(receive: Receive, seconds: float) -> bool:
    """Whether the client goes within this time, or the server stops (which cancels what it still does)."""

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(disconnected(), seconds)
    except TimeoutError:
        return False
    except asyncio.CancelledError:
        return True
    return True
