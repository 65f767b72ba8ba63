"""The axis of a chart: values to pixels, linear or logarithmic, and round numbers to mark on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from unipic.report.texts import plain_exponent

LARGEST = 1e300  # beyond it, sums and margins would overflow
_CONSTANT = 1e-12  # a spread below this share of the values is rounding
_PADDING = 0.04  # of the spread, left free at either end


@dataclass(frozen=True)
class Axis:
    """low, high: what its ends stand for (on a logarithmic axis, exponents of ten). start, end: their pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        return self._at(math.log10(value) if self.log else value)

    def _at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Pixels and labels of about `count` round numbers."""
        low, high = self.low, self.high
        marks = _log_marks(low, high, count) if self.log else round_numbers(low, high, count)
        if self.log:
            return [(self._at(float(mark.log10())), label(mark, plain=-4 < mark.adjusted() < 6)) for mark in marks]
        plain = -5 < max((mark.adjusted() for mark in marks if mark), default=0) < 7  # all alike
        return [(self._at(float(mark)), label(mark, plain=plain)) for mark in marks]


def axis_of(values: Sequence[float], start: float, end: float, *, log: bool = False, pad: bool = False) -> Axis:
    """The axis that holds all values, with some room at its ends if `pad`; never of no length."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    if high - low <= _CONSTANT * max(abs(low), abs(high)):
        room = 0.5 if log else abs(low) * 0.1 or 1.0
        return Axis(low - room, high + room, start, end, log)
    room = (high - low) * _PADDING if pad else 0.0
    floor = 0.0 if low >= 0 and not log else -math.inf  # what is never negative gets no negative axis
    return Axis(max(floor, low - room), high + room, start, end, log)


def round_numbers(low: float, high: float, count: int) -> list[Decimal]:
    """About `count` numbers from low to high, 1, 2 or 5 times a power of ten apart. Decimal keeps them exact."""
    least, most = Decimal(repr(low)), Decimal(repr(high))  # 0.1 is meant, not its binary neighbour
    rough = (most - least) / count * Decimal("0.7")  # the next round step is wider, by half of itself on average
    power = Decimal(1).scaleb(rough.adjusted())
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
    first = (least / step).to_integral_value(ROUND_CEILING)
    marks = (step * (first + i) for i in range(2 * count + 2))
    return [mark for mark in marks if mark <= most]


def _log_marks(low: float, high: float, count: int) -> list[Decimal]:
    """Powers of ten; with their doubles and fives if there are few; round numbers within one power."""
    decades = high - low
    if decades < 1:
        marks = round_numbers(10**low, 10**high, count)
    else:
        factors = (1, 2, 5) if decades < 2.5 else (1,)
        every = math.ceil(decades / count) if decades >= 2.5 else 1
        powers = [e for e in range(math.floor(low), math.ceil(high) + 1) if e % every == 0]
        marks = [times * Decimal(10) ** power for power in powers for times in factors]
    return [mark for mark in marks if mark > 0 and low <= float(mark.log10()) <= high]


def label(mark: Decimal, *, plain: bool) -> str:
    """A mark, exactly: 0.05 and 20,000 if plain, else 5e-2 and 2e4."""
    mark = mark.normalize()
    return f"{mark:,f}" if plain or not mark else plain_exponent(f"{mark:e}")
