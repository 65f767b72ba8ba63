"""Examples from a plain folder of pictures and its `metadata.jsonl` (see `metadata`).

An epoch of a task shows every sample: those of a bucket are permuted and cut into batches, the last of them filled up
from the start of the same permutation; then the batches of all buckets are shuffled. Both orders are functions of
(seed, task, epoch), so that a turn's batch is found by arithmetic. Another batch size begins other epochs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unipic import pictures
from unipic.data import buckets, metadata
from unipic.data.metadata import Sample
from unipic.data.source import TASKS, Draw, Example, Task
from unipic.errors import BadInput
from unipic.types import check_whole


class FolderSource:
    """multiple: of pixels, what the sides of pictures are cut to. Raises BadInput for a folder with broken samples.

    Headers are read here; a picture that turns out broken later is a BadInput of `load`.
    """

    def __init__(self, path: str | Path, seed: int = 0, *, multiple: int = buckets.MULTIPLE) -> None:
        check_whole("seed", seed, 0, 2**32 - 1)
        check_whole("multiple of pixels", multiple, 1, 1024)
        self.path, self.seed, self.multiple = Path(path), seed, multiple
        self.samples, problems = metadata.read(self.path)
        if problems:
            others = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            where = f"{self.path / metadata.NAME}{others}"
            raise BadInput(str(problems[0]), where, f"run `unipic data check {self.path}`")
        found: dict[Task, dict[tuple[str, int], list[int]]] = {}
        for i, sample in enumerate(self.samples):
            found.setdefault(sample.task, {}).setdefault(sample.bucket, []).append(i)
        self._buckets = {task: sorted(by_bucket.items()) for task, by_bucket in found.items()}

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(task for task in TASKS if task in self._buckets)

    def epoch_length(self, task: Task, count: int) -> int:
        """Batches of `count` in which every sample of the task is shown."""
        return sum(-(-len(members) // count) for _, members in self._buckets[task])

    def draw(self, task: Task, turn: int, count: int, resolution: int) -> Draw:
        """keys: indices of `samples`."""
        check_whole("turn", turn, 0, 2**53)
        check_whole("batch size", count, 1, 2**16)
        if task not in self._buckets:
            raise BadInput(f"the folder has no samples to {task}", str(self.path), "add some, or leave the task out")
        epoch, place = divmod(turn, self.epoch_length(task, count))
        about = (self.seed, TASKS.index(task), epoch)
        shuffled = _permutation((*about, 0), self.epoch_length(task, count))
        number, batch = self._place(task, int(shuffled[place]), count)
        (aspect, _), members = self._buckets[task][number]
        order = _permutation((*about, 1 + number), len(members))
        keys = tuple(members[order[i % len(members)]] for i in range(batch * count, (batch + 1) * count))
        return Draw(task, buckets.size_for(aspect, resolution, self.multiple), keys)

    def _place(self, task: Task, batch: int, count: int) -> tuple[int, int]:
        """The bucket of an epoch's batch, and which of the bucket's batches it is."""
        for number, (_, members) in enumerate(self._buckets[task]):
            batches = -(-len(members) // count)
            if batch < batches:
                return number, batch
            batch -= batches
        raise IndexError(f"the epoch has no batch {batch}")

    def load(self, draw: Draw, index: int) -> Example:
        """A sample's pictures, each cut to the batch's size around its middle."""
        sample: Sample = self.samples[draw.keys[index]]
        picture, *references = (
            buckets.fit(pictures.load(metadata.inside(self.path, name)), draw.size) for name in sample.pictures
        )
        return Example(sample.id, sample.task, sample.text, picture, tuple(references), sample.geneval, lasting=True)


@lru_cache(maxsize=64)  # the same few serve a whole epoch
def _permutation(about: tuple[int, ...], length: int) -> NDArray[np.int64]:
    return np.random.default_rng(about).permutation(length)
