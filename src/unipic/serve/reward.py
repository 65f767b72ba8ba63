"""A reward behind HTTP, for `RemoteReward` (see `rewards.wire` for what it is asked and answers).

POST /v1/score · GET /health (which needs no key, and says what reward this is)

Samples come with their pictures; the server fetches nothing. Where too many requests wait, 429 says so. What cannot be
scored now is answered with 503 and its reason: the reward raised TryLater (code try_later), or it failed (its traceback
is in the log). No other status is 500 or more.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from unipic.errors import BadInput, TryLater, one_line
from unipic.rewards import wire
from unipic.rewards.reward import Reward, WeightedSum
from unipic.serve.chat import Refused
from unipic.serve.door import Guard, bare_app, body_of, listen

MOST_PRESENT = 128  # requests, those that wait included

log = logging.getLogger(__name__)


def reward_app(reward: Reward, name: str, *, api_key: str | None = None, workers: int = 16) -> FastAPI:
    """name: of the reward and its settings; those among which a client chooses must say the same. workers: threads."""
    app, limiter, present = bare_app("unipic reward"), CapacityLimiter(workers), set[Request]()

    @app.get("/health")
    async def health() -> Mapping[str, str]:
        return {"status": "ok", "reward": name}

    @app.post("/v1/score", dependencies=[Depends(Guard(api_key))])
    async def score(request: Request) -> Response:
        if len(present) >= MOST_PRESENT:
            raise Refused("too many requests are waiting", code="busy", status=wire.BUSY)
        present.add(request)
        try:
            body, kind = await body_of(request, wire.MOST_BODY), request.headers.get("content-type", "")
            reply = await to_thread.run_sync(_scored, reward, kind, body, limiter=limiter)
        finally:
            present.remove(request)
        return Response(reply, media_type="application/json")

    return app


def _scored(reward: Reward, content_type: str, body: bytes) -> bytes:
    """The reply. Raises Refused."""
    try:
        samples = wire.samples(content_type, body)
    except BadInput as error:
        raise Refused("; ".join(str(error).splitlines())) from None
    try:
        scores = WeightedSum({"reward": (1.0, reward)}).score(samples).total  # which checks them
    except TryLater as error:
        said = "; ".join(str(error).splitlines())
        log.warning("try later: %s", said)
        raise Refused(said, code=wire.TRY_LATER, status=503) from None
    except Exception as error:
        log.exception("the reward failed")
        raise Refused(f"the reward failed: {type(error).__name__}: {one_line(error)}", status=503) from None
    return wire.reply(scores)


def serve_reward(
    reward: Reward, name: str, host: str, port: int, *, api_key: str | None = None, workers: int = 16
) -> None:
    """Serve until interrupted. port: 0 takes a free one. Logs the address. Raises as `door.listen` does."""
    wire.keep_memory()
    listen(reward_app(reward, name, api_key=api_key, workers=workers), host, port, f"the reward {name}")
