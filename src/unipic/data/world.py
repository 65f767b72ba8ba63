"""Examples from the world of shapes, drawn as they are needed: every sample is a fresh scene.

A sample's seed holds (seed, task, turn, place in the batch) in bits of their own, so that no two samples of any run
share one. Equal scenes then come by chance alone, as a plain scene of one object may.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from unipic.data.source import TASKS, Draw, Example, Size, Task, shares
from unipic.errors import BadInput
from unipic.types import check_number, check_whole
from unipic.world import edits, language
from unipic.world import scene as scenes
from unipic.world.edits import OF_SEVERAL, Edit
from unipic.world.language import pick
from unipic.world.plain import plain_edit, plain_scene, plain_source
from unipic.world.render import render
from unipic.world.scene import NOVELTIES, SIZES, SPLITS

TEXTS = {"prompt": 0.5, "dense": 0.35, "caption": 0.15}
COPY = "copy"  # the type of an edit that asks for nothing
COPIES = (
    "Keep the picture as it is",
    "Keep everything as it is",
    "Keep all as it is",
    "Redraw the picture as it is",
    "Draw everything as it is",
)
MOST_LIMITED = 1_000_000
_SEED_BITS, _TURN_BITS, _PLACE_BITS = 32, 45, 16


T = TypeVar("T")


class WorldSource:
    """The world's training (or test) split.

    texts: weights of GenEval's prompts, dense descriptions and captions.
    tags: weights of `language.TAGS`, of which a prompt has one that its scene has something for.
    types, sizes: weights of `edits.TYPES` and of `scene.SIZES`. All these are equal where they are None.
    copy_share: of edits that ask to keep all as it is.
    plain: share of prompts and of edits whose pictures are the plainest of those they leave open (see `world.plain`).
    plain_sources: share of edits whose sources are plain, too.
    max_objects: in a scene or an edit's source, for a curriculum; held-out arrangements of the test split may need
    more.
    limit: draw from this many samples alone, again and again.
    """

    tasks = TASKS

    def __init__(
        self,
        seed: int = 0,
        split: str = "train",
        *,
        texts: Mapping[str, float] = TEXTS,
        tags: Mapping[str, float] | None = None,
        types: Mapping[str, float] | None = None,
        sizes: Mapping[Size, float] | None = None,
        copy_share: float = 0.0,
        plain: float = 0.0,
        plain_sources: float = 0.0,
        max_objects: int | None = None,
        limit: int | None = None,
    ) -> None:
        check_whole("seed", seed, 0, 2**_SEED_BITS - 1)
        if split not in SPLITS:
            raise BadInput(f"there is no split {split}", "split of the world", f"give one of {', '.join(SPLITS)}")
        check_number("share of copies", copy_share, 0, 1)
        check_number("share of plain pictures", plain, 0, 1)
        check_number("share of plain sources", plain_sources, 0, 1)
        if max_objects is not None:
            check_whole("greatest number of objects", max_objects, 1, scenes.MOST_OBJECTS)
        if limit is not None:
            check_whole("limit of samples", limit, 1, MOST_LIMITED)
        self.seed, self.split, self.copy_share = seed, split, copy_share
        self.plain, self.plain_sources = plain, plain_sources
        self.max_objects, self.limit = max_objects, limit
        self.texts = shares("text", texts, tuple(TEXTS))
        types = dict.fromkeys(edits.TYPES, 1.0) if types is None else types
        if max_objects == 1:
            types = {type: weight for type, weight in types.items() if type not in OF_SEVERAL}
        self.types = shares("type of edit", types, edits.TYPES)
        self.tags = {} if tags is None else shares("tag", tags, language.TAGS)
        self.sizes = shares("size", dict.fromkeys(SIZES, 1.0) if sizes is None else sizes, SIZES)

    def draw(self, task: Task, turn: int, count: int, resolution: int) -> Draw:
        """A batch of one size, drawn by weight from those with no more than resolution² pixels."""
        check_whole("turn", turn, 0, 2**_TURN_BITS - 1)
        check_whole("batch size", count, 1, 2**_PLACE_BITS)
        sizes = {size: share for size, share in self.sizes.items() if size[0] * size[1] <= resolution**2}
        if not sizes:
            least = min(self.sizes, key=lambda size: size[0] * size[1])
            where = f"resolution {resolution}, smallest picture {least[0]}x{least[1]}"
            raise BadInput("the world has no picture so small", where, "raise the resolution")
        rng = np.random.default_rng([self.seed, TASKS.index(task), turn])
        if self.limit is None:
            size = chosen(rng, sizes)
            return Draw(task, size, tuple(self._scene_seed(task, turn, place) for place in range(count)))
        # Sample i of the limited ones is always of the same size; a batch repeats some where there are too few.
        several = list(sizes)[: self.limit]
        size = chosen(rng, {size: sizes[size] for size in several})
        members = rng.permutation(range(several.index(size), self.limit, len(several)))
        return Draw(task, size, tuple(self._scene_seed(task, int(i), 0) for i in np.resize(members, count)))

    def load(self, draw: Draw, index: int) -> Example:
        """One fresh scene or edit, with what verifies it as its `spec` (of a caption: the scene)."""
        seed, size = draw.keys[index], draw.size
        rng = np.random.default_rng([SPLITS.index(self.split), seed, len(TASKS)])
        id, lasting = f"{self.split}-{size[0]}x{size[1]}-{seed:x}", self.limit is not None
        if draw.task == "edit":
            edit = self._edit(seed, size, rng)
            if rng.random() < self.plain:
                edit = plain_edit(edit)
            scenes_of = (edit.source, edit.target)
            source, target = map(render, scenes_of)
            return Example(id, draw.task, edit.instruction, target, (source,), edit, scenes_of, lasting)
        scene = self._scene(seed, size, rng)
        kind = chosen(rng, self.texts)
        if kind == "caption":
            return Example(id, draw.task, language.caption(scene), render(scene), (), scene, (scene,), lasting)
        if kind == "dense":
            dense = language.dense(scene, rng)
            return Example(id, draw.task, dense.text, render(scene), (), dense, (scene,), lasting)
        said = language.prompts(scene, rng, self.tags)
        if rng.random() < self.plain:
            scene = plain_scene(said, size, rng) or scene
        return Example(id, draw.task, said.text, render(scene), (), said, (scene,), lasting)

    def _scene_seed(self, task: Task, turn: int, place: int) -> int:
        """Its last digit picks the novelty of a test scene: all are equally frequent in any size of batch."""
        number = (self.seed << 1 | TASKS.index(task)) << _TURN_BITS | turn
        return len(NOVELTIES) * (number << _PLACE_BITS | place) + (turn + place) % len(NOVELTIES)

    def _scene(self, seed: int, size: Size, rng: np.random.Generator) -> scenes.Scene:
        count = self.max_objects and int(rng.integers(1, self.max_objects + 1))
        return scenes.sample(seed, self.split, size=size, count=count)

    def _edit(self, seed: int, size: Size, rng: np.random.Generator) -> Edit:
        if rng.random() < self.copy_share:
            scene = self._scene(seed, size, rng)
            return Edit(COPY, pick(rng, COPIES), scene, scene)
        type = chosen(rng, self.types)
        arranged = plain_source if self.plain_sources and rng.random() < self.plain_sources else None
        return edits.sample(seed, self.split, type, size=size, most=self.max_objects, arranged=arranged)


def chosen(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """A key, as likely as its weight says."""
    keys = list(weights)
    shares = np.array([weights[key] for key in keys])
    return keys[int(rng.choice(len(keys), p=shares / shares.sum()))]
