"""How a run's folder is taken up, and left to be taken up again: the same command goes on at the last checkpoint.

A folder holds one run: its recipe, as resolved, may change only in what does not change what is learnt. Beside the
weights and their averages a checkpoint says what `Weights` cannot: how many of the last steps were bad.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from unipic import config as recipes
from unipic.config import Strict
from unipic.errors import BadInput, TryLater
from unipic.train.checkpointing import Checkpoints
from unipic.train.optim import Weights
from unipic.train.processes import HEARD, Processes

START = "start.sha256"  # in the folder of a part of PDTR: of the weights that it starts from, wherever they lie
HARMLESS = {
    "steps",
    "checkpoint_every",
    "keep",
    "sample_every",
    "log_every",
    "workers",
    "device",
    "micro_batch",
    "rollout_batch",
    "merge",
    "track",
    "show",
    "show_count",
    "save_dtype",
    "gradient_checkpointing",
    "data.cache_gb",
    "data.cache_dir",
}


def begun(run: Path) -> bool:
    """Whether the run has got anywhere."""
    return (run / "model").exists() or any((run / "checkpoints").glob("step_*"))


def finished(run: Path, config: Strict, steps: int) -> bool:
    """Whether the run has so many steps, and its model. Raises BadInput if it has begun with another recipe."""
    saved = run / "config.yaml"
    if not begun(run):
        return False
    if not saved.exists():
        raise BadInput("a model or checkpoints stand where the run's own would", str(run), "give another --run-dir")
    own = {"model"} if (run / START).exists() else set()
    recipes.check_same(saved, config, HARMLESS | _of_rewards(config) | own)
    return (run / "model").exists() and recipes.read_recipe(str(saved))[0]["steps"] >= steps


def settle(run: Path, config: Strict, steps: int) -> bool:
    """Whether the run is finished, with so many steps. If not, its resolved recipe is put into its folder.

    Another recipe does not go on with a run that has got anywhere. The model of one that was finished, and now gets
    more steps, is set aside.
    """
    saved, model = run / "config.yaml", run / "model"
    if finished(run, config, steps):
        return True
    if model.exists():
        former = run / "model.former"
        shutil.rmtree(former, ignore_errors=True)
        model.rename(former)
    for stray in run.glob(".model.*"):  # half written by a run that was killed
        shutil.rmtree(stray, ignore_errors=True)
    recipes.save(config, saved)
    return False


def _of_rewards(config: Strict) -> set[str]:
    """What may change of rewards: where a judge is and what it may cost, for example, but not who it is."""
    return {
        f"{group}.{name}.{key}"
        for group in ("rewards", "held_out")
        for name, reward in getattr(config, group, {}).items()
        for key in getattr(reward, "may_change", ())
    }


def resume(checkpoints: Checkpoints, weights: Weights, processes: Processes, steps: int) -> tuple[int, int]:
    """Steps done, of so many that are wanted, and how many of the last ones were bad."""
    with processes.together():
        found = checkpoints.latest()
        if found is not None and found.step > steps:
            raise BadInput(f"the run has done {found.step} steps already", f"steps: {steps}", "give as many or more")
    if found is None:
        return 0, 0
    weights.load(found.tensors)
    return found.step, found.state["bad"]


def save(checkpoints: Checkpoints, step: int, bad: int, weights: Weights, processes: Processes) -> None:
    """What `resume` reads, by all processes together."""
    files = processes.whole(weights.tensors())
    with processes.together():
        if processes.first:
            checkpoints.save(step, files, {"bad": bad})


@contextmanager
def saved_if_later(before: Callable[[], None] | None, checkpoints: Checkpoints) -> Iterator[None]:
    """If a rollout is to be tried later, in any process, all save the steps before it. before: None if they have."""
    try:
        yield
    except (TryLater, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != TryLater.exit_code:
            raise
        if before:
            before()
        if isinstance(stop, TryLater):
            raise TryLater(stop.what, stop.where, f"{stop.mend}; {checkpoints.named()}") from stop
        time.sleep(HEARD)  # as in `Processes.together`
        raise
