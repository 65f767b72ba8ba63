"""Progressive Dual-Task Reinforcement (paper §3.2): Flow-GRPO on editing, then on text-to-image, in one model.

A run's folder holds a folder for each part, which is a run of `grpo` (or of `nft`), and for each evaluation before,
between and after them; at the end `model/`, with all adapters merged, `lora/`, the adapters as one, and last
`config.yaml`. The same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from unipic import config as recipes
from unipic.config import Strict
from unipic.data.source import Task
from unipic.errors import BadInput
from unipic.evals.run import evaluate_world
from unipic.files import write_whole
from unipic.models.find import find_model
from unipic.pictures import load
from unipic.report import Page, Picture
from unipic.rewards.configs import Rewards
from unipic.system import UniPic
from unipic.train.batches import AnySource, Phase
from unipic.train.disk import refusals
from unipic.train.grpo import GrpoConfig, GrpoStage, checked
from unipic.train.lines import read_lines
from unipic.train.log import ALARM, ends_of_grids
from unipic.train.loop import train
from unipic.train.lora import LoraConfig, save_lora
from unipic.train.nft import NftConfig, NftStage
from unipic.train.processes import Processes
from unipic.train.resuming import START, begun, finished

LORA = "pytorch_lora_weights.safetensors"
PATIENCE = timedelta(days=1)  # with which other processes wait while the first one evaluates


BenchmarkPart = Literal["geneval", "edit", "dense", "understanding"]


class PartConfig(Strict):
    """tasks: take turns in this order; one may be there several times.

    rewards, held_out, beta, and of its data sources and phases: in place of those of `grpo`.
    """

    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    steps: Annotated[int, Field(ge=1)]
    rewards: Rewards | None = None
    held_out: Rewards | None = None
    beta: Annotated[float, Field(ge=0)] | None = None
    sources: Annotated[tuple[AnySource, ...], Field(min_length=1)] | None = None
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)] | None = None


class EvaluateConfig(Strict):
    """The world's benchmark with n items of each part; of a model of real pictures it says nothing: null then.

    parts: of the benchmark; both tasks' own are `geneval` and `edit`. steps, guidance_scale: the model's own if None.
    """

    n: Annotated[int, Field(ge=1)] = 432
    parts: Annotated[tuple[BenchmarkPart, ...], Field(min_length=1)] = get_args(BenchmarkPart)
    seed: Annotated[int, Field(ge=0)] = 0
    steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=1)] | None = None


class PdtrConfig(Strict):
    """parts: in order; `rounds` times. grpo: what they have in common, and the model that the first starts from.

    grpo.seed: of the first part; each later one has a seed of its own, which follows from this one and its number.
    """

    stage: Literal["pdtr"]
    grpo: Annotated[GrpoConfig | NftConfig, Field(discriminator="stage")]
    parts: Annotated[tuple[PartConfig, ...], Field(min_length=1)]
    rounds: Annotated[int, Field(ge=1)] = 1
    evaluate: EvaluateConfig | None = None


def reinforce(config: PdtrConfig, run: Path) -> Path:
    """All parts in turn, each from the model that the one before it made. Returns the folder of the last model.

    Raises BadInput for data and rewards that are not there, and for a part that has begun with another recipe, or from
    other weights than its model has now.
    """
    for number, part in enumerate(config.parts, 1):
        if not begun(run / folder_name(part, number)):  # what is wrong with a later one is not to be found after hours
            checked(part_config(config, part, config.grpo.model))
    patience = PATIENCE if config.evaluate else None
    with closing(Processes(config.grpo.device, config.grpo.dtype, patience)) as processes:
        scores = dict[str, dict[str, Any]]()
        model, folders, when = config.grpo.model, list[Path](), "before"
        for number, part in enumerate(config.parts * config.rounds, 1):
            folder, own = run / folder_name(part, number), part_config(config, part, model, number)
            done = False
            with processes.together():
                if processes.first:
                    done = _taken_up(own, folder, number)
                    if config.evaluate:
                        scores[when] = _evaluated(config, config.evaluate, model, run / f"eval-{number - 1}")
                    if not done:  # nor is the whole, if it was
                        (run / "config.yaml").unlink(missing_ok=True)
            if not processes.any(done):
                _train(own, folder, processes)
            folders.append(folder)
            model, when = str(folder / "model"), f"after {folder.name}"
    if processes.first:  # nobody waits any more
        if config.evaluate:
            scores[when] = _evaluated(config, config.evaluate, model, run / f"eval-{len(folders)}")
        _finish(config, run, folders, scores)
    return run / "model"


def folder_name(part: PartConfig, number: int) -> str:
    """Of a part's run: its number, and its tasks, each once."""
    return f"{number}-{'-'.join(dict.fromkeys(part.tasks))}"


def part_config(config: PdtrConfig, part: PartConfig, model: str, number: int = 1) -> GrpoConfig:
    """The recipe of one part. number: counted from 1, over all rounds."""
    base = config.grpo
    changed: dict[str, Any] = {"model": model, "steps": part.steps}
    if number > 1:  # other prompts and noise than in a part before, or in a run with another seed
        changed["seed"] = int(np.random.SeedSequence([base.seed, number]).generate_state(1)[0])

    def own(*names: str) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(part, name)) is not None}

    changed["data"] = base.data.model_copy(update=own("sources", "phases") | {"tasks": part.tasks})
    return base.model_copy(update=changed | own("rewards", "held_out", "beta"))


def _taken_up(config: GrpoConfig, folder: Path, number: int) -> bool:
    """Whether a part is finished; if it has not begun, what it starts from is noted."""
    done = finished(folder, config, config.steps)
    noted, weights = folder / START, find_model(config.model).weights_hash()
    if not begun(folder) or not noted.exists():
        with refusals(folder):
            write_whole(noted, weights.encode())
    elif noted.read_text() != weights:
        mend = f"give another --run-dir, or delete eval-{number - 1}, {folder.name} and what was made after them"
        raise BadInput("this part was started from other weights than are there now", f"{folder}: {config.model}", mend)
    return done


def _train(config: GrpoConfig, folder: Path, processes: Processes) -> None:
    with processes.together():
        stage = NftStage(config) if isinstance(config, NftConfig) else GrpoStage(config)
    train(stage, folder, processes)


def _evaluated(config: PdtrConfig, asked: EvaluateConfig, model: str, folder: Path) -> dict[str, Any]:
    system = UniPic.from_pretrained(model, mllm=config.grpo.mllm, device=config.grpo.device, dtype=config.grpo.dtype)
    scores, _ = evaluate_world(system, folder, **asked.model_dump())
    return scores


def _finish(config: PdtrConfig, run: Path, folders: list[Path], scores: Mapping[str, dict[str, Any]]) -> None:
    """What all parts made together, as one model and one adapter; and a page of what each did to both tasks."""
    if not _belong(run, folders[-1]):
        (run / "config.yaml").unlink(missing_ok=True)
        tensors = summed([load_file(folder / "lora" / LORA) for folder in folders])
        lora = config.grpo.lora
        whole = LoraConfig(rank=lora.rank * len(folders), alpha=lora.alpha * len(folders), targets=lora.targets)
        save_lora(run / "lora", tensors, whole)
        shutil.rmtree(run / "model.new", ignore_errors=True)
        shutil.copytree(folders[-1] / "model", run / "model.new")
        shutil.rmtree(run / "model", ignore_errors=True)
        (run / "model.new").rename(run / "model")
    page = Page(f"PDTR: {run.name}")
    if scores:
        rows = [_row(name, each) for name, each in scores.items()]
        page.table("Both tasks, before, between and after", ("", *COLUMNS), rows)
    for folder in folders:
        _tell(page, folder)
    page.settings(config.model_dump(mode="json")).write(run / "report.html")
    recipes.save(config, run / "config.yaml")  # last: with it the run is finished


def _belong(run: Path, last: Path) -> bool:
    """Whether the model and the adapters of a finished run are still those of its parts."""
    manifests = [folder / "model" / "manifest.json" for folder in (run, last)]
    if not all(path.exists() for path in (*manifests, run / "lora" / LORA, run / "config.yaml")):
        return False
    return manifests[0].read_bytes() == manifests[1].read_bytes()


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


WATCHED = ("reward", "held_out", "kl")


def _tell(page: Page, folder: Path) -> None:
    """The most of a part's own report.html: alarms, what was rewarded and what was only watched, pictures."""
    lines = read_lines(folder / "log.jsonl")
    alarms = [line["step"] for line in lines if line.get("alarm")]
    said = f"{ALARM} First at step {alarms[0]}." if alarms else "No alarm."
    page.text(f"{said} All else: {folder.name}/report.html.", folder.name)
    for name in WATCHED:
        if points := [(line["step"], line[name]) for line in lines if name in line]:
            page.curves(f"{folder.name}: {name}", {name: points})
    if grids := ends_of_grids(folder):
        page.pictures(f"{folder.name}: fixed samples", [(path.stem, [Picture(load(path))]) for path in grids])


COLUMNS = ("text-to-image", "of novel combinations", "edits, of 10", "of novel combinations")


def _row(name: str, scores: Mapping[str, Any]) -> tuple[str, ...]:
    def cell(of: Mapping[str, Any], part: str) -> str:
        if of[part] is None:  # too few items to have any of these
            return "–"
        low, high = of["intervals"][part]["overall"]
        return f"{of[part]['overall']:.3g} [{low:.3g}, {high:.3g}]"

    halves = (scores, scores["novel"])
    return (name, *(cell(half, part) for part in ("geneval", "edit") for half in halves))
