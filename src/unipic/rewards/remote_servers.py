"""Which reward server a request goes to: the one that is well and has the least to do.

A server that fails rests, a little longer each time; then its /health is asked, and one request tries it before the
others follow. One that has no room is well: it is sent a request now and then, until it answers one. Servers that score
differently are refused.
"""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

from unipic.errors import BadInput, TryLater
from unipic.rewards.remote_calls import Busy, NoAnswer

FIRST_REST, LONGEST_REST = 0.25, 5.0  # seconds
FIRST_WAIT, LONGEST_WAIT = 0.1, 2.0  # seconds between requests to a server that has no room
POLL = 0.05  # seconds between looks at servers that rest and at requests that take too long
URL = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


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


@dataclass(eq=False)
class Server:
    """ready: it may be asked. failures: in a row, of requests or of /health. why: the last of them.

    waits: in a row, since it had no room; the present one ends at waits_until. scores_with: what it says that its
    reward is, once it has.
    """

    url: str
    at: SplitResult
    ready: bool = False
    failures: int = 0
    rests_until: float = 0.0
    waits: int = 0
    waits_until: float = 0.0
    why: str = "it was not asked yet"
    scores_with: str | None = None

    @property
    def well(self) -> bool:
        return self.ready and not self.failures and not self.waits

    def failed(self, why: str) -> None:
        self.ready, self.why = False, why
        self.rests_until = time.monotonic() + min(FIRST_REST * 2**self.failures, LONGEST_REST)
        self.failures = min(self.failures + 1, 30)

    def full(self, why: str) -> None:
        """It had no room for a request. Those that were under way together begin one wait."""
        self.failures, self.why = 0, why
        if not self.waits:
            self.wait()

    def wait(self) -> None:
        """Longer each time, and not as long as others that it had no room for."""
        longest = min(FIRST_WAIT * 2**self.waits, LONGEST_WAIT)
        self.waits_until = time.monotonic() + longest * random.uniform(0.5, 1)
        self.waits = min(self.waits + 1, 30)

    def answered(self) -> None:
        self.ready, self.failures, self.waits, self.waits_until = True, 0, 0, 0.0


class Turns:
    """Of the requests of one call; what came of each is told here. answers: good ones.

    most: requests at a time. patience: seconds without any server that is well and has room. over: is set by `end`.
    """

    def __init__(self, servers: Sequence[Server], most: int, patience: float, over: threading.Event) -> None:
        self.servers, self.most, self.patience, self.over = servers, most, patience, over
        self.changed = threading.Condition()  # servers, or one of the next three
        self.sent = dict.fromkeys(servers, 0)  # requests under way
        self.answers = 0
        self.none_well_since: float | None = None
        self.numbers = itertools.count()
        self._note()

    # --- requests -----------------------------------------------------------------------------------------------------

    def take(self) -> Server:
        """The server that has the least to do, once there is one. Raises TryLater when there was none for too long."""
        with self.changed:
            while not self.over.is_set():
                full = sum(self.sent.values()) >= self.most
                if not full and (server := self._free()):
                    self.sent[server] += 1
                    if server.waits:  # only this one goes: a body that is refused was sent in vain
                        server.wait()
                    return server
                self._give_up()
                self.changed.wait(None if full else POLL)  # an end is told to one that waits
        raise NoAnswer("the call is over")

    def _free(self) -> Server | None:
        """None before each has said what its reward is, or is away. What failed is first tried by one request alone."""
        if not all(s.ready or s.failures for s in self.servers):
            return None
        now = time.monotonic()
        free = [s for s in self.servers if s.ready and now >= s.waits_until and not (s.failures and self.sent[s])]
        if not free:
            return None
        turn = next(self.numbers)
        return min(free, key=lambda s: (self.sent[s], (self.servers.index(s) - turn) % len(self.servers)))

    def ended(self, server: Server, failure: Exception | None) -> None:
        with self.changed:
            self.sent[server] -= 1
            if failure is None:
                server.answered()
                self.answers += 1
            elif server.ready and not self.over.is_set():  # of requests that were under way together, the first tells
                if isinstance(failure, Busy):
                    server.full(str(failure))
                else:
                    server.failed(str(failure))
            self._note()
            self.changed.notify()

    def end(self) -> None:
        """Nobody waits any more."""
        with self.changed:
            self.over.set()
            self.changed.notify_all()

    def _give_up(self) -> None:
        """Raises TryLater when patience is over, and nothing is under way that may still end it."""
        since, all_failed = self.none_well_since, all(server.failures or server.waits for server in self.servers)
        if since is None or not all_failed or any(self.sent.values()):
            return
        if time.monotonic() - since > self.patience:
            what = f"no reward server has been well for {self.patience:g} seconds"
            where = "; ".join(f"{server.url}: {server.why}" for server in self.servers)
            raise TryLater(what, where, "see to the servers, then run the same command again")

    # --- servers that rest --------------------------------------------------------------------------------------------

    def rested(self) -> list[Server]:
        """Those whose /health is to be asked."""
        return [server for server in self.servers if not server.ready and time.monotonic() >= server.rests_until]

    def unwell(self, server: Server, why: str) -> None:
        with self.changed:
            server.failed(why)

    def healthy(self, server: Server, scores_with: Any) -> None:
        """scores_with: what it says that its reward is. Raises BadInput where another says otherwise."""
        with self.changed:
            if isinstance(scores_with, str):
                self._check_alike(server, scores_with)
            server.ready = True
            self._note()
            self.changed.notify_all()

    def _check_alike(self, server: Server, scores_with: str) -> None:
        """Scores of different rewards are not to be mixed."""
        for other in self.servers:
            if other.scores_with not in (None, scores_with):
                where = f"{other.url}: {other.scores_with}; {server.url}: {scores_with}"
                what = "servers of one reward have different ones, or other settings"
                raise BadInput(what, where, "start them alike")
        server.scores_with = scores_with

    def _note(self) -> None:
        if any(server.well for server in self.servers):
            self.none_well_since = None
        elif self.none_well_since is None:
            self.none_well_since = time.monotonic()
