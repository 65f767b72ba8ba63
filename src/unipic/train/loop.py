"""The one training loop. A stage says what to train on which samples with what loss; the loop does everything else.

Batches are a function of seed and step, every sample's random numbers of seed and number: the state of a run is its
weights, moments, averages and the count of its steps. The same command on the same run folder goes on where the last
checkpoint was written, to the same bits.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from unipic.config import Strict
from unipic.errors import BadInput, UnipicError
from unipic.report import Page
from unipic.train.ahead import prepared
from unipic.train.checkpointing import Checkpoints, locked
from unipic.train.disk import refusals_anywhere
from unipic.train.log import RunLog, Shown
from unipic.train.optim import EmaConfig, OptimizerConfig, Tensors, Weights
from unipic.train.processes import Processes
from unipic.train.randomness import Draws
from unipic.train.resuming import resume, save, saved_if_later, settle

MOST_BAD_STEPS = 3  # in a row, before a run stops
SPIKE = 5  # times the usual loss, from which a step's worst samples are logged
NAMED = 8  # of them
ALONE = {"vae", "text", "mllm"}  # stand-ins: small enough for one process, and read in more ways than by `forward`


class RunConfig(Strict):
    """What every stage has. batch: samples in an update, whatever the number of processes; micro_batch: in a forward.

    keep: checkpoints that stay. sample_every, checkpoint_every: in updates; 0 is never before the end.
    workers: processes that prepare batches; 0 prepares them in the training process. device, dtype: auto is a GPU in
    bf16 with float32 weights, or the CPU in float32. gradient_checkpointing: nothing to the small vae and text.
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
    track: tuple[Literal["tensorboard", "wandb"], ...] = ()


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
        """Pictures of fixed prompts, by the weights as they are (the loop puts their averages there first)."""
        ...

    def export(self, folder: Path, weights: Tensors) -> None:
        """Write the model with these weights as a new folder in the published layout."""
        ...


@runtime_checkable
class Online(Stage, Protocol):
    """A stage that learns from what it makes itself: a step of the loop is a rollout and the updates on it.

    Checkpoints lie between steps, so that a rollout is never learnt from by halves after a run was stopped.
    """

    def rollout(self, micros: Sequence[Any], step: int, processes: Processes) -> Sequence[Update]:
        """The updates of a step, of a share of its batch. In each, all processes have equally many forwards."""
        ...

    def told(self, processes: Processes) -> dict[str, Any]:
        """What the log is to say of the step, after its updates."""
        ...


@runtime_checkable
class Examined(Stage, Protocol):
    """A stage whose `show` is an examination: it has figures for the log, and more to tell in the report."""

    def figures(self) -> dict[str, float]:
        """Of the last `show`."""
        ...

    def tell(self, page: Page) -> None:
        """Add sections, as of the last `show`."""
        ...


@dataclass(frozen=True)
class Update:
    """The micro-batches of one update, and how many losses all processes have together."""

    micros: Sequence[Any]
    terms: int


def train(stage: Stage, run: Path, processes: Processes | None = None) -> Path:
    """Run a stage in its folder, or go on with it, to its end. Returns the folder of the trained model.

    processes: those of a caller that has more for them to do; its own if None.

    Raises UnipicError: three steps in a row without a finite loss and gradient; a full disk, naming the last
    checkpoint. Raises SystemExit(143) after a SIGTERM, once a checkpoint is written.
    """
    config: RunConfig = stage.config
    if processes is None:
        with closing(Processes(config.device, config.dtype)) as processes:
            return train(stage, run, processes)
    checkpoints = Checkpoints(run / "checkpoints", config.keep)
    with refusals_anywhere(run, checkpoints.named), ExitStack() as held:
        lock, finished = None, False
        with processes.together():
            _check_sharing(config, processes.count)
            if run.exists() and not run.is_dir():
                raise BadInput("a run's folder is wanted", str(run), "give another --run-dir")
            if processes.first:
                lock = held.enter_context(locked(run))
                finished = settle(run, config, config.steps)
        if not processes.any(finished):
            _train(stage, run, checkpoints, processes, lock)
    return run / "model"


def _train(stage: Stage, run: Path, checkpoints: Checkpoints, processes: Processes, lock: int | None) -> None:
    config: RunConfig = stage.config
    with processes.together():
        stage.place(processes)
    processes.shard(stage.trained)
    weights = Weights(stage.trained, config.optimizer, config.ema)
    step, bad = resume(checkpoints, weights, processes, config.steps)
    saved = step
    with processes.together():
        log = RunLog(run, config, step, processes.first, stage.tell if isinstance(stage, Examined) else None)
    share = processes.share(config.batch)
    batches = prepared(partial(stage.batch, share=share), range(step, config.steps), config.workers, lock)
    with log, _sigterm() as asked, closing(batches):
        if step == 0 and config.sample_every and isinstance(stage, Online):
            _show(stage, weights, log, step, processes)  # what reinforcement begins with
        while step < config.steps:
            with processes.together():
                micros = next(batches)
            before = partial(save, checkpoints, step, bad, weights, processes)
            rolling = saved_if_later(before if step != saved else None, checkpoints)
            record = advance(stage, weights, micros, step, processes, log.usual, rolling)
            step += 1
            bad = bad + 1 if record.get("skipped") else 0
            with processes.together():
                log.add(record)
                if bad == MOST_BAD_STEPS:
                    raise _no_way_on(record, checkpoints)
            last = step == config.steps
            if config.sample_every and (last or step % config.sample_every == 0):
                _show(stage, weights, log, step, processes)
            stop = processes.any(bool(asked))
            if stop or last or (config.checkpoint_every and step % config.checkpoint_every == 0):
                save(checkpoints, step, bad, weights, processes)
                saved = step
            if stop:
                break
        if processes.any(bool(asked)):  # also during the last save
            raise SystemExit(143)
    best = processes.whole(weights.best())
    with processes.together():
        if processes.first:
            stage.export(run / "model", best)


def _show(stage: Stage, weights: Weights, log: RunLog, step: int, processes: Processes) -> None:
    with weights.averaged():
        shown = stage.show()
    with processes.together():
        log.show(shown, step, stage.figures() if isinstance(stage, Examined) else None)


def advance(
    stage: Stage | Online,
    weights: Weights,
    micros: Sequence[Any],
    step: int,
    processes: Processes,
    usual: float = math.inf,
    rolling: AbstractContextManager[object] | None = None,
) -> dict[str, Any]:
    """One step: an update on its batch, or those on a rollout; what the log says of it. rolling: around a rollout."""
    if not isinstance(stage, Online):
        return update(stage, weights, micros, step, processes, usual)
    with rolling or nullcontext():
        updates = stage.rollout(micros, step, processes)
    records = [
        update(stage, weights, each.micros, step, processes, terms=each.terms, of=(i, len(updates)))
        for i, each in enumerate(updates)
        if each.terms
    ]
    mean = {key: sum(record[key] for record in records) / max(1, len(records)) for key in ("loss", "grad_norm", "lr")}
    bad = [record for record in records if record.get("skipped")]
    return {"step": step + 1, **mean, **(bad[-1] if bad else {}), **stage.told(processes)}


def update(
    stage: Stage | Online,
    weights: Weights,
    micros: Sequence[Any],
    step: int,
    processes: Processes,
    usual: float = math.inf,
    *,
    terms: int | None = None,
    of: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """One update on this process's share of a batch; what the log says of it. usual: the loss of steps before.

    A batch's loss is the mean over its samples in all processes. If it or its gradient is not finite, nothing changes.
    terms: losses in all processes, one a sample if None. of: which of how many updates of the step.
    """
    config: RunConfig = stage.config
    terms = config.batch if terms is None else terms
    parts = []
    for micro in micros:
        with processes.autocast():
            losses = stage.losses(micro, Draws(config.seed, micro.numbers, processes.device))
        # FSDP averages gradients over processes
        (losses.sum() * (processes.count / terms)).backward()  # type: ignore[no-untyped-call]
        parts.append(losses.detach())
    each = processes.gathered(torch.cat(parts).tolist())
    loss = sum(each) / terms
    number, count = of
    norm, rate, changed = weights.update(step * count + number, config.steps * count, loss)
    record: dict[str, Any] = {"step": step + 1, "loss": loss, "grad_norm": norm, "lr": rate}
    if changed and loss <= SPIKE * usual:
        return record
    with processes.together():
        whole = micros if processes.count == 1 or isinstance(stage, Online) else stage.batch(step, range(config.batch))
    # of a rollout each process knows its own alone
    named = list(zip([id for micro in whole for id in micro.ids], each, strict=processes.count == 1))
    if changed:
        worst = sorted(named, key=lambda sample: -sample[1])[:NAMED]
        return record | {"spike": True, "samples": [id for id, _ in worst]}
    spoilt = [id for id, value in named if not math.isfinite(value)]
    return record | {"skipped": True, "samples": spoilt or [id for id, _ in named]}


def _no_way_on(record: Mapping[str, Any], checkpoints: Checkpoints) -> UnipicError:
    return UnipicError(
        f"no finite loss and gradient in {MOST_BAD_STEPS} steps in a row",
        f"step {record['step']}, samples {', '.join(record['samples'][:5])}",
        f"lower the rate, or look at these samples; {checkpoints.named()}",
    )


def _check_sharing(config: RunConfig, processes: int) -> None:
    if config.batch % processes:
        what = f"a batch of {config.batch} cannot be shared by {processes} processes"
        raise BadInput(what, "batch", "give a multiple of the number of processes")
    if processes > 1 and config.stage in ALONE:
        raise BadInput(f"the stage {config.stage} trains in one process", f"{processes} processes", "start one")


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """SIGTERM is noted, and obeyed after the step at work."""
    asked: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
