"""A rollout that is to be tried later leaves the steps before it in a checkpoint, in one process and in several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.runs import Child, Points, Toy, files, launch, records
from unipic.errors import BadInput, TryLater
from unipic.train.lines import read_lines
from unipic.train.loop import Update, train
from unipic.train.processes import Processes


class Rolling(Toy):
    """A toy whose rollouts fail from a step on, in one of its processes."""

    def __init__(
        self, fails: int | None = None, where: int = 0, error: Exception | None = None, **changes: Any
    ) -> None:
        super().__init__(**{"steps": 5, "checkpoint_every": 0} | changes)
        self.fails, self.where = fails, where
        self.error = error or TryLater("the judge is away", "there", "wait")

    def rollout(self, micros: Sequence[Points], step: int, processes: Processes) -> list[Update]:
        with processes.together():
            if step == self.fails and processes.rank == self.where:
                raise self.error
        return [Update(micros, self.config.batch)] * 2

    def told(self, processes: Processes) -> dict[str, Any]:
        return {}


def steps(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else []


def test_a_pause_saves_the_steps_before_it_and_loses_none(tmp_path: Path) -> None:
    train(Rolling(), tmp_path / "whole")
    run = tmp_path / "run"
    with pytest.raises(TryLater, match="there is no checkpoint yet"):
        train(Rolling(fails=0), run)
    assert steps(run) == []
    with pytest.raises(TryLater, match=r"the judge is away\nthere\nwait; .*step_00000003"):
        train(Rolling(fails=3), run)
    assert steps(run) == ["step_00000003"]
    written = (run / "checkpoints" / "step_00000003" / "manifest.json").stat().st_mtime_ns
    with pytest.raises(TryLater, match="step_00000003"):
        train(Rolling(fails=3), run)
    assert (run / "checkpoints" / "step_00000003" / "manifest.json").stat().st_mtime_ns == written
    train(Rolling(), run)
    assert files(run, 5) == files(tmp_path / "whole", 5)
    assert records(run) == records(tmp_path / "whole")


def test_what_reinforcement_begins_with_is_shown_once(tmp_path: Path) -> None:
    """Also where the first rollout failed, and was tried again."""
    with pytest.raises(TryLater):
        train(Rolling(fails=0, sample_every=3), tmp_path / "run")
    train(Rolling(sample_every=3), tmp_path / "run")
    lines = read_lines(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in lines if "right" in line] == [0, 3, 5]
    grids = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert grids == [f"step_0000000{step}.png" for step in (0, 3, 5)]


def test_other_failures_save_nothing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="broken"):
        train(Rolling(fails=2, error=BadInput("broken", "there", "mend it")), tmp_path / "run")
    assert steps(tmp_path / "run") == []


@pytest.mark.parametrize("where", [0, 1])
def test_a_pause_of_one_process_pauses_all(where: int, tmp_path: Path) -> None:
    def start(fails: int | None, run: Path) -> list[Child]:
        return launch(tmp_path, 2, lambda _: train(Rolling(fails, where), run))

    assert [child.end().code for child in start(None, tmp_path / "whole")] == [0, 0]
    ended = [child.end() for child in start(2, tmp_path / "run")]
    assert [each.code for each in ended] == [75, 75], ended
    assert [len(each.err.splitlines()) for each in ended] == ([3, 0] if where == 0 else [0, 3])
    assert "step_00000002" in ended[where].err
    assert steps(tmp_path / "run") == ["step_00000002"]
    assert [child.end().code for child in start(None, tmp_path / "run")] == [0, 0]
    assert files(tmp_path / "run", 5) == files(tmp_path / "whole", 5)
