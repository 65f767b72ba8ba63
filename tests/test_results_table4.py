"""`make table4`: rows are real runs, with a judge of their own; what is not finished is said to be missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.runs import SMALL_PDTR
from tests.test_results import tables
from unipic.train.pdtr import PdtrConfig, part_config
from unipic.train.resuming import finished
from unipic.train.stages import read

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import table4

ROOT = Path(__file__).parents[1]

SMALL = [*SMALL_PDTR, "evaluate={n: 2, steps: 1}"]


def command(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    sets = [word for each in SMALL for word in ("--set", each)]
    where = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(ROOT / "scripts" / "table4.py"), *where, *sets, *more]
    return subprocess.run(words, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one row with a judge has run."""
    made = tmp_path_factory.mktemp("table4")
    ended = command(made, "--rows", "judge")
    assert ended.returncode == 0, ended.stderr
    return made


def test_a_row_learns_from_the_judge_and_the_page_names_the_missing(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "runs/judge-0/1-edit/log.jsonl").read_text().splitlines()]
    assert lines[0]["reward/judge/calls"] - lines[0]["reward/judge/failed"] == 4  # a verdict for each of the pictures
    assert lines[0]["missing"] == 0
    page = (folder / "results" / "table4.md").read_text()
    rows = {row[0]: row[1:] for row in tables(page)["Table 4 in the embedded world"]}
    assert list(rows)[1:] == ["none", *table4.ROWS.values()]
    for name, place in (("none", "eval-0"), ("judge", "eval-1")):
        scores = json.loads((folder / "runs" / "judge-0" / place / "scores.json").read_text())
        wanted = (scores["geneval"]["overall"], scores["dense"], scores["edit"]["overall"])
        assert [float(cell.split()[0]) for cell in rows[name][1:]] == pytest.approx(wanted, rel=5e-3)
    assert all(rows[name][1:] == ["not finished"] * 3 for name in rows if name not in ("rewards", "none", "judge"))
    assert "**Not finished**: EditReward (seed 0), GenEval (seed 0), judge + GenEval (seed 0), " in page
    assert "One seed." in page


def test_a_judge_lives_as_long_as_its_block() -> None:
    with suppress(KeyboardInterrupt), table4.judging() as address:
        assert httpx.get(f"{address}/models").status_code == 200
        raise KeyboardInterrupt
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/models")


def test_the_same_command_again_trains_nothing(folder: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    page = (folder / "results" / "table4.md").read_bytes()
    (folder / "results" / "table4.md").unlink()
    assert command(folder, "--rows", "judge").returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == times
    assert (folder / "results" / "table4.md").read_bytes() == page


def test_what_rows_begin_with_alike_is_run_once(folder: Path, tmp_path: Path) -> None:
    """The first part of judge + GenEval is the judge's: as finished there as here, whatever port the judge had."""
    shutil.copytree(folder / "runs" / "judge-0", tmp_path / "judge-0")
    for row, seed in (("judge-geneval", 0), ("geneval", 0), ("geneval", 1)):
        table4.take_over(tmp_path, row, seed, SMALL)
    assert [path.name for path in (tmp_path / "geneval-0").iterdir()] == ["eval-0"]
    assert {path.name for path in (tmp_path / "judge-geneval-0").iterdir()} == {"eval-0", "1-edit", "eval-1"}
    assert not (tmp_path / "geneval-1").exists()
    config = read("tiny/table4-judge-geneval", SMALL)
    assert isinstance(config, PdtrConfig)
    own = part_config(config, config.parts[0], config.grpo.model)
    assert finished(tmp_path / "judge-geneval-0" / "1-edit", own, own.steps)


@pytest.mark.parametrize(
    ("change", "taken"), [("evaluate.n=3", set()), ("grpo.seed=7", {"eval-0"}), ("grpo.model=tiny", set())]
)
def test_what_begins_otherwise_is_not_taken(folder: Path, tmp_path: Path, change: str, taken: set[str]) -> None:
    shutil.copytree(folder / "runs" / "judge-0", tmp_path / "judge-0")
    table4.take_over(tmp_path, "judge-geneval", 0, [*SMALL, change])
    run = tmp_path / "judge-geneval-0"
    assert {path.name for path in run.iterdir()} == taken if taken else not run.exists()


def test_seeds_are_told_as_mean_and_range(folder: Path, tmp_path: Path) -> None:
    """Also those of other commands than the one that writes the page."""
    for seed, value in ((0, 4.0), (3, 5.0)):
        run = Path(shutil.copytree(folder / "runs" / "judge-0", tmp_path / f"judge-{seed}"))
        path = run / "eval-1" / "scores.json"
        scores = json.loads(path.read_text())
        scores["edit"]["overall"] = value
        path.write_text(json.dumps(scores))
    page = table4.page(tmp_path, [0])
    assert re.search(r"\| judge \| 2 \|.*\| 4.5 \(4 to 5\) \|", page)
    assert [row[:2] for row in tables(page)["Every run"][1:]] == [["judge", "0"], ["judge", "3"]]
    assert "GenEval (seed 3)" in page


def test_changes_are_those_of_the_same_items(folder: Path, tmp_path: Path) -> None:
    """Of two edits, of two types, one is made better by half; the others are as they were; descriptions not asked."""
    run = Path(shutil.copytree(folder / "runs" / "judge-0", tmp_path / "judge-0"))
    for place, score in (("eval-0", 0.2), ("eval-1", 0.7)):
        path = run / place / "verdicts.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["score"] = score if line["id"] == "edit-0000" else 0.0
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    changed = tables(table4.page(tmp_path, [0]))["Changes of the same items"][1]
    assert changed == ["judge", "0", "+0", "+0 [+0, +0]", "+2.5"]
    for place in ("eval-0", "eval-1"):
        path = run / place / "scores.json"
        scores = json.loads(path.read_text())
        halves = [half | {"dense": None} for half in (scores["ordinary"], scores["novel"])]
        path.write_text(json.dumps(scores | {"dense": None, "ordinary": halves[0], "novel": halves[1]}))
    changed = tables(table4.page(tmp_path, [0]))["Changes of the same items"][1]
    assert changed[3] == "–"


def test_a_row_that_fails_ends_the_command_with_its_code_and_three_lines(folder: Path) -> None:
    """There is no such EditReward; the rows that were finished stay."""
    page = (folder / "results" / "table4.md").read_bytes()
    more = ["--set", f"parts.0.rewards.edit.model={folder / 'nowhere'}"]
    ended = command(folder, "--rows", "edit-reward", *more)
    assert ended.returncode == 2
    assert str(folder / "nowhere") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (folder / "results" / "table4.md").read_bytes() == page


def test_without_a_finished_row_there_is_no_page(tmp_path: Path) -> None:
    ended = command(tmp_path, "--page")
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 3)
    assert "no row of the table is finished" in ended.stderr
    assert not (tmp_path / "results").exists()
