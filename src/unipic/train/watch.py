"""The alarm of a run whose trained reward rises while what it stands for falls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

WINDOW = 10  # steps, at the start of a run and at its end, that are compared
FALL = 0.2  # of the held-out reward's first mean, from which a fall counts
SURE = 4.0  # standard errors, beyond which a change is none by chance, however often one looks


class Watch:
    """The two rewards of every step so far."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.held_out: list[float] = []

    def add(self, trained: float, held_out: float) -> bool:
        """Of one more step; whether it is time for an alarm."""
        self.trained.append(trained)
        self.held_out.append(held_out)
        if len(self.trained) < 2 * WINDOW:
            return False
        rise, sure_rise = _change(self.trained)
        fall, sure_fall = _change(self.held_out)
        first = abs(statistics.fmean(self.held_out[:WINDOW]))
        return rise > sure_rise and -fall > max(sure_fall, FALL * first)


def _change(values: Sequence[float]) -> tuple[float, float]:
    """From the first window's mean to the last one's, and how much of that may be chance."""
    first, last = values[:WINDOW], values[-WINDOW:]
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / WINDOW)
    return statistics.fmean(last) - statistics.fmean(first), SURE * error
