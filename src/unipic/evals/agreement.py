"""How far a reward agrees with a judge on the same edits: correlations, order of pairs, calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def pearson(a: ArrayLike, b: ArrayLike) -> float:
    """The linear correlation; NaN of a constant."""
    x, y = (values - values.mean() for values in (np.asarray(a, np.float64), np.asarray(b, np.float64)))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else float("nan")


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """The correlation of ranks; equal values share the mean of theirs."""
    return pearson(ranks(a), ranks(b))


def ranks(values: ArrayLike) -> Floats:
    """From 1; equal values share the mean of their ranks."""
    _, which, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts - 1) / 2)[which]
    return found


def pairs_right(predicted: ArrayLike, judged: ArrayLike, groups: Sequence[object] | None = None) -> float:
    """Share of pairs that the judge tells apart which are predicted in its order; a tie counts half. NaN without any.

    groups: of each, where only pairs within a group count, as in reinforcement.
    """
    p, j = np.asarray(predicted, np.float64), np.asarray(judged, np.float64)
    members: dict[object, list[int]] = {}
    for i in range(len(j)):
        members.setdefault(None if groups is None else groups[i], []).append(i)
    right, count = 0.0, 0
    for group in members.values():
        for place, i in enumerate(group[:-1]):
            others = np.array(group[place + 1 :])
            wanted = np.sign(j[others] - j[i])
            told = wanted != 0
            right += float((1 + wanted * np.sign(p[others] - p[i]))[told].sum() / 2)
            count += int(told.sum())
    return right / count if count else float("nan")


def calibration(predicted: ArrayLike, judged: ArrayLike, bins: int = 10) -> list[tuple[float, float]]:
    """Mean prediction and mean judgement of equally many neighbours, from the least prediction to the greatest."""
    p, j = np.asarray(predicted, np.float64), np.asarray(judged, np.float64)
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)) or 1)
    return [(float(p[part].mean()), float(j[part].mean())) for part in parts if len(part)]


def agreement(predicted: ArrayLike, judged: ArrayLike, groups: Sequence[object]) -> dict[str, float]:
    """All figures of one output. off: the mean size of what is between them, in points."""
    p, j = np.asarray(predicted, np.float64), np.asarray(judged, np.float64)
    known = ~np.isnan(j)
    p, j, own = p[known], j[known], [group for group, there in zip(groups, known, strict=True) if there]
    if not len(p):
        return {}
    figures = {
        "pearson": pearson(p, j),
        "spearman": spearman(p, j),
        "pairs": pairs_right(p, j),
        "pairs_of_a_group": pairs_right(p, j, own),
        "off": float(np.abs(p - j).mean()),
    }
    return {name: value for name, value in figures.items() if not np.isnan(value)}
