"""Any reward behind HTTP, on one machine or several: the client of `unipic serve-reward` (see `wire` for the protocol).

Samples go out in small requests, many at a time, each to the server that has the fewest. A server that fails rests, a
little longer each time; then its /health is asked, and one request tries it before the others follow. What it did not
answer is sent again, to whichever server is well. A reply that is not exactly as wanted counts as a failure.

Over the standard library's HTTP client, in threads: sending a picture takes it a third of the CPU that others take, and
nothing is read from the environment, no redirect is followed.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator

from unipic.config import Strict
from unipic.errors import BadInput, TryLater
from unipic.rewards import specs, wire
from unipic.rewards.reward import Sample

CONNECT = 5.0  # seconds; /health, too, has no longer
FIRST_REST, LONGEST_REST = 0.25, 5.0  # seconds
POLL = 0.05  # seconds between looks at servers that rest and at requests that take too long
TRIES = 4  # bad replies to a request, while others are answered well, after which its scores are missing
FINAL = (400, 401, 403, 413, 422)  # statuses with which a server refuses a request for good
URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


@dataclass(eq=False)
class _Server:
    """ready: it may be asked. failures: in a row, of requests or of /health. why: the last of them."""

    url: str
    at: SplitResult
    ready: bool = False
    failures: int = 0
    rests_until: float = 0.0
    why: str = "it was not asked yet"

    @property
    def well(self) -> bool:
        return self.ready and not self.failures

    def failed(self, why: str) -> None:
        self.ready, self.why = False, why
        self.rests_until = time.monotonic() + min(FIRST_REST * 2**self.failures, LONGEST_REST)
        self.failures = min(self.failures + 1, 30)

    def answered(self) -> None:
        self.ready, self.failures = True, 0


class _NoAnswer(Exception):
    """The server could not be reached, or did not answer in time."""


class _BadAnswer(Exception):
    """What came is not a reply."""


class RemoteReward:
    """urls: servers of the same reward, http(s)://HOST:PORT. key: that they want. timeout: seconds for a request.

    patience: seconds without any server that is well, after which TryLater is raised. concurrency: requests at a time.
    batch: samples in a request at most; fewer where there are not enough of them for all that may go at a time.
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
        self.servers = [_Server(url.rstrip("/"), urlsplit(url.rstrip("/"))) for url in urls]
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.timeout, self.patience, self.concurrency, self.batch = timeout, patience, concurrency, batch
        self.scores_with: tuple[str, str] | None = None  # a server, and what it says that its reward is
        self.ssl = ssl.create_default_context()

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """None where the server says so, or where TRIES replies were bad. Raises TryLater when no server is well.

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


def fault_of(urls: Sequence[str]) -> str:
    """What is wrong with the addresses of servers; empty if nothing is."""
    for url in urls:
        try:
            named = URL.fullmatch(url) and urlsplit(url).hostname and urlsplit(url).port != 0
        except ValueError:  # of the port, or of brackets
            named = None
        if not named:
            return f"{url} is no address of a reward server"
    if not urls:
        return "no reward server is named"
    return "" if len({url.rstrip("/") for url in urls}) == len(urls) else "a reward server is named twice"


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
        key = os.environ.get(self.key_env) if self.key_env else None
        if self.key_env and not key:
            raise BadInput("the key of the reward servers is not set", f"key_env: {self.key_env}", "export it")
        return RemoteReward(self.urls, key, self.timeout, self.patience, self.concurrency, self.batch)


class _Call:
    """One call of `score`: its requests, a thread each, and what they share. The caller's thread watches over them."""

    def __init__(self, reward: RemoteReward) -> None:
        self.reward, self.servers = reward, reward.servers
        self.lock = threading.Lock()  # over servers and the next three
        self.sent = dict.fromkeys(self.servers, 0)  # requests under way
        self.answers = 0
        self.none_well_since: float | None = None
        self.turns = itertools.count()
        self.over = threading.Event()
        self.connections: dict[tuple[int, _Server], HTTPConnection] = {}  # of each thread
        self.sockets: dict[socket.socket, float] = {}  # that wait for an answer, until when
        self._note()

    def score(self, portions: Sequence[Sequence[Sample]]) -> list[float | None]:
        try:
            return self._watched(portions)
        finally:
            for connection in self.connections.values():
                connection.close()

    def _watched(self, portions: Sequence[Sequence[Sample]]) -> list[float | None]:
        count = min(self.reward.concurrency, len(portions))
        with ThreadPoolExecutor(count) as pool, ThreadPoolExecutor(len(self.servers)) as looking:
            looks: dict[_Server, Any] = {}
            requests = [pool.submit(self._scores, portion) for portion in portions]
            try:
                while True:
                    for server in self.servers:
                        if server in looks and looks[server].done():
                            looks.pop(server).result()
                        if not server.ready and server not in looks and time.monotonic() >= server.rests_until:
                            looks[server] = looking.submit(self._look, server)
                    done, waiting = wait(requests, POLL, FIRST_EXCEPTION)
                    for request in done:
                        request.result()  # raises what ended it
                    if not waiting:
                        return [score for request in requests for score in request.result()]
                    self._hang_up(time.monotonic())
            finally:
                self.over.set()
                pool.shutdown(wait=False, cancel_futures=True)
                self._hang_up(float("inf"))

    def _hang_up(self, now: float) -> None:
        """On those that should have answered before now: a socket's own timeout begins anew with every byte."""
        for connected, until in list(self.sockets.items()):
            if until < now:
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)

    def _scores(self, samples: Sequence[Sample]) -> list[float | None]:
        """Of one request, sent until it is answered."""
        content_type, body = wire.request(samples)
        bad = 0
        while True:
            server = self._free()
            failure: _NoAnswer | _BadAnswer | None = None
            try:
                return self._ask(server, content_type, body, len(samples))
            except (_NoAnswer, _BadAnswer) as error:
                failure = error
            finally:
                self._ended(server, failure)
            bad += isinstance(failure, _BadAnswer)
            if bad >= TRIES and self.answers:
                return [None] if len(samples) == 1 else [self._scores([sample])[0] for sample in samples]

    def _free(self) -> _Server:
        """The server that has the least to do, once there is one. One that failed is first tried by a request alone."""
        while not self.over.is_set():
            with self.lock:
                if free := [s for s in self.servers if s.ready and not (s.failures and self.sent[s])]:
                    turn, all_ = next(self.turns), self.servers
                    chosen = min(free, key=lambda s: (self.sent[s], (all_.index(s) - turn) % len(all_)))
                    self.sent[chosen] += 1
                    return chosen
                self._give_up()
            self.over.wait(POLL)
        raise _NoAnswer("the call is over")

    def _ended(self, server: _Server, failure: Exception | None) -> None:
        with self.lock:
            self.sent[server] -= 1
            if failure is None:
                server.answered()
                self.answers += 1
            elif server.ready and not self.over.is_set():  # of requests that were under way together, the first tells
                server.failed(str(failure))
            self._note()

    def _note(self) -> None:
        if any(server.well for server in self.servers):
            self.none_well_since = None
        elif self.none_well_since is None:
            self.none_well_since = time.monotonic()

    def _give_up(self) -> None:
        """Raises TryLater when patience is over, and nothing is under way that may still end it."""
        since, all_failed = self.none_well_since, all(server.failures for server in self.servers)
        if since is None or not all_failed or any(self.sent.values()):
            return
        if time.monotonic() - since > self.reward.patience:
            what = f"no reward server has been well for {self.reward.patience:g} seconds"
            where = "; ".join(f"{server.url}: {server.why}" for server in self.servers)
            raise TryLater(what, where, "see to the servers, then run the same command again")

    # --- one server ---------------------------------------------------------------------------------------------------

    def _ask(self, server: _Server, content_type: str, body: bytes, count: int) -> list[float | None]:
        """Raises BadInput where it refuses the request for good."""
        headers = {"Content-Type": content_type} | self.reward.headers
        status, content = self._http(server, "POST", "/v1/score", self.reward.timeout, body, headers)
        if status == 200:
            try:
                return wire.scores(content, count)
            except ValueError as error:
                raise _BadAnswer(str(error)) from None
        said = _message(content)
        if status in FINAL and said:
            mend = "set the variable that key_env names" if status in (401, 403) else "correct it, or mend the server"
            raise BadInput(f"a reward server refuses what it is asked ({status})", f"{server.url}: {said}", mend)
        raise _BadAnswer(f"status {status} {said}".rstrip())

    def _look(self, server: _Server) -> None:
        """Asks a server that has rested whether it is well."""
        try:
            status, content = self._http(server, "GET", "/health", CONNECT)
            health = _object(content)
            if status != 200 or health.get("status") != "ok":
                raise _BadAnswer(f"its /health is none of a reward server's (status {status})")
        except (_NoAnswer, _BadAnswer) as error:
            with self.lock:
                server.failed(str(error))
        else:
            with self.lock:
                self._check_alike(server, health.get("reward"))
                server.ready = True
                self._note()

    def _check_alike(self, server: _Server, scores_with: Any) -> None:
        """Scores of different rewards are not to be mixed. Raises BadInput."""
        if not isinstance(scores_with, str):
            return
        first, known = self.reward.scores_with or (server.url, scores_with)
        if known != scores_with:
            where = f"{first}: {known}; {server.url}: {scores_with}"
            raise BadInput("servers of one reward have different ones, or other settings", where, "start them alike")
        self.reward.scores_with = (first, known)

    def _http(
        self,
        server: _Server,
        method: str,
        path: str,
        timeout: float,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of an answer, which comes whole within the time, or not at all."""
        until = time.monotonic() + timeout
        kept = threading.get_ident(), server
        old = self.connections.get(kept)
        while True:
            connection = self.connections[kept] = old or self._connection(server)
            try:
                return self._exchange(connection, method, server.at.path + path, until, body, headers or {})
            except (OSError, HTTPException, ValueError, AttributeError) as error:  # the last two: closed meanwhile
                connection.close()
                late = time.monotonic() >= until or isinstance(error, TimeoutError)
                if old is None or late or self.over.is_set():
                    why = f"no answer within {timeout:g} seconds" if late else str(error) or type(error).__name__
                    raise _NoAnswer(why) from None
                old = None  # it may have been closed for having been idle
            except _BadAnswer:
                connection.close()
                raise

    def _exchange(
        self, connection: HTTPConnection, method: str, path: str, until: float, body: bytes | None, headers: Any
    ) -> tuple[int, bytes]:
        if connection.sock is None:
            connection.connect()
        connected: socket.socket = connection.sock
        connected.settimeout(max(until - time.monotonic(), POLL))
        self.sockets[connected] = until
        try:
            if self.over.is_set():
                raise OSError("the call is over")
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read(wire.MOST_REPLY + 1)
        finally:
            del self.sockets[connected]
        if len(content) > wire.MOST_REPLY:
            raise _BadAnswer("its answer is too long")
        return answer.status, content

    def _connection(self, server: _Server) -> HTTPConnection:
        host, port = server.at.hostname or "", server.at.port
        if server.at.scheme == "https":
            return HTTPSConnection(host, port, timeout=CONNECT, context=self.reward.ssl)
        return HTTPConnection(host, port, timeout=CONNECT)


def _object(content: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _message(content: bytes) -> str:
    """What an error in our servers' form says."""
    error = _object(content).get("error")
    return str(error["message"]) if isinstance(error, dict) and isinstance(error.get("message"), str) else ""
