"""Several sources as one: each batch is of one of them, in fixed proportions.

Which one it is, and how many batches it gave before, are closed formulas of the turn: with share w and a phase φ the
first source has given ⌊w·turn + φ⌋ batches before a turn, the others share the rest in the same way. Proportions are
thus kept within one batch at any time, not only on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from unipic.data.source import TASKS, Draw, Example, Source, Task, shares
from unipic.errors import BadInput

_PHASES = 2**32


class Mixture:
    """sources: each with its weight. A task's batches come from those that have samples of it."""

    def __init__(self, sources: Sequence[tuple[Source, float]], seed: int = 0) -> None:
        self.sources = [source for source, _ in sources]
        self.shares = shares("source", dict(enumerate(weight for _, weight in sources)), tuple(range(len(sources))))
        self.seed = seed

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(task for task in TASKS if any(task in self.sources[i].tasks for i in self.shares))

    def draw(self, task: Task, turn: int, count: int, resolution: int) -> Draw:
        which, own_turn = self.place(task, turn)
        drawn = self.sources[which].draw(task, own_turn, count, resolution)
        return replace(drawn, keys=tuple((which, key) for key in drawn.keys))

    def load(self, draw: Draw, index: int) -> Example:
        which, key = draw.keys[index]
        source: Source = self.sources[which]
        return source.load(replace(draw, keys=(key,)), 0)

    def place(self, task: Task, turn: int) -> tuple[int, int]:
        """The source of a turn, and how many turns it had before. Raises BadInput for a task that no source has."""
        able = {i: Fraction(share) for i, share in self.shares.items() if task in self.sources[i].tasks}
        if not able:
            raise BadInput(f"no source has samples to {task}", "mixture of data", "add one, or leave the task out")
        phases = np.random.default_rng([self.seed, TASKS.index(task)]).integers(_PHASES, size=len(able))
        rest = sum(able.values(), Fraction())
        for (which, share), phase in zip(able.items(), phases, strict=True):
            before, after = (math.floor(share / rest * t + Fraction(int(phase), _PHASES)) for t in (turn, turn + 1))
            if after > before:
                return which, before
            turn, rest = turn - before, rest - share
        raise AssertionError("the last source takes all that the others leave")
