"""The alarm of reward hacking, on curves whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unipic.train.log import ALARM, RunLog
from unipic.train.watch import WINDOW, Watch


def alarm(trained: np.ndarray, held_out: np.ndarray) -> int | None:
    """The step at which it sounds."""
    watch = Watch()
    return next((i for i, pair in enumerate(zip(trained, held_out, strict=True)) if watch.add(*map(float, pair))), None)


@pytest.mark.parametrize("seed", range(20))
def test_a_rising_reward_with_a_falling_held_out_one_raises_it(seed: int) -> None:
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 60)
    sounded = alarm(0.3 + 0.5 * t + 0.03 * rng.normal(size=60), 0.6 - 0.4 * t + 0.03 * rng.normal(size=60))
    assert sounded is not None
    assert sounded >= 2 * WINDOW - 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("rise", "fall"), [(0.5, -0.3), (0.5, 0.0), (0.5, 0.08), (0.0, 0.4), (-0.3, 0.4), (0.0, 0.0)])
def test_nothing_else_does(seed: int, rise: float, fall: float) -> None:
    """Both rise; one rises alone; the held-out one falls by less than a fifth; both fall; noise."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 60)
    assert alarm(0.5 + rise * t + 0.01 * rng.normal(size=60), 0.6 - fall * t + 0.01 * rng.normal(size=60)) is None


# --- in a run's log ---------------------------------------------------------------------------------------------------

STEPS = 120


def hacked(step: int, task: str) -> dict[str, Any]:
    """What a step says whose reward rises while the held-out one falls by two thirds; edits have far less of both."""
    rng = np.random.default_rng(step)
    scale, share = (0.2 if task == "edit" else 1.0), step / STEPS
    reward, held_out = scale * (0.4 + 0.5 * share), scale * (0.9 - 0.6 * share)
    noisy = {name: value + 0.01 * rng.normal() for name, value in (("reward", reward), ("held_out", held_out))}
    return {"step": step, "loss": 1.0, "task": task, **noisy}


def logged(run: Path, tasks: list[str], stops: list[int]) -> list[int]:
    """A run with stops in it; its alarms as the file has them."""
    config = SimpleNamespace(steps=STEPS, track=[], log_every=10, batch=1, stage="grpo", model_dump=lambda mode: {})
    run.mkdir()
    for start, end in zip([0, *stops], [*stops, STEPS], strict=True):
        with RunLog(run, config, start, first=True) as log:
            for step in range(start + 1, end + 1):
                log.add(hacked(step, tasks[step % len(tasks)]))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line.get("alarm")]


def test_tasks_in_turn_are_watched_each_by_itself(tmp_path: Path) -> None:
    """The difference between them is no chance that an alarm would have to be beyond."""
    both = logged(tmp_path / "both", ["edit", "generate"], [])
    alone = logged(tmp_path / "alone", ["generate"], [])
    assert alone
    assert 0 < min(both) <= 2 * min(alone)


def test_the_first_alarm_is_said_at_once_and_above_all_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr once, and on the run's page, which is written then."""
    pages = []
    report = RunLog.report
    monkeypatch.setattr(RunLog, "report", lambda log: (report(log), pages.append(log.step)))
    alarms = logged(tmp_path / "run", ["edit", "generate"], [])
    assert pages[0] == alarms[0]
    assert len(pages) == 3  # of both tasks, and at the end
    said = [line for line in capsys.readouterr().err.splitlines() if "Alarm" in line]
    first = {("edit", "generate")[step % 2]: step for step in reversed(alarms)}
    assert said == [f"{tmp_path / 'run'}, step {first[task]}, {task}: {ALARM}" for task in sorted(first, key=first.get)]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index(ALARM) < page.index("<svg")
    assert page.index(">Alarms<") < page.index("<svg")


def test_a_stop_changes_no_alarm(tmp_path: Path) -> None:
    whole = logged(tmp_path / "whole", ["generate"], [])
    assert logged(tmp_path / "stopped", ["generate"], [33, 47, 95]) == whole
