"""Runs of training for tests: a small recipe, a stage that is smaller still, and processes of their own."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import Tensor, nn

from unipic.cli import main
from unipic.config import resolve
from unipic.errors import UnipicError
from unipic.train.log import Shown
from unipic.train.loop import Micro, RunConfig, Stage
from unipic.train.optim import Tensors
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.stages import AnyConfig, stage_of

KONTEXT: dict[str, Any] = {
    "stage": "kontext",
    "model": "tiny-kontext",
    "steps": 12,
    "batch": 2,
    "optimizer": {"lr": 1e-3},
    "ema": {"decay": 0.9},
    "data": {"sources": [{"kind": "world", "limit": 6}], "phases": [{"resolution": 64}]},
    "log_every": 1,
    "checkpoint_every": 2,
    "sample_every": 6,
    "show": {"count": 1, "steps": 1},
    "device": "cpu",
}
ONE = Processes("cpu", "fp32")
SMALL_PDTR = [  # one step of one small rollout, as --set takes it
    "grpo.model=tiny-kontext",
    "grpo.batch=4",
    "grpo.group=4",
    "grpo.updates=1",
    "grpo.micro_batch=4",
    "grpo.lora={rank: 2, alpha: 4}",
    "grpo.sampler={steps: 2, trained: 1}",
    "grpo.show.count=0",
    "grpo.device=cpu",
    "parts.0.steps=1",
]
GRPO: dict[str, Any] = KONTEXT | {
    "stage": "grpo",
    "batch": 8,
    "group": 4,
    "lora": {"rank": 2, "alpha": 4},
    "sampler": {"steps": 3, "trained": 2},
    "rewards": {"bright": {"kind": "brightness"}},
    "held_out": {"world": {"kind": "world"}},
    "optimizer": {"lr": 1e-2},
}


def stage_from(raw: Mapping[str, Any]) -> Stage:
    return stage_of(resolve(TypeAdapter(AnyConfig), raw, "the test's recipe"))


def recipe(folder: Path, raw: Mapping[str, Any] = KONTEXT, **changes: Any) -> Path:
    """As a file; JSON is YAML."""
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({**raw, **changes}))
    return path


def files(run: Path, step: int) -> dict[str, bytes]:
    """Every bit of the final model and of a step's checkpoint."""
    folders = [run / "model", run / "checkpoints" / f"step_{step:08d}"]
    return {str(p.relative_to(run)): p.read_bytes() for f in folders for p in sorted(f.rglob("*")) if p.is_file()}


def records(run: Path) -> list[dict[str, Any]]:
    """The log's lines of steps, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "samples_per_s"} for line in lines if "loss" in line]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Child:
    """Work in a process of its own, without another import of torch; it ends as the command line would."""

    def __init__(self, folder: Path, work: Callable[[], object]) -> None:
        self.texts = [folder / f"{name}-{len(list(folder.glob('stdout-*')))}.txt" for name in ("stdout", "stderr")]
        for path in self.texts:
            path.touch()
        self.pid = os.fork()
        if self.pid:
            return
        code = 0
        try:
            for number, path in enumerate(self.texts, 1):
                os.dup2(os.open(path, os.O_WRONLY), number)
            sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
            work()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except UnipicError as error:
            os.write(2, f"{error}\n".encode())
            code = error.exit_code
        except BaseException:
            code = 99
            traceback.print_exc()
        finally:
            os._exit(code)

    def end(self) -> Ended:
        """Wait for it. A negative code is a signal's."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (path.read_text() for path in self.texts)
        return Ended(code, out, err)


def command(folder: Path, *arguments: object, before: Callable[[], object] = lambda: None) -> Child:
    """`unipic` with these arguments. before: is called ahead of it in the same process."""

    def work() -> None:
        before()
        main([str(argument) for argument in arguments])

    return Child(folder, work)


def launch(folder: Path, count: int, work: Callable[[int], object]) -> list[Child]:
    """Work in processes that know one another, as torchrun starts them. work: is given its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def of(rank: int) -> Callable[[], object]:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

        def run() -> object:
            os.environ.update({key: str(value) for key, value in ranks.items()})
            return work(rank)

        return run

    return [Child(folder, of(rank)) for rank in range(count)]


@dataclass(frozen=True)
class Points(Micro):
    x: Tensor


class ToyConfig(RunConfig):
    stage: Literal["toy"] = "toy"


class Toy:
    """A stage whose model has 49 weights. spoil: (micro, losses) → losses."""

    def __init__(self, spoil: Callable[[Points, Tensor], Tensor] = lambda _, losses: losses, **changes: Any) -> None:
        settings = {"steps": 10, "batch": 4, "optimizer": {"lr": 0.01}, "ema": {"decay": 0.9}, "log_every": 1}
        self.config = resolve(ToyConfig, settings | {"device": "cpu"} | changes, "toy")
        self.spoil = spoil

    def place(self, processes: Processes) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        return {"net": self.net}

    def batch(self, step: int, share: range) -> list[Points]:
        size = self.config.micro_batch or len(share)
        numbers = [step * self.config.batch + place for place in share]
        groups = [tuple(numbers[i : i + size]) for i in range(0, len(numbers), size)]
        return [Points(g, tuple(f"point-{n}" for n in g), torch.stack([_point(n) for n in g])) for g in groups]

    def losses(self, micro: Points, draws: Draws) -> Tensor:
        predicted = self.net(micro.x + 0.1 * draws.normal(4))[:, 0]
        return self.spoil(micro, (predicted - micro.x.sum(1).sin()).square())

    def show(self) -> list[Shown]:
        return [Shown("grey", (Image.new("RGB", (8, 8), "grey"),), True)]

    def export(self, folder: Path, weights: Tensors) -> None:
        folder.mkdir()
        save_file(weights["net"], folder / "net.safetensors")


def _point(number: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(number).standard_normal(4).astype(np.float32))
