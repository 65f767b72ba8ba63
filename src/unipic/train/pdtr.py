"""Progressive Dual-Task Reinforcement (paper §3.4): Flow-GRPO on editing, then on text-to-image, in one model.

A run's folder holds a folder for each part, which is a run of `grpo`, and for each evaluation before, between and after
them; at the end `model/`, with all adapters merged, and `lora/`, the adapters as one. The same command goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from unipic import config as recipes
from unipic.config import Strict
from unipic.data.source import Task
from unipic.evals.run import evaluate_world
from unipic.report import Page
from unipic.rewards.configs import Rewards
from unipic.system import UniPic
from unipic.train.grpo import GrpoConfig, GrpoStage
from unipic.train.loop import train
from unipic.train.lora import LoraConfig, save_lora

LORA = "pytorch_lora_weights.safetensors"


class PartConfig(Strict):
    """tasks: alternate, where there are two. rewards, held_out: in place of those of `grpo`."""

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    steps: Annotated[int, Field(ge=1)]
    rewards: Rewards | None = None
    held_out: Rewards | None = None


class EvaluateConfig(Strict):
    """The world's benchmark with n items of each part; of a model of real pictures it says nothing: null then.

    steps, guidance_scale: the model's own if None.
    """

    n: Annotated[int, Field(ge=1)] = 432
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=1)] | None = None


class PdtrConfig(Strict):
    """parts: in order; `rounds` times. grpo: what they have in common, and the model that the first starts from."""

    stage: Literal["pdtr"]
    grpo: GrpoConfig
    parts: Annotated[tuple[PartConfig, ...], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=1)] = 1
    evaluate: EvaluateConfig | None = None


def reinforce(config: PdtrConfig, run: Path) -> Path:
    """All parts in turn, each from the model that the one before it made. Returns the folder of the last model."""
    first = os.environ.get("RANK", "0") == "0"
    scores = {}
    model, folders = config.grpo.model, list[Path]()
    if first and config.evaluate:
        scores["before"] = _evaluated(config, config.evaluate, model, run / "eval-0")
    for number, part in enumerate(config.parts * config.rounds, 1):
        name = f"{number}-{'-'.join(part.tasks)}"
        folders.append(run / name)
        model = str(train(GrpoStage(part_config(config, part, model)), run / name))
        if first and config.evaluate:
            scores[f"after {name}"] = _evaluated(config, config.evaluate, model, run / f"eval-{number}")
    if first:
        _finish(config, run, folders, scores)
    return run / "model"


def part_config(config: PdtrConfig, part: PartConfig, model: str) -> GrpoConfig:
    """The recipe of one part."""
    base = config.grpo
    changed: dict[str, Any] = {"model": model, "steps": part.steps}
    changed["data"] = base.data.model_copy(update={"tasks": part.tasks})
    changed |= {key: value for key in ("rewards", "held_out") if (value := getattr(part, key)) is not None}
    return base.model_copy(update=changed)


def _evaluated(config: PdtrConfig, asked: EvaluateConfig, model: str, folder: Path) -> dict[str, Any]:
    system = UniPic.from_pretrained(model, mllm=config.grpo.mllm, device=config.grpo.device, dtype=config.grpo.dtype)
    scores, _ = evaluate_world(
        system, folder, n=asked.n, seed=asked.seed, steps=asked.steps, guidance_scale=asked.guidance_scale
    )
    return scores


def _finish(config: PdtrConfig, run: Path, folders: list[Path], scores: Mapping[str, dict[str, Any]]) -> None:
    """What all parts made together, as one model and one adapter; and a page of what each did to both tasks."""
    recipes.save(config, run / "config.yaml")
    tensors = summed([load_file(folder / "lora" / LORA) for folder in folders])
    lora = config.grpo.lora
    whole = LoraConfig(rank=lora.rank * len(folders), alpha=lora.alpha * len(folders), targets=lora.targets)
    save_lora(run / "lora", tensors, whole)
    if not (run / "model").exists():
        shutil.copytree(folders[-1] / "model", run / "model.new", dirs_exist_ok=True)
        (run / "model.new").rename(run / "model")
    page = Page(f"PDTR: {run.name}")
    if scores:
        rows = [_row(name, each) for name, each in scores.items()]
        page.table("Both tasks, before, between and after", ("", *COLUMNS), rows)
    for folder in folders:
        page.text(f"{folder.name}: {folder.name}/report.html")
    page.settings(config.model_dump(mode="json")).write(run / "report.html")


def summed(adapters: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Adapters of one base after the other as one of that many times the rank: ΣBᵢ·Aᵢ = [B₁ B₂ …]·[A₁; A₂; …].

    α/r stays as it was if α grows with the rank.
    """
    names = adapters[0]
    found = {}
    for name in names:
        along = 0 if ".lora_A." in name else 1
        found[name.removeprefix("transformer.")] = torch.cat([one[name] for one in adapters], dim=along)
    return found


COLUMNS = ("text-to-image", "of novel combinations", "edits, of 10", "of novel combinations")


def _row(name: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
    def cell(of: Mapping[str, Any], part: str) -> str:
        if of[part] is None:  # too few items to have any of these
            return "–"
        low, high = of["intervals"][part]["overall"]
        return f"{of[part]['overall']:.3g} [{low:.3g}, {high:.3g}]"

    halves = (scores, scores["novel"])
    return (name, *(cell(half, part) for part in ("geneval", "edit") for half in halves))
