"""Connected regions of a picture, in numpy: what is ground, which pieces are left, and what lies near them."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels"""


T = TypeVar("T", bound=np.generic)


def framed(field: NDArray[T], width: int) -> NDArray[T]:
    """The field, its last two axes with zeros around them. (numpy's own `pad` takes ten times as long.)"""
    *many, height, length = field.shape
    wide = np.zeros((*many, height + 2 * width, length + 2 * width), field.dtype)
    wide[..., width : width + height, width : width + length] = field
    return wide


def _label(field: NDArray[np.bool_], reach: int) -> list[list[tuple[int, int, int]]]:
    """Connected pieces as lists of (row, start, end). reach: 1 joins diagonal neighbours, 0 does not."""
    edges = np.diff(framed(field, 1)[1:-1].astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    spans = list(zip(rows.tolist(), starts.tolist(), np.nonzero(edges == -1)[1].tolist(), strict=True))
    parent = list(range(len(spans)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above = 0  # the first span that may touch the present one
    for i, (y, start, end) in enumerate(spans):
        while spans[above][0] < y - 1 or (spans[above][0] == y - 1 and spans[above][2] + reach <= start):
            above += 1
        other = above
        while spans[other][0] == y - 1 and spans[other][1] < end + reach:
            parent[root(other)] = root(i)
            other += 1
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for i, span in enumerate(spans):
        groups.setdefault(root(i), []).append(span)
    return list(groups.values())


def strongest_near(field: Array, steps: tuple[int, ...]) -> Array:
    """The maximum within as many pixels as the steps' sum, in a square; each step is at most what went before + 1.

    The last two axes are the picture's; beyond it all is zero.
    """
    for _ in (0, 1):  # rows, then columns
        for step in steps:
            wide = framed(field, step)[..., step:-step]
            field = np.maximum(np.maximum(wide[..., : -2 * step, :], wide[..., 2 * step :, :]), field)
        field = field.swapaxes(-1, -2)
    return field


def pooled(field: Array, side: int) -> Array:
    """Means over all squares of this many pixels that touch the field, which is in the last two axes."""
    sums = framed(field, side).cumsum(-2).cumsum(-1)
    rows = sums[..., side:, :] - sums[..., :-side, :]
    return np.asarray((rows[..., side:] - rows[..., :-side]) / side**2, np.float32)


def outside(ground: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Ground that is connected with the picture's edge; holes within objects are not."""
    padded = ~framed(~ground, 1)
    reached = np.zeros_like(padded)
    first = next(group for group in _label(padded, 0) if group[0][:2] == (0, 0))
    for y, start, end in first:
        reached[y, start:end] = True
    return reached[1:-1, 1:-1]


def pieces(inside: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], Box]]:
    """Connected pieces, holes filled, each with its box."""
    found = []
    for group in _label(inside, 1):
        top, bottom = group[0][0], group[-1][0] + 1
        left, right = min(s for _, s, _ in group), max(e for _, _, e in group)
        piece = np.zeros((bottom - top, right - left), bool)
        for y, start, end in group:
            piece[y - top, start - left : end - left] = True
        found.append((piece, (left, top, right, bottom)))
    return found


def grown(field: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One pixel further in all eight directions."""
    p = framed(field, 1)
    rows = p[:-2] | p[1:-1] | p[2:]
    grown: NDArray[np.bool_] = rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
    return grown
