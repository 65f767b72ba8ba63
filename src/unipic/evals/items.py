"""What a benchmark asks, and what it says of a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL.Image import Image

Size = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked for.

    task: to generate a picture from `text`, to edit `picture` as `text` says, or to describe it: answer `text`.
    part, group: where in the benchmark its score counts. novelty: of the world, "ordinary" elsewhere.
    size: width and height in pixels of what is drawn or seen. seed: of the noise. spec: what its judge has to know.
    """

    id: str
    task: Literal["generate", "edit", "describe"]
    part: str
    group: str
    novelty: str
    text: str
    size: Size
    seed: int
    spec: Any = field(repr=False)
    picture: Image | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Verdict:
    """score: 0 to 1. right: whether nothing is wrong. marks: what the score was made of, 0 to 10."""

    score: float
    right: bool
    reasons: tuple[str, ...] = ()
    marks: Mapping[str, float] = field(default_factory=dict)
