"""Batches of pictures with texts, from any source, and what the frozen parts make of them.

A step has one task and one size. Tasks alternate step by step (paper §3.1); resolution rises as the recipe says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field
from torch import Tensor

from unipic.config import Strict
from unipic.data.folder import FolderSource
from unipic.data.mixture import Mixture
from unipic.data.source import Example, Size, Source, Task
from unipic.data.world import TEXTS, WorldSource
from unipic.errors import BadInput
from unipic.models.folder import LAYOUTS, ModelFolder
from unipic.train.cache import Cache
from unipic.train.loop import Micro

Share = Annotated[float, Field(ge=0, le=1)]


class WorldConfig(Strict):
    """The embedded world (see `data.world.WorldSource`). texts, tags, types: weights by name."""

    kind: Literal["world"] = "world"
    weight: Annotated[float, Field(gt=0)] = 1.0
    split: Literal["train", "test"] = "train"
    texts: dict[str, float] | None = None
    tags: dict[str, float] | None = None
    types: dict[str, float] | None = None
    copy_share: Share = 0.0
    plain: Share = 0.0
    plain_sources: Share = 0.0
    max_objects: Annotated[int, Field(ge=1, le=4)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None

    def open(self, seed: int) -> Source:
        return WorldSource(
            seed,
            self.split,
            tags=self.tags,
            types=self.types,
            copy_share=self.copy_share,
            plain=self.plain,
            plain_sources=self.plain_sources,
            max_objects=self.max_objects,
            limit=self.limit,
            texts=TEXTS if self.texts is None else self.texts,
        )


class FolderConfig(Strict):
    """A folder of pictures with its metadata.jsonl (see `data.metadata`)."""

    kind: Literal["folder"]
    weight: Annotated[float, Field(gt=0)] = 1.0
    path: str

    def open(self, seed: int) -> Source:
        return FolderSource(self.path, seed)


AnySource = Annotated[WorldConfig | FolderConfig, Field(discriminator="kind")]


class Phase(Strict):
    """From a step on, pictures of at most resolution² pixels."""

    step: Annotated[int, Field(ge=0)] = 0
    resolution: Annotated[int, Field(ge=32)]


class DataConfig(Strict):
    """sources: drawn from by weight. tasks: alternate. phases: progressive resolution.

    cache_gb: GiB of the CPU's memory, in each process, for latents of pictures that come again; as much again for
    conditions, where nothing in training changes them. cache_dir: a folder that keeps both, too, for other runs; it
    grows without limit. With neither, all is encoded whenever it comes, a forward's samples together.
    """

    sources: tuple[AnySource, ...] = (WorldConfig(),)
    tasks: tuple[Task, ...] = ("generate", "edit")
    phases: tuple[Phase, ...] = (Phase(resolution=128),)
    cache_gb: Annotated[float, Field(ge=0)] = 1.0
    cache_dir: str | None = None


class PromptsConfig(DataConfig):
    """Without edits, unless a recipe asks for them."""

    tasks: tuple[Task, ...] = ("generate",)


@dataclass(frozen=True)
class Pictures(Micro):
    """Samples with pictures. pixels: B×3×H×W, and of each reference, in grey levels 0 to 255.

    lasting: which of them come again; scenes: what their pictures show (see `Example`).
    """

    task: Task
    texts: tuple[str, ...]
    pixels: Tensor
    references: tuple[Tensor, ...]
    lasting: tuple[bool, ...]
    scenes: tuple[tuple[Any, ...], ...] = ()

    @property
    def size(self) -> Size:
        return self.pixels.shape[-1], self.pixels.shape[-2]


class Batches:
    """The batches of a run: pure functions of the step, on the CPU.

    Sources are opened at once, so that what is wrong with them is said before models are loaded.
    """

    def __init__(self, data: DataConfig, seed: int, batch: int, micro: int | None) -> None:
        self.data, self.seed, self.batch, self.micro = data, seed, batch, micro or batch
        _check(data)
        opened = [(config.open(seed), config.weight) for config in data.sources]
        self.source: Source = opened[0][0] if len(opened) == 1 else Mixture(opened, seed)

    def examples(self, step: int, share: Sequence[int]) -> list[Example]:
        """The samples at these places of the step's batch."""
        cycle, place = divmod(step, len(self.data.tasks))
        task = self.data.tasks[place]
        turn = cycle * self.data.tasks.count(task) + self.data.tasks[:place].count(task)
        resolution = [phase.resolution for phase in self.data.phases if phase.step <= step][-1]
        draw = self.source.draw(task, turn, self.batch, resolution)
        return [self.source.load(draw, i) for i in share]

    def micros(self, step: int, share: range) -> list[Pictures]:
        """A share of a batch, in forwards."""
        parts = [share[i : i + self.micro] for i in range(0, len(share), self.micro)]
        numbers = [tuple(step * self.batch + place for place in part) for part in parts]
        return [pictures_of(self.examples(step, part), own) for part, own in zip(parts, numbers, strict=True)]


def _check(data: DataConfig) -> None:
    if not data.tasks or not data.sources:
        raise BadInput("there is nothing to train on", "data", "give at least one task and one source")
    if not data.phases:
        raise BadInput("no phase says how large pictures are", "data.phases", "give one, such as {resolution: 512}")
    if data.phases[0].step or list(data.phases) != sorted(data.phases, key=lambda p: p.step):
        raise BadInput("the phases do not begin at step 0, or are out of order", "data.phases", "sort them by step")
    if data.cache_dir is not None:
        folder = Path(data.cache_dir)
        there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), folder)
        if not there.is_dir():
            raise BadInput(
                f"the cache needs a folder, and {there} is none", f"data.cache_dir: {folder}", "give another"
            )


def pictures_of(examples: Sequence[Example], numbers: tuple[int, ...] = ()) -> Pictures:
    """Examples of one task and size as one forward."""
    return Pictures(
        numbers=numbers,
        ids=tuple(e.id for e in examples),
        task=examples[0].task,
        texts=tuple(e.text for e in examples),
        pixels=stacked([e.picture for e in examples]),
        references=tuple(stacked(column) for column in zip(*(e.references for e in examples), strict=True)),
        lasting=tuple(e.lasting for e in examples),
        scenes=tuple(e.scenes for e in examples),
    )


def stacked(pictures: Sequence[Image]) -> Tensor:
    """B×3×H×W grey levels of RGB pictures of one size."""
    rows = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
    return rows.permute(0, 3, 1, 2).contiguous()  # torch's group norm of channels-last is 1,000× less exact


def cache_of(data: DataConfig, scope: str) -> Cache:
    """A cache of the size, and in the folder, that a recipe says. scope: see `Cache`."""
    folder = None if data.cache_dir is None else Path(data.cache_dir)
    return Cache(int(data.cache_gb * 2**30), folder, scope)


def scope_of(data: DataConfig, folder: ModelFolder, *components: str) -> str:
    """What makes the results of components theirs: SHA-256 over their weights, settings and vocabularies.

    Not over the whole model's, so that runs share a folder where only the DiT differs. Without a folder there is one
    maker, and nothing to hash.
    """
    if data.cache_dir is None:
        return ""
    lines = []
    for component in components:
        at = "" if component == "mllm" else component
        files = [
            p for kind in ("*.json", "*.txt", "*.model") for p in folder.check_subfolder(at).glob(kind) if p.is_file()
        ]
        files += folder.weights(component, at) if LAYOUTS[component].weights else []
        lines += [f"{component}/{path.name} {folder.hashes.sha256(path)}\n" for path in files]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
