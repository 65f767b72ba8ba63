"""The one training loop. A stage says what to train on which samples with what loss; the loop does everything else.

Batches are a function of seed and step, every sample's random numbers of seed and number: the state of a run is its
weights, moments, averages and the count of its steps. The same command on the same run folder goes on where the last
checkpoint was written, to the same bits.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from unipic import config as recipes
from unipic.config import Strict
from unipic.errors import BadInput, UnipicError
from unipic.train.checkpointing import Checkpoints, locked
from unipic.train.log import RunLog, Shown
from unipic.train.optim import EmaConfig, OptimizerConfig, Tensors, Weights
from unipic.train.processes import Processes
from unipic.train.randomness import Draws

MOST_BAD_STEPS = 3  # in a row, before a run stops
HARMLESS = {
    "steps",
    "checkpoint_every",
    "keep",
    "sample_every",
    "log_every",
    "workers",
    "device",
    "micro_batch",
    "track",
}


class RunConfig(Strict):
    """What every stage has. batch: samples in an update, whatever the number of processes; micro_batch: in a forward.

    keep: checkpoints that stay. sample_every, checkpoint_every: in updates; 0 is never before the end.
    workers: processes that prepare batches; 0 prepares them in the training process. device, dtype: auto is a GPU in
    bf16 with float32 weights, or the CPU in float32.
    """

    stage: str
    steps: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    batch: Annotated[int, Field(ge=1)]
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    optimizer: OptimizerConfig
    ema: EmaConfig | None = None
    gradient_checkpointing: bool = False
    checkpoint_every: Annotated[int, Field(ge=0)] = 1000
    keep: Annotated[int, Field(ge=1)] = 2
    sample_every: Annotated[int, Field(ge=0)] = 0
    log_every: Annotated[int, Field(ge=1)] = 10
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    device: str = "auto"
    dtype: str = "auto"
    track: tuple[str, ...] = ()


@dataclass(frozen=True)
class Micro:
    """Samples of one forward. numbers: counted over the run. ids: for a reader of logs. Stages add what they need."""

    numbers: tuple[int, ...]
    ids: tuple[str, ...]


class Stage(Protocol):
    """One stage of training."""

    config: Any

    @property
    def trained(self) -> Mapping[str, nn.Module]:
        """By component's name; parameters that require gradients are trained."""
        ...

    def place(self, processes: Processes) -> None:
        """Load all models onto the device, before weights are sharded."""
        ...

    def batch(self, step: int, share: range) -> Sequence[Any]:
        """The micro-batches (`Micro`) of a share of a batch: pure, on the CPU, perhaps in a worker."""
        ...

    def losses(self, micro: Any, draws: Draws) -> Tensor:
        """One loss a sample, float32."""
        ...

    def show(self) -> list[Shown]:
        """Pictures of fixed prompts, by the weights as they are."""
        ...

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write the model with these weights as a new folder in the published layout."""
        ...


class _Shares(Dataset[Any]):
    def __init__(self, stage: Stage, share: range) -> None:
        self.stage, self.share = stage, share

    def __getitem__(self, step: int) -> Sequence[Any]:
        return self.stage.batch(step, self.share)


def train(stage: Stage, run: Path) -> Path:
    """Run a stage in its folder, or go on with it, to its end. Returns the folder of the trained model.

    Raises UnipicError: three steps in a row without a finite gradient; a full disk, naming the last checkpoint.
    """
    config: RunConfig = stage.config
    processes = Processes(config.device, config.dtype)
    if config.batch % processes.count:
        what = f"a batch of {config.batch} cannot be shared by {processes.count} processes"
        raise BadInput(what, "batch", "give a multiple of the number of processes")
    with locked(run) if processes.first else nullcontext():
        return _train(stage, config, run, processes)


def _train(stage: Stage, config: RunConfig, run: Path, processes: Processes) -> Path:
    if processes.first:
        _settle(config, run)
    stage.place(processes)
    processes.shard(stage.trained)
    weights = Weights(stage.trained, config.optimizer, config.ema)
    checkpoints = Checkpoints(run / "checkpoints", config.keep)
    step, bad = _resume(checkpoints, weights, processes)
    with _sigterm() as asked, RunLog(run, config, step, processes.first) as log:
        for micros in _batches(stage, config, step, processes):
            record = update(stage, weights, micros, step, processes)
            step += 1
            log.add(record)
            bad = bad + 1 if record.get("skipped") else 0
            if bad == MOST_BAD_STEPS:
                raise UnipicError(
                    f"no finite gradient in {bad} steps in a row",
                    f"step {step}, samples {', '.join(record['samples'][:5])}",
                    f"lower the rate, or look at these samples; {checkpoints.named()}",
                )
            if config.sample_every and (step % config.sample_every == 0 or step == config.steps):
                log.show(stage.show(), step)
            stop = processes.any(bool(asked))
            if stop or step == config.steps or (config.checkpoint_every and step % config.checkpoint_every == 0):
                _save(checkpoints, step, bad, weights, processes)
            if stop:
                raise SystemExit(143)
    return _finish(stage, weights, run, processes)


def _batches(stage: Stage, config: RunConfig, step: int, processes: Processes) -> Iterable[Sequence[Any]]:
    """This process's share of the batches from a step on, prepared ahead where there are workers."""
    return DataLoader(
        _Shares(stage, processes.share(config.batch)),
        batch_size=None,
        sampler=range(step, config.steps),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
    )


def update(stage: Stage, weights: Weights, micros: Sequence[Any], step: int, processes: Processes) -> dict[str, Any]:
    """One update on this process's share of a batch; what the log says of it.

    A batch's loss is the mean over its samples in all processes. Without a finite gradient nothing is changed.
    """
    config: RunConfig = stage.config
    total, spoilt = 0.0, []
    for micro in micros:
        with processes.autocast():
            losses = stage.losses(micro, Draws(config.seed, micro.numbers, processes.device))
        # FSDP averages gradients over processes
        (losses.sum() * (processes.count / config.batch)).backward()  # type: ignore[no-untyped-call]
        values = losses.detach().tolist()
        total += sum(values)
        spoilt += [id for id, value in zip(micro.ids, values, strict=True) if not math.isfinite(value)]
    norm, rate = weights.update(step, config.steps)
    loss = processes.sum(total)[0] / config.batch
    record: dict[str, Any] = {"step": step + 1, "loss": loss, "grad_norm": norm, "lr": rate}
    if not math.isfinite(norm):
        record |= {"skipped": True, "samples": spoilt or [id for micro in micros for id in micro.ids]}
    return record


def _settle(config: RunConfig, run: Path) -> None:
    """The resolved recipe stays in the run's folder; another recipe does not go on with it."""
    run.mkdir(parents=True, exist_ok=True)
    saved = run / "config.yaml"
    if saved.exists():
        recipes.check_same(saved, config, HARMLESS)
    recipes.save(config, saved)


def _resume(checkpoints: Checkpoints, weights: Weights, processes: Processes) -> tuple[int, int]:
    """Steps done, and how many of the last ones were bad."""
    found = checkpoints.latest()
    if found is None:
        return 0, 0
    weights.load({name: found.tensors(name) for name in found.names()}, processes.put)
    return found.step, found.state["bad"]


def _save(checkpoints: Checkpoints, step: int, bad: int, weights: Weights, processes: Processes) -> None:
    files = processes.whole(weights.tensors())
    if processes.first:
        checkpoints.save(step, files, {"bad": bad})
    processes.wait()


def _finish(stage: Stage, weights: Weights, run: Path, processes: Processes) -> Path:
    model = run / "model"
    best = processes.whole(weights.best())
    if processes.first and not model.exists():
        stage.export(model, best)
    processes.wait()
    return model


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """SIGTERM is noted, and obeyed after the step at work."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
