"""What a benchmark asks."""

from __future__ import annotations

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
