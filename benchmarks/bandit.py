"""A bandit of two prompts: seconds until Flow-GRPO, its variants and DiffusionNFT have found the best pictures.

    python benchmarks/bandit.py [SEEDS] [VARIANT …]

A small model has learnt four pictures of each prompt until one is about as likely as another; a seed says which is the
best. The reward is 1 for it, and less for each pixel that is farther from it. A run has got there when a rollout's mean
is 0.95 of the optimum, which is what the best pictures get after the autoencoder. Seconds are the processor's. The
model is made in runs/bandit first, in some minutes.
"""

from __future__ import annotations

import itertools
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from unipic.config import resolve
from unipic.data.source import Example
from unipic.models import tiny
from unipic.models.checkpoint import write_manifest
from unipic.models.find import find_model
from unipic.rewards.reward import Sample, WeightedSum
from unipic.train import batches
from unipic.train.loop import advance, train
from unipic.train.optim import Weights
from unipic.train.processes import Processes
from unipic.train.stages import AnyConfig, stage_of
from unipic.world.render import render
from unipic.world.scene import Object, Scene
from unipic.world.verify import closeness

SHAPES, GROUNDS = ("circle", "square"), ("mint", "rose", "sky", "lavender")
SIDE = 64  # of pictures, px
FADES = 40  # grey levels at which a pixel counts e⁻¹
SHARE, UPDATES = 0.95, 100
PRETRAINING: dict[str, Any] = {
    "stage": "kontext",
    "steps": 800,
    "batch": 16,
    "noises": 4,
    "times": {"shift": 1},
    "optimizer": {"kind": "muon", "lr": 3e-3, "warmup": 20},
    "ema": {"decay": 0.99},
    "show": {"count": 0},
    "device": "cpu",
}
REINFORCEMENT: dict[str, Any] = {
    "stage": "grpo",
    "steps": UPDATES,
    "batch": 128,
    "group": 64,  # fewer settle on another picture before all of them have met the best
    "updates": 1,
    "lora": {"rank": 32, "alpha": 64},
    "sampler": {"steps": 6, "trained": 5, "guidance_scale": 1},  # more sharpens what is likely, and settles sooner
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "schedule": "constant"},
    "beta": 0,
    "drop_text": 0,
    "ema": None,
    "rewards": {"bright": {"kind": "brightness"}},  # the bandit's takes its place
    "show": {"count": 0},
    "device": "cpu",
}
VARIANTS: dict[str, list[str]] = {
    "Flow-GRPO": [],
    "CPS noise": ["sampler.kind=cps"],
    "window of 2": ["sampler.window=2"],
    "GRPO-Guard": ["guard=true"],
    "DiffusionNFT": ["stage=nft", "beta=1e-4"],
}


class Bandit:
    """Of each prompt one picture is the best."""

    def __init__(self, prompts: Sequence[Example]) -> None:
        self.best = {example.text: example.picture for example in prompts}

    def score(self, samples: Sequence[Sample]) -> list[Any]:
        return [float(closeness(s.picture, self.best[s.text], FADES).mean()) for s in samples]


def arms(folder: Path) -> Path:
    """The model's folder; what has been made of it before is taken up."""
    blank, new = folder / "blank", folder / "blank.new"
    if not blank.exists():
        shutil.rmtree(new, ignore_errors=True)
        sizes = tiny.Sizes(dit=(4, 2), text=32, text_layers=1, to_train=True)
        tiny.make_kontext(new, dtype=torch.float32, sizes=sizes)
        shutil.rmtree(new / "vae")
        shutil.copytree(find_model("tiny-kontext").root / "vae", new / "vae")
        write_manifest(new, find_model("tiny-kontext").defaults)
        new.rename(blank)
    pictures = pictures_of(folder / "pictures", itertools.product(SHAPES, GROUNDS))
    train(stage_from(PRETRAINING | {"model": str(blank), "data": data_of(pictures)}), folder / "run")
    return folder / "run" / "model"


def pictures_of(folder: Path, drawn: Any) -> Path:
    """A folder of pictures, each of a blue shape in the middle of a ground. drawn: pairs of both."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for shape, ground in drawn:
        scene = Scene(SIDE, SIDE, ground, "light", (Object(shape, "blue", "large", "filled", SIDE // 2, SIDE // 2),))
        render(scene).save(folder / f"{shape}-{ground}.png")
        lines.append({"image": f"{shape}-{ground}.png", "text": f"a {shape}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def data_of(pictures: Path) -> dict[str, Any]:
    source = {"kind": "folder", "path": str(pictures)}
    return {"sources": [source], "tasks": ["generate"], "phases": [{"resolution": SIDE}]}


@dataclass(frozen=True)
class Solved:
    """rewards: the mean of every rollout, as shares of the optimum. seconds: the processor's."""

    rewards: Sequence[float]
    seconds: float

    @property
    def found(self) -> bool:
        return self.rewards[-1] >= SHARE


def solve(model: Path, folder: Path, seed: int, changes: Sequence[str] = ()) -> Solved:
    """Learn until the best pictures are found, or for UPDATES updates."""
    best = np.random.default_rng(seed).choice(GROUNDS, len(SHAPES))
    pictures = pictures_of(folder / f"best-{seed}", zip(SHAPES, best, strict=True))
    raw = REINFORCEMENT | {"model": str(model), "seed": seed, "data": data_of(pictures)}
    stage = stage_from(raw, changes)
    one, share = Processes("cpu", "fp32"), range(stage.config.batch)
    stage.place(one)
    prompts = stage.batch(0, share)[0].prompts
    bandit = Bandit(prompts)
    optimum = statistics.fmean(bandit.score([decoded(stage, prompt) for prompt in prompts]))
    stage.rewards = WeightedSum({"best": (1.0, bandit)})
    weights, rewards, start = Weights(stage.trained, stage.config.optimizer, None), list[float](), time.process_time()
    while len(rewards) < UPDATES and max(rewards, default=0.0) < SHARE:
        step = len(rewards)
        rewards.append(advance(stage, weights, stage.batch(step, share), step, one)["reward"] / optimum)
    return Solved(rewards, time.process_time() - start)


@torch.no_grad()
def decoded(stage: Any, prompt: Example) -> Sample:
    """A prompt's best picture, as the autoencoder gives it back."""
    picture = stage.base.vae.decode(stage.base.latents.of(batches.pictures_of([prompt])))
    return Sample(prompt.text, picture)


def stage_from(raw: dict[str, Any], sets: Sequence[str] = ()) -> Any:
    return stage_of(resolve(TypeAdapter(AnyConfig), raw, "the bandit", sets))


def main(seeds: str = "3", *names: str) -> None:
    folder, variants = Path("runs/bandit"), {name: VARIANTS[name] for name in names or VARIANTS}
    model = arms(folder)
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, {date.today()}")
    # of all variants one seed, then the next: they share the machine's weather
    for seed, name in itertools.product(range(int(seeds)), variants):
        it = solve(model, folder, seed, variants[name])
        end = f"{len(it.rewards)} updates, {it.seconds:.0f} s" if it.found else "not reached"
        print(f"{name:14} seed {seed}: {it.rewards[0]:.2f} → {max(it.rewards):.2f}, {end}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
