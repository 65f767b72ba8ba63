"""What a source of training examples is. `draw` says cheaply which samples make a batch; `load` makes one of them.

Both are pure, so that a run resumes by counting, and batches depend neither on workers nor on the number of processes.
A batch is of one task and one size, and its examples have equally many references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from PIL.Image import Image

from unipic.errors import BadInput
from unipic.types import check_number

Task = Literal["generate", "edit"]
TASKS: tuple[Task, ...] = ("generate", "edit")
Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Example:
    """picture: what is to be drawn. references: what is edited. All are RGB, of the batch's size.

    text: the prompt or the instruction. spec: what it asks for, where that is known exactly (the world's `Prompt`,
    `Dense`, `Scene` or `Edit`, or a line of GenEval's metadata). scenes: what the references and the picture show, in
    that order, where that is known exactly. lasting: it comes again, so that what frozen models
    make of it may be kept.
    """

    id: str
    task: Task
    text: str
    picture: Image = field(repr=False)
    references: tuple[Image, ...] = field(default=(), repr=False)
    spec: Any = field(default=None, repr=False)
    scenes: tuple[Any, ...] = field(default=(), repr=False)
    lasting: bool = False


@dataclass(frozen=True)
class Draw:
    """A batch, before it is loaded. keys: one for each sample; only the source that drew them can read them."""

    task: Task
    size: Size
    keys: tuple[Any, ...]


class Source(Protocol):
    """tasks: those that it has samples of."""

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    def draw(self, task: Task, turn: int, count: int, resolution: int) -> Draw:
        """The batch that comes after `turn` batches of this task.

        count: samples in it. resolution: side in pixels of a square as large as the largest picture. Raises BadInput
        for a task that the source has nothing for.
        """
        ...

    def load(self, draw: Draw, index: int) -> Example:
        """One sample of a batch; may run in another process. Raises BadInput for a file that cannot be read."""
        ...


def shares(name: str, weights: Mapping[Any, float], known: tuple[Any, ...]) -> dict[Any, float]:
    """Weights as shares that sum to one, in the order of `known`; those of weight zero are left out."""
    for key, weight in weights.items():
        if key not in known:
            raise BadInput(f"there is no {name} {key}", f"weights of the {name}s", f"give some of {known}")
        check_number(f"weight of {name} {key}", weight, 0, 1e9)
    whole = sum(weights.values())
    if not whole:
        raise BadInput(f"no {name} has any weight", f"got {dict(weights)}", "give a weight above zero")
    return {key: weights[key] / whole for key in known if weights.get(key)}
