"""What bounds the calls of a judge: their pace, how long it may be away; and the count of what they cost."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from unipic.errors import TryLater
from unipic.rewards.judge_reply import Usage

POLL = 0.01  # seconds


class Turns:
    """So many at a time, over all threads, each of which has an event loop of its own."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it. Not for more tasks of one loop than there are turns: each of them polls."""
        while not self._free.acquire(blocking=False):  # a loop cannot be woken by another thread's release
            await asyncio.sleep(POLL)
        try:
            yield
        finally:
            self._free.release()


class Pace:
    """So many calls a minute, evenly spread; None is as many as come. For any number of threads."""

    def __init__(self, per_minute: float | None) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    async def turn(self) -> None:
        """Wait for the next call's moment."""
        with self._lock:
            now = time.monotonic()
            moment = max(now, self._next)
            self._next = moment + self.interval
        await asyncio.sleep(moment - now)


class Outage:
    """Since when nothing has come from a judge but failures to reach it. patience: seconds of that which are borne."""

    def __init__(self, patience: float, where: str) -> None:
        self.patience, self.where = patience, where
        self._since, self._answered, self._why = math.inf, -math.inf, ""
        self._lock = threading.Lock()

    def answered(self) -> None:
        """It is there, whatever it said."""
        with self._lock:
            self._since, self._answered = math.inf, time.monotonic()

    def failed(self, begun: float, why: str) -> None:
        """A call that began then did not reach it. Raises TryLater once patience ends."""
        with self._lock:
            if begun >= self._answered:  # an older call says nothing of the time after the last answer
                self._since, self._why = min(self._since, begun), why
        self.check()

    def check(self) -> None:
        """Raises TryLater once patience ends."""
        with self._lock:
            away, why = time.monotonic() - self._since, self._why
        if away >= self.patience:
            what = f"the judge has been away for {away:.0f} seconds"
            raise TryLater(what, f"{self.where}: {why}", "run the same command again when it is back")


class Meter:
    """Counts, since a reward was opened. prices: of a million prompt tokens and of a million completion tokens.

    calls: requests sent. failed: those that brought no verdict. cached: verdicts that needed no call. cost: what the
    replies admit to; a call that was cut off may be charged for as well.
    """

    def __init__(self, prices: tuple[float, float] | None) -> None:
        self.prices = prices
        self.counts: Counter[str] = Counter()
        self.cost = 0.0
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def used(self, usage: Usage) -> float:
        """Count a call's tokens; returns what they cost, 0 where that is unknown."""
        cost = 0.0
        if self.prices:
            cost = (usage.prompt * self.prices[0] + usage.completion * self.prices[1]) / 1e6
        with self._lock:
            self.counts["prompt_tokens"] += usage.prompt
            self.counts["completion_tokens"] += usage.completion
            self.cost += cost
        return cost

    def told(self) -> dict[str, float]:
        """What has been added since this was last asked; always the same names."""
        with self._lock:
            names = ("calls", "failed", "cached", "prompt_tokens", "completion_tokens")
            now = {name: float(self.counts[name]) for name in names} | ({"cost": self.cost} if self.prices else {})
            before, self._told = self._told, now
        return {name: value - before.get(name, 0.0) for name, value in now.items()}
