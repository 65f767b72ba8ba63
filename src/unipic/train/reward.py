"""Skywork-EditReward: the language model learns a judge's scores of edits by regression (paper §3.2).

The loss is the squared error of scores as shares of ten, the mean over those that a sample has. Trained are the head
and the language model, or adapters in it; the vision tower too, if asked. Edits that are held out say how far the model
agrees with the judge. The paper gives no rate, batch or number of steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors.torch import save_file
from torch import Tensor, nn

from unipic.config import Strict
from unipic.data.scored import ScoredEdit, edited, read_scored
from unipic.evals.agreement import agreement, calibration
from unipic.models.assembly import Changed, assemble
from unipic.models.find import find_language_model
from unipic.models.folder import ModelFolder
from unipic.models.lora import merge_lora
from unipic.models.mllm import MLLM, current_name, load_mllm
from unipic.models.placement import DTYPES
from unipic.models.reward_model import FULL, OUTPUTS, Edited, RewardModel, load_reward_model, new_head
from unipic.models.weights import read_header
from unipic.report import Page, Picture
from unipic.train.batches import Share
from unipic.train.log import Shown
from unipic.train.loop import Micro, RunConfig
from unipic.train.lora import LoraConfig, add_lora
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws

SHOWN = 16  # of the largest mistakes
AS_REWARD = f"{OUTPUTS[-1]}_as_reward"
MEANINGS = (
    "Of edits that were held out. pairs: share of pairs that the judge tells apart which are predicted in its order; "
    "pairs_of_a_group: of pairs of one source and instruction, which is what reinforcement goes by. off: mean "
    "distance in points of ten."
)


class ScoredConfig(Strict):
    """path: a folder as `data.scored` says. held_out: share of sources, where it has no test.jsonl."""

    path: str
    held_out: Share = 0.05


class LanguageLoraConfig(LoraConfig):
    """By default on the attention of the language model; the vision tower's layers are attn.qkv and attn.proj."""

    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


class TrainRewardConfig(RunConfig):
    """model: Qwen2.5-VL, a folder with one inside, or a reward model to go on with. lora: in place of all weights.

    vision: whether the vision tower learns, too. censored: the scale ends at 0 and 10, and a prediction beyond the end
    that a score is at is not wrong; what is surely bad need not be told apart from what is worse.
    show_count: edits that are held out and examined with `sample_every`.
    """

    stage: Literal["edit-reward"]
    model: str = "tiny"
    data: ScoredConfig
    lora: LanguageLoraConfig | None = None
    vision: bool = False
    censored: bool = False
    save_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    show_count: Annotated[int, Field(ge=0)] = 512
    show_batch: Annotated[int, Field(ge=1)] = 32

    @model_validator(mode="after")
    def adapters_are_named(self) -> TrainRewardConfig:
        if self.lora is not None and self.vision:
            raise ValueError("with a lora, name the vision tower's layers in lora.targets: attn.qkv, attn.proj")
        return self


@dataclass(frozen=True)
class ScoredEdits(Micro):
    """edits: groups, whose results are the samples in their order. scores: B×3 of ten, NaN where there is none."""

    edits: tuple[Edited, ...]
    scores: Tensor


@dataclass(frozen=True)
class Examination:
    """What a model says of edits that are held out. unbounded: N×3, as a reward has it, of ten; judged: likewise."""

    edits: Sequence[ScoredEdit]
    unbounded: NDArray[np.float64]
    judged: NDArray[np.float64]

    @property
    def predicted(self) -> NDArray[np.float64]:
        """N×3, within the judge's scale."""
        return self.unbounded.clip(0, FULL)

    def figures(self) -> dict[str, dict[str, float]]:
        """By output, then by name. The last also as a reward has it, where what is surely bad does not tie."""
        groups, found = [edit.group for edit in self.edits], dict[str, dict[str, float]]()
        for i, name in enumerate(OUTPUTS):
            found[name] = agreement(self.predicted[:, i], self.judged[:, i], groups)
        found[AS_REWARD] = agreement(self.unbounded[:, -1], self.judged[:, -1], groups)
        return {name: own for name, own in found.items() if own}

    def by_making(self) -> dict[str, dict[str, float]]:
        """Of the last output, by how results were made, as far as that is known: how many, their means, agreement."""
        made, found = np.array([edit.made for edit in self.edits]), dict[str, dict[str, float]]()
        for kind in sorted({*made} - {""}):
            own = np.flatnonzero((made == kind) & ~np.isnan(self.judged[:, -1]))
            p, j = self.predicted[own, -1], self.judged[own, -1]
            if len(own):
                means = {"results": len(own), "judged": float(j.mean()), "predicted": float(p.mean())}
                found[kind] = means | agreement(p, j, [self.edits[int(i)].group for i in own])
        return found

    def worst(self) -> list[int]:
        """By the greatest distance in any output."""
        off = np.nan_to_num(np.abs(self.predicted - self.judged)).max(axis=1)
        return [int(i) for i in np.argsort(-off, kind="stable")[:SHOWN]]

    def said(self, i: int) -> str:
        pairs = zip(OUTPUTS, self.judged[i], self.predicted[i], strict=True)
        return "; ".join(f"{name.replace('_', ' ')} {j:.1f}, predicted {p:.1f}" for name, j, p in pairs)


class EditRewardStage:
    """A language model and its head, in training."""

    def __init__(self, config: TrainRewardConfig) -> None:
        self.config = config
        self.samples, self.held_out = read_scored(Path(config.data.path), config.data.held_out)
        self.groups = tuple(len(list(own)) for _, own in groupby(self.samples, key=lambda sample: sample.group))
        self.folder: ModelFolder = find_language_model(config.model)
        self.examined: Examination | None = None

    def place(self, processes: Processes) -> None:
        config, self.processes = self.config, processes
        dtype = torch.float32 if config.lora is None else processes.dtype
        whole = replace(self.folder, inside="")
        if self.folder.inside and whole.has("reward_head"):
            self.model = load_reward_model(whole, dtype, processes.device)
        else:
            mllm: MLLM = load_mllm(self.folder, dtype, processes.device)
            mllm.model.to(processes.device)
            self.model = RewardModel(mllm, new_head(mllm.width, config.seed))
        language: Any = self.model.mllm.model
        if config.lora is None:
            language.model.language_model.requires_grad_(True)
            language.model.visual.requires_grad_(config.vision)
        else:
            add_lora(language, config.lora, config.seed)
            for parameter in language.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if config.gradient_checkpointing:
            language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.model.net.head.requires_grad_(True)
        self.model.net.train()  # transformers checkpoints in this mode alone

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return {"reward": self.model.net}

    def batch(self, step: int, share: range) -> list[ScoredEdits]:
        size = self.config.micro_batch or len(share)
        numbers = [step * self.config.batch + place for place in share]
        return [self._micro(numbers[i : i + size]) for i in range(0, len(numbers), size)]

    def _micro(self, numbers: Sequence[int]) -> ScoredEdits:
        """An epoch shows every sample; groups come in another order each time, their members together."""
        places = [divmod(number, len(self.samples)) for number in numbers]
        samples = [self.samples[self._order(epoch)[place]] for epoch, place in places]
        scores = torch.tensor([sample.scores for sample in samples])
        return ScoredEdits(tuple(numbers), tuple(s.id for s in samples), tuple(edited(samples)), scores)

    def _order(self, epoch: int) -> tuple[int, ...]:
        return _order(self.config.seed, epoch, self.groups)

    def losses(self, micro: ScoredEdits, draws: Draws) -> Tensor:
        predicted = self.model.predict(micro.edits)
        return squared_errors(predicted, micro.scores.to(predicted.device), censored=self.config.censored)

    @torch.no_grad()
    def show(self) -> list[Shown]:
        """The largest mistakes among the edits that are held out."""
        net, edits = self.model.net.eval(), self._examined_edits()
        with self.processes.autocast():
            unbounded = self.model.score(edited(edits), self.config.show_batch, bounded=False).double().numpy()
        net.train()
        if not edits:
            return []
        self.examined = Examination(edits, unbounded, np.array([edit.scores for edit in edits]))
        return [
            Shown(f"{edits[i].instruction} {self.examined.said(i)}", _pictures(edits[i])) for i in self.examined.worst()
        ]

    def _examined_edits(self) -> list[ScoredEdit]:
        """Groups of the held-out edits, as many as were asked for; always the same."""
        groups = [list(own) for _, own in groupby(self.held_out, key=lambda edit: edit.group)]
        order = np.random.default_rng(self.config.seed).permutation(len(groups))
        return [edit for i in order for edit in groups[i]][: self.config.show_count]

    def figures(self) -> dict[str, float]:
        """For the log: agreement with the judge, as of the last `show`."""
        found = {} if self.examined is None else self.examined.figures()
        return {f"{name}/{output}": value for output, own in found.items() for name, value in own.items()}

    def tell(self, page: Page) -> None:
        """For the report: agreement, calibration, and the largest mistakes."""
        if (seen := self.examined) is None:
            return
        figures = seen.figures()
        names = tuple(dict.fromkeys(name for own in figures.values() for name in own))
        rows = [(output, *(own.get(name) for name in names)) for output, own in figures.items()]
        page.text(MEANINGS, "Agreement with the judge")
        page.table(f"On {len(seen.edits)} edits", ("", *names), rows)
        if by_making := seen.by_making():
            names = tuple(dict.fromkeys(name for own in by_making.values() for name in own))
            rows = [(kind, *(own.get(name) for name in names)) for kind, own in by_making.items()]
            page.table(f"By how they were made, {OUTPUTS[-1]}", ("", *names), rows)
        curves: dict[str, list[tuple[float, float | None]]] = {"a perfect model": [(0, 0), (FULL, FULL)]}
        for i, output in ((i, name) for i, name in enumerate(OUTPUTS) if name in figures):
            known = ~np.isnan(seen.judged[:, i])
            curves[output] = list(calibration(seen.predicted[known, i], seen.judged[known, i]))
        page.curves("Calibration", curves, "predicted", "judged, mean of a tenth of the edits")
        mistakes = [
            (seen.edits[i].instruction, [Picture(p, text) for p, text in _captioned(seen.edits[i], seen.said(i))])
            for i in seen.worst()
        ]
        page.pictures("The largest mistakes", mistakes)

    def export(self, folder: Path, weights: Tensors) -> None:
        """The language model, with adapters merged, and its head."""
        own = weights["reward"]
        head = self.model.net.head
        stored = head.state_dict() | {name.removeprefix("head."): t for name, t in own.items() if name[:5] == "head."}
        trained = {name.removeprefix("mllm."): tensor for name, tensor in own.items() if name[:5] == "mllm."}
        if self.config.lora is not None:
            trained = self._merged(trained, self.config.lora)
        files = self.folder.weights("mllm", at="")
        names = {current_name(name): name for file in files for name in read_header(file)}
        changed = {names[name]: tensor for name, tensor in trained.items()}
        language = Changed.over(self.folder, "mllm", changed, DTYPES[self.config.save_dtype])
        assemble(folder, {"mllm": language, "reward_head": Changed(head.config, stored)}, {})

    def _merged(self, adapters: Mapping[str, Tensor], lora: LoraConfig) -> dict[str, Tensor]:
        """The weights that adapters change, with them merged."""
        device = torch.device("cpu")
        model = load_mllm(self.folder, torch.float32, device).model
        plain = {name.replace(".default.", "."): tensor.contiguous() for name, tensor in adapters.items()}
        layers = {name.removesuffix(".lora_A.weight") for name in plain if name.endswith(".lora_A.weight")}
        alphas = {f"{layer}.alpha": torch.tensor(lora.alpha) for layer in layers}
        with tempfile.TemporaryDirectory() as temporary:
            save_file(plain | alphas, Path(temporary) / "adapter_model.safetensors")
            merge_lora(model, temporary)
        return {f"{layer}.weight": model.get_parameter(f"{layer}.weight").detach() for layer in layers}


def squared_errors(predicted: Tensor, scores: Tensor, *, censored: bool = False) -> Tensor:
    """Of each sample the mean over the scores that it has. predicted: B×3 as shares of ten; scores: B×3 of ten.

    censored: a prediction below 0 of what has 0, or above 1 of what has 10, is no error.
    """
    known, predicted = ~scores.isnan(), predicted.float()
    off = predicted - scores.nan_to_num() / FULL
    if censored:
        off = torch.where(scores <= 0, off.clamp(min=0), torch.where(scores >= FULL, off.clamp(max=0), off))
    return (off.square() * known).sum(1) / known.sum(1)


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, groups: tuple[int, ...]) -> tuple[int, ...]:
    """Samples by their places, groups of so many permuted."""
    starts = np.cumsum((0, *groups))
    permuted = np.random.default_rng([seed, epoch]).permutation(len(groups))
    return tuple(int(starts[i]) + member for i in permuted for member in range(groups[i]))


def _pictures(edit: ScoredEdit) -> tuple[Any, ...]:
    (group,) = edited([edit])
    return group.source, *group.results


def _captioned(edit: ScoredEdit, said: str) -> list[tuple[Any, str]]:
    source, result = _pictures(edit)
    return [(source, "source"), (result, said)]
