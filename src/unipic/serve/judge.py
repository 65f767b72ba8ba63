"""The world's verifier behind an OpenAI-compatible chat endpoint: a judge to try clients of judges against.

A request carries pictures in its user messages and words also in those of the system, and is answered with JSON in the
message's content, or in lines if it asks for them (see `judgement`). The same request always gets the same answer.
Pictures come as data URLs only: the server fetches nothing. With `Faults`, a share of the calls goes wrong on purpose;
nothing else is ever answered with a status of 500 or more.

POST /v1/chat/completions · GET /v1/models · GET /ledger · GET /health (which needs no key)
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Request
from PIL import Image
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response

from unipic.serve import faults as planted
from unipic.serve import judgement
from unipic.serve.chat import ImagePart, Refused, ResponseFormat, TextPart, completion, parsed, picture
from unipic.serve.door import Guard, bare_app, body_of, listen
from unipic.serve.faults import Faults
from unipic.serve.ledger import Ledger

MODEL = "unipic-world-judge"
MOST_BODY = 32_000_000  # bytes
MOST_PICTURES = 16
WORKERS = 4  # judgements at a time


class _Judged:
    """A request, and the genuine answer to it."""

    def __init__(self, body: bytes) -> None:
        chat = parsed(body)
        if chat.model != MODEL:
            raise Refused(f"there is no model {chat.model[:100]}; give {MODEL}", "model", "model_not_found", 404)
        properties = _properties(chat.response_format)
        said = [chat.parts("user"), chat.parts("system", "developer")]
        self.n = chat.n or 1
        texts = [[part.text for part in parts if isinstance(part, TextPart)] for parts in said]
        self.texts = [text for speaker in texts for text in speaker]
        urls = [part.image_url.url for part in said[0] if isinstance(part, ImagePart)]
        if not 0 < len(urls) <= MOST_PICTURES:
            raise Refused(f"a judgement needs 1 to {MOST_PICTURES} pictures; {len(urls)} came", "messages")
        shown = [picture(url) for url in urls]
        self.key = _key(texts, shown)
        self.answer = judgement.answer(judgement.judge(texts, shown), self.texts, properties)
        self.write = partial(judgement.written, texts=self.texts, properties=properties)


def _properties(wanted: ResponseFormat | None) -> dict[str, Any] | None:
    """Of the schema that the answer shall have; None if it may be our own form."""
    if wanted is None or wanted.type != "json_schema":
        return None
    properties = wanted.json_schema.schema_.get("properties") if wanted.json_schema else None
    if not isinstance(properties, dict) or not properties:
        raise Refused("the schema names no properties", "response_format.json_schema.schema.properties")
    for name in properties:
        if name.lower() not in judgement.MEANINGS:
            known = ", ".join(judgement.MEANINGS)
            raise Refused(f"the judge has no property {name[:100]}; it has {known}", "response_format")
    return properties


def _key(said: Sequence[Sequence[str]], shown: Sequence[Image.Image]) -> str:
    """SHA-256 of all that is judged."""
    digest = hashlib.sha256()
    pieces = [text.encode() for texts in said for text in texts]
    pieces += [piece for p in shown for piece in (f"{p.mode} {p.width}x{p.height}".encode(), p.tobytes())]
    for piece in (f"{[*map(len, said)]} {len(shown)}".encode(), *pieces):
        digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.hexdigest()


# --- the server -------------------------------------------------------------------------------------------------------


def judge_app(*, api_key: str | None = None, faults: Faults | None = None, ledger: Path | None = None) -> FastAPI:
    """api_key: clients must bring it. ledger: a file to which each judgement is appended, as a line of JSON."""
    app = bare_app("unipic judge")
    book, limiter = Ledger(ledger), CapacityLimiter(WORKERS)

    @app.get("/health")
    async def health() -> Mapping[str, str]:
        return {"status": "ok"}

    guarded = APIRouter(dependencies=[Depends(Guard(api_key))])

    @guarded.get("/v1/models")
    async def models() -> Mapping[str, Any]:
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "unipic"}]}

    @guarded.get("/ledger")
    async def summary() -> Mapping[str, Any]:
        return book.summary()

    @guarded.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        judged = await to_thread.run_sync(_Judged, await body_of(request, MOST_BODY), limiter=limiter)
        call = book.next_call()
        fault = faults.of(call) if faults else None
        choices = planted.choices(fault, judged.answer, judged.n, judged.write)
        body = JSONResponse(completion(call, MODEL, judged.texts, choices)).body
        response = planted.response(fault, bytes(body))
        if fault:
            book.write(call, judged.key, fault=fault)
        elif not await request.is_disconnected():  # an answer counts once it is sent
            response.background = BackgroundTask(_noted, book, call, judged)
        return response

    app.include_router(guarded)
    return app


async def _noted(book: Ledger, call: int, judged: _Judged) -> None:
    """On the event loop, before the client's next request is read."""
    book.write(call, judged.key, answer=judged.answer)


def serve_judge(
    host: str,
    port: int,
    *,
    api_key: str | None = None,
    faults: Faults | None = None,
    ledger: Path | None = None,
) -> None:
    """Serve until interrupted. port: 0 takes a free one. Logs the address. Raises as `door.listen` does."""
    app = judge_app(api_key=api_key, faults=faults, ledger=ledger)
    # Dropped connections end so, and on purpose.
    logging.getLogger("uvicorn.error").addFilter(lambda r: "ASGI callable returned without" not in r.getMessage())
    listen(app, host, port, f"the judge {MODEL}", "/v1")
