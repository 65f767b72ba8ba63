"""Any reward behind HTTP, on one machine or several: the client of `unipic serve-reward` (see `wire` for the protocol).

Samples go out in small requests, many at a time; `remote_servers` says where each goes. What a server did not answer,
had no room for or cannot score yet is sent again, to whichever server is well. Any other reply that is not exactly as
wanted counts as a failure.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from unipic.config import Strict
from unipic.errors import BadInput
from unipic.rewards import specs, wire
from unipic.rewards.remote_calls import CONNECT, BadAnswer, Busy, Connections, NoAnswer, error_in, json_object
from unipic.rewards.remote_servers import POLL, Server, Turns, fault_of
from unipic.rewards.reward import Sample

AHEAD = 2  # requests that are written while as many as may go at a time are under way
TRIES = 4  # bad replies to a request, while others are answered well, after which its scores are missing
FINAL = (400, 401, 403, 413, 422)  # statuses with which a server refuses a request for good


class RemoteReward:
    """urls: servers of the same reward, http(s)://HOST:PORT. key: that they want. timeout: seconds for a request; more
    than their reward takes at worst, or it is sent again while they still score it.

    patience: seconds without any server that is well and has room, after which TryLater is raised. concurrency:
    requests at a time. batch: samples in a request at most; fewer where there are not enough of them for all that may
    go at a time.
    """

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None = None,
        timeout: float = 60.0,
        patience: float = 120.0,
        concurrency: int = 16,
        batch: int = 4,
    ) -> None:
        if fault := fault_of(urls):
            raise BadInput(fault, f"urls: {', '.join(urls)}", "give http://HOST:PORT of each server, once")
        self.servers = [Server(url.rstrip("/"), urlsplit(url.rstrip("/"))) for url in urls]
        self.key = wire.checked_key(key, "key") if key else None
        self.headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self.timeout, self.patience, self.concurrency, self.batch = timeout, patience, concurrency, batch
        self.ssl = ssl.create_default_context()
        wire.keep_memory()

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """None where the server says so, or where TRIES replies were bad. Raises TryLater when no server is well; one
        whose reward raises it is not.

        Raises BadInput for a spec that cannot be sent, and where a server refuses a request for good.
        """
        for sample in samples:
            specs.told(sample.spec)
        return _Call(self).score([*self.portions(samples)]) if samples else []

    def portions(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        """What goes in a request each; samples that stand side by side stay together."""
        most = max(1, min(self.batch, wire.MOST_SAMPLES, len(samples) // self.concurrency))
        start, size = 0, 0
        for end, sample in enumerate(samples):
            own = sum(4 * p.width * p.height for p in (sample.picture, sample.source) if p is not None)
            if end > start and (end - start == most or size + own > wire.MOST_BODY):
                yield samples[start:end]
                start, size = end, 0
            size += own
        yield samples[start:]


class RemoteRewardConfig(Strict):
    """See `RemoteReward`. key_env: the environment variable that holds the key; null for servers without one."""

    may_change: ClassVar = ("urls", "key_env", "timeout", "patience", "concurrency", "batch")
    kind: Literal["remote"]
    weight: float = 1.0
    urls: tuple[str, ...]
    key_env: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)] | None = None
    timeout: Annotated[float, Field(gt=0)] = 60.0
    patience: Annotated[float, Field(ge=0)] = 120.0
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    batch: Annotated[int, Field(ge=1, le=wire.MOST_SAMPLES)] = 4

    @field_validator("urls")
    @classmethod
    def addresses_are_plain(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if fault := fault_of(value):
            raise ValueError(fault)
        return value

    def open(self) -> RemoteReward:
        return RemoteReward(self.urls, _key(self.key_env), self.timeout, self.patience, self.concurrency, self.batch)


def _key(variable: str | None) -> str | None:
    """From the environment."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BadInput("the key of the reward servers is not set", f"key_env: {variable}", "export it")
    return wire.checked_key(key, f"key_env: {variable}")


class _Call:
    """One call of `score`: its requests, in threads. The caller's thread watches over them and over the servers."""

    def __init__(self, reward: RemoteReward) -> None:
        self.reward = reward
        self.over = threading.Event()
        self.turns = Turns(reward.servers, reward.concurrency, reward.patience, self.over)
        self.connections = Connections(self.over, reward.ssl)

    def score(self, portions: Sequence[Sequence[Sample]]) -> list[float | None]:
        try:
            return self._watched(portions)
        finally:
            self.connections.close()

    def _watched(self, portions: Sequence[Sequence[Sample]]) -> list[float | None]:
        count = min(self.reward.concurrency + AHEAD, len(portions))
        looking = ThreadPoolExecutor(len(self.reward.servers))
        with ThreadPoolExecutor(count) as pool:
            looks: dict[Server, Future[None]] = {}
            requests = [pool.submit(self._scores, portion) for portion in portions]
            try:
                while True:
                    for server in [server for server, look in looks.items() if look.done()]:
                        looks.pop(server).result()
                    for server in self.turns.rested():
                        if server not in looks:
                            looks[server] = looking.submit(self._look, server)
                    done, waiting = wait(requests, POLL, FIRST_EXCEPTION)
                    for request in done:
                        request.result()  # raises what ended it
                    if not waiting:
                        return [score for request in requests for score in request.result()]
                    self.connections.hang_up(time.monotonic())
            finally:
                self.turns.end()
                pool.shutdown(wait=False, cancel_futures=True)
                looking.shutdown(wait=False, cancel_futures=True)  # nothing ends a connect before its time
                self.connections.hang_up(float("inf"))

    def _scores(self, samples: Sequence[Sample]) -> list[float | None]:
        """Of one request, sent until it is answered."""
        content_type, body = wire.request(samples)
        bad = 0
        while True:
            server = self.turns.take()
            failure: NoAnswer | BadAnswer | Busy | None = None
            try:
                return self._ask(server, content_type, body, len(samples))
            except (NoAnswer, BadAnswer, Busy) as error:
                failure = error
            finally:
                self.turns.ended(server, failure)
            bad += isinstance(failure, BadAnswer)
            if bad >= TRIES and self.turns.answers:
                return [None] if len(samples) == 1 else [self._scores([sample])[0] for sample in samples]

    def _ask(self, server: Server, content_type: str, body: bytes, count: int) -> list[float | None]:
        """Raises NoAnswer, BadAnswer, Busy; BadInput where it refuses the request for good."""
        headers = {"Content-Type": content_type} | self.reward.headers
        timeout = self.reward.timeout
        status, content = self.connections.exchange(server.at, "POST", "/v1/score", timeout, body, headers)
        if status == 200:
            try:
                return wire.scores(content, count)
            except ValueError as error:
                raise BadAnswer(str(error)) from None
        said, code = error_in(content)
        said = said.replace(self.reward.key, "…") if self.reward.key else said
        if status == wire.BUSY:
            raise Busy(f"status {status} {said}".rstrip())
        if code == wire.TRY_LATER:
            raise NoAnswer(f"status {status} {said}".rstrip())
        if status in FINAL and said:
            mend = "set the variable that key_env names" if status in (401, 403) else "correct it, or mend the server"
            raise BadInput(f"a reward server refuses what it is asked ({status})", f"{server.url}: {said}", mend)
        raise BadAnswer(f"status {status} {said}".rstrip())

    def _look(self, server: Server) -> None:
        """Asks a server that has rested whether it is well."""
        try:
            status, content = self.connections.exchange(server.at, "GET", "/health", CONNECT)
            health = json_object(content)
            if status != 200 or health.get("status") != "ok":
                raise BadAnswer(f"its /health is none of a reward server's (status {status})")
        except (NoAnswer, BadAnswer) as error:
            if not self.over.is_set():  # else it is this call that hung up
                self.turns.unwell(server, str(error))
        else:
            self.turns.healthy(server, health.get("reward"))
