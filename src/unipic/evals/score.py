"""Scoring a run from its files, and how sure a score is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from unipic import pictures
from unipic.errors import UnipicError
from unipic.evals.generate import picture_path
from unipic.evals.items import Item
from unipic.evals.ledger import Ledger

Z = 1.959963984540054  # of 95 %


def result_of(item: Item, ledger: Ledger) -> Image | str:
    """Its picture or its answer. Raises UnipicError if it has none: that counts as nothing, not as wrong."""
    if item.id not in ledger.records:
        raise UnipicError("an item has no result", f"{ledger.path}: {item.id}", "run the same command again")
    if item.task == "describe":
        return str(ledger.records[item.id]["answer"])
    return pictures.load(picture_path(item, ledger))


@dataclass(frozen=True)
class Estimate:
    """A mean score with its 95 % interval. count: items that it is the mean of."""

    value: float
    low: float
    high: float
    count: int


def estimate(groups: Sequence[Sequence[float]], scale: float = 1.0) -> Estimate | None:
    """Unweighted mean over groups of their mean scores, each 0 to 1, times `scale`; None without any score.

    The interval is Wilson's. It is exact in form for right or wrong alone; scores between vary less about the same
    mean, and so do means of groups that differ: there it is, if anything, too wide.
    """
    means = [sum(scores) / len(scores) for scores in groups if scores]
    count = sum(map(len, groups))
    if not count:
        return None
    value = sum(means) / len(means)
    low, high = wilson(value, count)
    return Estimate(scale * value, scale * low, scale * high, count)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count`: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n)."""
    square = Z * Z / count
    middle, spread = share + square / 2, Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = max(0.0, (middle - spread) / (1 + square)), min(1.0, (middle + spread) / (1 + square))
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)  # rounding misses both by 1e-17
