"""Stand-in for Qwen2.5-VL: the tiny language model learns to answer the world's questions.

The loss is the mean cross-entropy of an answer's tokens. As the real model will be used in two ways, so is this one
trained: a share of samples is read as MetaQuery reads (pictures at 28/32, one-dimensional positions), the others as
`describe` reads (three-dimensional positions).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unipic.config import Strict
from unipic.data.questions import FORESEE, Asked, QuestionSource
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.find import find_mllm, find_model
from unipic.models.mllm import MLLM, load_mllm, published_name
from unipic.train.batches import Share
from unipic.train.cells import CellHead, cell_loss, cell_targets
from unipic.train.dit import wrong_kind
from unipic.train.log import Shown
from unipic.train.loop import Micro, RunConfig
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.slots import Slots, things_of
from unipic.world.questions import score

Seen = tuple[Tensor, int, int]
"""A picture's visual tokens, row by row, and how many rows and columns they are"""
NO_LOSS = -100
RIGHT = 0.5  # of a score, above which an answer is shown as right: mean overlap of boxes, F1 of captions


class QuestionConfig(Strict):
    """See `data.questions.QuestionSource`."""

    split: Literal["train", "test"] = "train"
    foresee: Share = 0.3
    kinds: dict[str, float] | None = None
    plain: Share = 0.0
    limit: Annotated[int, Field(ge=1)] | None = None


class MllmConfig(RunConfig):
    """model: a MetaQuery folder with its language model inside. flat: share of samples read as MetaQuery reads.

    cells: weight of a second loss, on what each visual token knows (see `train.cells`); for an eye without training.
    slots: weight of a third, on what queries behind a text can read of it (see `train.slots`).
    """

    stage: Literal["mllm"]
    model: str = "tiny"
    data: QuestionConfig = QuestionConfig()
    flat: Share = 0.5
    cells: Annotated[float, Field(ge=0)] = 0.0
    slots: Annotated[float, Field(ge=0)] = 0.0
    show_count: Annotated[int, Field(ge=0)] = 32


@dataclass(frozen=True)
class Questions(Micro):
    asked: tuple[Asked, ...]


class MllmStage:
    """The language model inside a MetaQuery folder, in training."""

    def __init__(self, config: MllmConfig) -> None:
        self.config = config
        data = config.data
        self.source = QuestionSource(
            *(config.seed, data.split), foresee=data.foresee, kinds=data.kinds, plain=data.plain, limit=data.limit
        )
        self.folder = find_model(config.model)
        self.mllm_folder = find_mllm(self.folder, None)

    def place(self, processes: Processes) -> None:
        if self.mllm_folder is None:
            raise wrong_kind(self.config.model, "a MetaQuery model with its language model inside")
        self.device = processes.device
        self.mllm: MLLM = load_mllm(self.mllm_folder, torch.float32, self.device)
        self.mllm.model.to(self.device).requires_grad_(True).train()  # transformers checkpoints in this mode alone
        if self.config.gradient_checkpointing:
            self.mllm.model.gradient_checkpointing_enable()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.head = CellHead(self.mllm.width).to(self.device)
            self.slots = Slots(self.mllm.width).to(self.device)

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        teachers = {"head": (self.head, self.config.cells), "slots": (self.slots, self.config.slots)}
        return {"mllm": self.mllm.model} | {name: head for name, (head, weight) in teachers.items() if weight}

    def batch(self, step: int, share: range) -> list[Questions]:
        """Forwards hold samples of about equal length: a caption is five times as long as a word, boxes ten times."""
        size = self.config.micro_batch or len(share)
        numbers = [step * self.config.batch + place for place in share]
        asked = sorted(((self.source.load(number), number) for number in numbers), key=lambda each: _length(each[0]))
        parts = [asked[i : i + size] for i in range(0, len(share), size)]
        return [
            Questions(tuple(n for _, n in part), tuple(a.id for a, _ in part), tuple(a for a, _ in part))
            for part in parts
        ]

    def losses(self, micro: Questions, draws: Draws) -> Tensor:
        flat = (draws.uniform() < self.config.flat).tolist()
        logits, labels, seen = self.predict(micro.asked, flat)
        each = cross_entropy(logits.transpose(1, 2), labels, ignore_index=NO_LOSS, reduction="none")
        losses = each.sum(1) / (labels != NO_LOSS).sum(1)
        if self.config.cells:
            cells = [self._cells(a, of) for a, of in zip(micro.asked, seen, strict=True)]
            losses = losses + self.config.cells * torch.stack(cells)
        told = [i for i, a in enumerate(micro.asked) if a.spec]
        if self.config.slots and told:
            slots = self._slots([micro.asked[i] for i in told])
            losses = losses.index_add(0, torch.tensor(told, device=self.device), self.config.slots * slots)
        return losses

    def _cells(self, asked: Asked, seen: Seen | None) -> Tensor:
        """How far a picture's tokens are from knowing what is in their cells; 0 without a picture."""
        if asked.scene is None or seen is None:
            return torch.zeros((), device=self.device)
        tokens, rows, columns = seen
        labels, places = cell_targets(asked.scene, rows, columns)
        return cell_loss(self.head(tokens), labels.to(self.device), places.to(self.device))

    def _slots(self, asked: Sequence[Asked]) -> Tensor:
        """How far queries behind each text are from knowing what it asks for; all of these have a spec."""
        pictures = [[a.picture] if a.picture else [] for a in asked]
        texts = [a.qa.question for a in asked]
        things = [things_of(a.spec) for a in asked if a.spec]

        def read(queries: Tensor) -> Tensor:
            return self.mllm.states_at_queries(texts, pictures, queries, frozen=False)

        return cast(Tensor, self.slots(read, things))

    def predict(self, asked: tuple[Asked, ...], flat: list[bool]) -> tuple[Tensor, Tensor, list[Seen | None]]:
        """B×L×vocabulary logits in float32, the B×L tokens that they should predict (NO_LOSS: none), and of each
        sample with a picture its visual tokens, rows×columns of them.
        """
        mllm = self.mllm
        areas = [
            int(a.picture.height * 28 / 32 * a.picture.width * 28 / 32) if a.picture and one else None
            for a, one in zip(asked, flat, strict=True)
        ]
        inputs = [mllm.pixels(a.picture, area) if a.picture else None for a, area in zip(asked, areas, strict=True)]
        rows, labels = [], []
        for a, seen in zip(asked, inputs, strict=True):
            turn = mllm.turn(a.qa.question, [seen[1]] if seen else [])
            answer = [*mllm.plain(a.qa.answer), mllm.special["<|im_end|>"]]
            rows.append([*turn, *answer])
            labels.append([NO_LOSS] * (len(turn) - 1) + answer + [NO_LOSS])
        ids, mask = mllm.padded(rows)
        pictures = [seen for seen in inputs if seen]
        tokens = mllm.see(pictures)
        embeds = mllm.embed(ids, tokens)
        positions = self._positions(ids, mask, [grid for _, grid in pictures], flat)
        states = mllm.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        wanted = torch.full_like(ids, NO_LOSS)
        for row, label in zip(wanted, labels, strict=True):
            row[: len(label)] = torch.tensor(label, device=ids.device)
        merge, rest = mllm.image_processor.merge_size, iter(tokens)
        views = [(next(rest), *(int(n) // merge for n in of[1][1:])) if of else None for of in inputs]
        return mllm.model.lm_head(states).float(), wanted, views

    def _positions(self, ids: Tensor, mask: Tensor, grids: list[Tensor], flat: list[bool]) -> Tensor:
        """3×B×L: the library's own for `describe`, the count of tokens for MetaQuery."""
        line = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0).expand(3, -1, -1)
        kinds = (ids == self.mllm.special["<|image_pad|>"]).int()
        grid = torch.stack(grids).to(ids.device) if grids else None
        space, _ = self.mllm.model.model.get_rope_index(ids, kinds, image_grid_thw=grid, attention_mask=mask)
        return torch.where(torch.tensor(flat, device=ids.device)[None, :, None], line, space)

    @torch.no_grad()
    def show(self) -> list[Shown]:
        """Questions, and what will be drawn, with the model's answers."""
        self.mllm.model.eval()
        found = []
        for number in range(self.config.show_count):
            a = self.source.load(number)
            seen = [] if a.picture is None else [a.picture]
            answer = "".join(self.mllm.describe(seen, a.qa.question, 48)).strip()
            qa = replace(a.qa, kind="caption") if a.qa.kind == FORESEE else a.qa
            shown = a.picture or Image.new("RGB", (64, 64), "white")
            found.append(Shown(f"{a.qa.question} {answer}", (shown,), score(qa, answer) > RIGHT))
        self.mllm.model.train()
        return found

    def export(self, folder: Path, weights: Tensors) -> None:
        if self.mllm_folder is None:
            return
        changed = {published_name(name): tensor for name, tensor in weights["mllm"].items()}
        components = components_of(self.folder)
        components["mllm"] = Changed.over(self.mllm_folder, "mllm", changed, torch.float32)
        assemble(folder, components, self.folder.defaults)


def _length(asked: Asked) -> int:
    """In characters, about."""
    return len(asked.qa.question) + len(asked.qa.answer)
