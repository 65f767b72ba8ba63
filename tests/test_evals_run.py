"""An evaluation's folder: interrupted anywhere, it ends with the same bytes; and what the command says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runs import Ended, command
from unipic import UniPic
from unipic.errors import BadInput, UnipicError
from unipic.evals import generate, world
from unipic.evals.ledger import Ledger
from unipic.evals.run import evaluate_world
from unipic.pictures import load, settings_of
from unipic.types import Request

N = 9  # a batch and one more
OURS = {"config.yaml", "pictures", "results.jsonl", "verdicts.jsonl", "scores.json", "report.html"}


@pytest.fixture(autouse=True)
def _short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "ANSWER_TOKENS", 4)  # a random model never ends by itself


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, metaquery: UniPic) -> Path:
    """A run that nothing interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "ANSWER_TOKENS", 4)
        folder = tmp_path_factory.mktemp("whole") / "run"
        evaluate_world(metaquery, folder, n=N, steps=1)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


class Counting:
    """The model, and what it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seeds: list[int] = []
        self.questions: list[str] = []
        run, describe = UniPic.run, UniPic.describe

        def counted(system: UniPic, requests: Sequence[Request], **more: Any) -> Any:
            self.seeds += [request.seed for request in requests]
            return run(system, requests, **more)

        def told(system: UniPic, picture: Any, question: str, **more: Any) -> str:
            self.questions.append(question)
            return describe(system, picture, question, **more)

        monkeypatch.setattr(UniPic, "run", counted)
        monkeypatch.setattr(UniPic, "describe", told)


def test_a_run_leaves_a_picture_or_an_answer_for_every_item(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == OURS
    records, items = lines(whole), world.items(0, N)
    assert [record["id"] for record in records] == [item.id for item in items]
    for record, item in zip(records, items, strict=True):
        assert record["text"] == item.text
        if item.task == "describe":
            assert isinstance(record["answer"], str)
        else:
            assert load(whole / record["picture"]).size == item.size
            settings = settings_of(whole / record["picture"])
            assert (settings["prompt"], settings["seed"], settings["steps"]) == (item.text, item.seed, 1)
    assert len(list((whole / "pictures").iterdir())) == 3 * N
    verdicts = [json.loads(line) for line in (whole / "verdicts.jsonl").read_text().splitlines()]
    assert [verdict["id"] for verdict in verdicts] == [item.id for item in items]
    scores = json.loads((whole / "scores.json").read_text())
    ours = [v["score"] for v in verdicts if v["id"].startswith("dense")]
    assert scores["dense"] == pytest.approx(np.mean(ours), abs=1e-4)


def test_the_same_call_again_asks_for_nothing_and_changes_nothing(
    whole: Path, tmp_path: Path, metaquery: UniPic, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counting(monkeypatch)
    run = shutil.copytree(whole, tmp_path / "run")
    evaluate_world(metaquery, run, n=N, steps=1)
    assert asked.seeds == asked.questions == []
    assert files(run) == files(whole)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.52, 0.93, 0.999])
def test_cut_off_anywhere_a_run_ends_with_the_same_bytes(
    share: float, whole: Path, tmp_path: Path, metaquery: UniPic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results' file at a length that a crash may leave, in the midst of a line or not, and no later picture."""
    run = shutil.copytree(whole, tmp_path / "run")
    content = (whole / "results.jsonl").read_bytes()
    kept = content[: int(share * len(content))]
    (run / "results.jsonl").write_bytes(kept)
    done = [json.loads(line)["id"] for line in kept.splitlines(keepends=True) if line.endswith(b"\n")]
    for path in (run / "pictures").iterdir():
        if path.stem not in done:
            path.unlink()
    for name in ("verdicts.jsonl", "scores.json", "report.html"):
        (run / name).unlink()
    asked = Counting(monkeypatch)
    evaluate_world(metaquery, run, n=N, steps=1)
    assert files(run) == files(whole)
    items = world.items(0, N)
    batches = [batch for batch in generate.batches(items) if not {item.id for item in batch} <= set(done)]
    assert asked.seeds == [item.seed for batch in batches for item in batch if item.task != "describe"]
    assert asked.questions == [item.text for item in items if item.task == "describe" and item.id not in done]


def test_a_picture_that_was_lost_is_drawn_again(whole: Path, tmp_path: Path, metaquery: UniPic) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "pictures" / "edit-0003.png").unlink()
    evaluate_world(metaquery, run, n=N, steps=1)
    assert files(run) == files(whole)


def killed(folder: Path, run: Path, after: float, *arguments: object) -> Ended:
    """The command, killed so many seconds after its first result."""

    def before() -> None:
        generate.ANSWER_TOKENS = 4

    child = command(folder, "eval", "world", "--n", N, "--steps", 1, "--run-dir", run, *arguments, before=before)
    if after < 60:
        while not list(run.glob("pictures/*")):
            time.sleep(0.002)
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
    return child.end()


def test_killed_again_and_again_a_run_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for after in (0.0, 0.15, 0.4):
        assert killed(tmp_path, run, after).code in (-signal.SIGKILL, 0)
    ended = killed(tmp_path, run, 60, "--json")
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert json.loads(ended.out) == json.loads((whole / "scores.json").read_text())
    left = {name: content for name, content in files(run).items() if Path(name).name[0] != "."}  # half written aside
    assert left == files(whole)


def test_one_evaluation_at_a_time_is_at_work_in_a_folder(tmp_path: Path, kontext: UniPic) -> None:
    with Ledger(tmp_path / "results.jsonl"), pytest.raises(BadInput, match="another evaluation is at work"):
        evaluate_world(kontext, tmp_path, n=1, steps=1)


@pytest.mark.parametrize(
    "change", [{"n": N + 1}, {"seed": 1}, {"steps": 2}, {"control": True}, {"guidance_scale": 4.0}]
)
def test_a_run_goes_on_as_it_was_started_or_not_at_all(change: Any, whole: Path, metaquery: UniPic) -> None:
    before = files(whole)
    with pytest.raises(BadInput, match="the run was started with") as caught:
        evaluate_world(metaquery, whole, **{"n": N, "steps": 1, **change})
    assert next(iter(change)) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3
    assert files(whole) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, kontext: UniPic) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadInput, match="holds something else"):
        evaluate_world(kontext, tmp_path, n=1, steps=1)


@pytest.mark.parametrize(
    "line", [b"{}\n", b"[1]\n", b"\n", b'{"id": 1, "text": ""}\n', b"\xff\n", b"[" * 10_000 + b"\n"]
)
def test_a_broken_line_is_named(line: bytes, whole: Path, tmp_path: Path, metaquery: UniPic) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    with (run / "results.jsonl").open("ab") as file:
        file.write(line)
    with pytest.raises(UnipicError, match=f"line {4 * N + 1}"):
        evaluate_world(metaquery, run, n=N, steps=1)


def test_results_of_other_items_are_refused(whole: Path, tmp_path: Path, metaquery: UniPic) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    content = (run / "results.jsonl").read_text()
    (run / "results.jsonl").write_text(content.replace(lines(run)[0]["text"], "a photo of a rhombus"))
    with pytest.raises(BadInput, match="another version"):
        evaluate_world(metaquery, run, n=N, steps=1)


# --- the control, and models that do not see --------------------------------------------------------------------------


def test_the_control_is_asked_without_what_the_task_needs(
    tmp_path: Path, metaquery: UniPic, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Request] = []
    shown: list[Image.Image] = []

    def run(_: UniPic, asked: Sequence[Request], **more: Any) -> list[Image.Image]:
        requests.extend(asked)
        return [Image.new("RGB", (request.width, request.height)) for request in asked]

    def describe(_: UniPic, picture: Image.Image, question: str, **more: Any) -> str:
        shown.append(picture)
        return "yes"

    monkeypatch.setattr(UniPic, "run", run)
    monkeypatch.setattr(UniPic, "describe", describe)
    scores, _ = evaluate_world(metaquery, tmp_path / "control", n=4, control=True)
    items = world.items(0, 4)
    drawn = [item for item in items if item.task != "describe"]
    assert [r.prompt for r in requests] == [item.text if item.task == "edit" else "" for item in drawn]
    assert [r.references for r in requests] == [()] * 12
    assert [r.seed for r in requests] == [item.seed for item in drawn]
    assert [p.getcolors() for p in shown] == [[(p.width * p.height, generate.GREY)] for p in shown]
    assert len(shown) == 4
    assert scores["control"] is True
    requests.clear()
    evaluate_world(metaquery, tmp_path / "plain", n=4)
    assert [r.prompt for r in requests] == [item.text for item in drawn]
    assert [r.references for r in requests] == [(item.picture,) if item.task == "edit" else () for item in drawn]


def test_the_control_really_draws(tmp_path: Path, system: UniPic) -> None:
    evaluate_world(system, tmp_path / "run", n=2, steps=1, control=True)
    assert settings_of(tmp_path / "run" / "pictures" / "geneval-0001.png")["prompt"] == ""
    settings = settings_of(tmp_path / "run" / "pictures" / "edit-0001.png")
    assert settings["prompt"] == world.draw(0, "edit", 1).text
    assert "references" not in settings


def test_a_model_that_cannot_describe_is_not_asked_to(tmp_path: Path) -> None:
    arguments = ["--model", "tiny-kontext", "--n", 2, "--steps", 1, "--run-dir", tmp_path / "run"]
    ended = command(tmp_path, "eval", "world", *arguments, "--json").end()
    assert ended.code == 0, ended.err
    scores = json.loads(ended.out)
    assert scores["understanding"] is None
    assert scores["intervals"]["understanding"] is None
    assert isinstance(scores["geneval"]["overall"], float)
    assert scores["edit"].keys() == {"sc", "pq", "overall", *world.GROUPS["edit"]}
    assert [record["id"] for record in lines(tmp_path / "run")] == [
        f"{part}-{i:04}" for part in ("geneval", "edit", "dense") for i in range(2)
    ]
    ended = command(
        tmp_path, "eval", "world", *arguments, "--part", "understanding", "--run-dir", tmp_path / "no"
    ).end()
    assert ended.code == 2
    assert "tiny-kontext does not answer questions" in ended.err
    table = command(tmp_path, "eval", "world", *arguments).end()
    assert table.err == ""
    assert table.out.splitlines()[0].split() == ["part", "of", "items", "score", "ordinary", "novel"]
    assert str(tmp_path / "run" / "report.html") in table.out


def test_some_groups_alone_are_the_same_items(tmp_path: Path) -> None:
    arguments = ["--model", "tiny-kontext", "--n", 24, "--steps", 1, "--part", "edit", "--group"]
    ended = command(tmp_path, "eval", "world", *arguments, "extract", "--run-dir", tmp_path / "run", "--json").end()
    assert ended.code == 0, ended.err
    of = [item.id for item in world.items(0, 24, ["edit"]) if item.group == "extract"]
    assert [record["id"] for record in lines(tmp_path / "run")] == of
    scores = json.loads(ended.out)
    assert scores["edit"]["overall"] == scores["edit"]["extract"]
    assert scores["edit"]["motion_change"] is None
    assert scores["counts"]["edit"]["overall"] == len(of) == 2
    assert scores["groups"] == ["extract"]
    for group, said in (("extracts", "there is no group extracts"), ("counting", "groups counting of edit")):
        ended = command(tmp_path, "eval", "world", *arguments, group, "--run-dir", tmp_path / "no").end()
        assert ended.code == 2
        assert said in ended.err
        assert len(ended.err.splitlines()) <= 3
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    "arguments",
    [("--n", 0), ("--n", 10**9), ("--seed", -1), ("--steps", 0), ("--guidance-scale", "nan"), ("--device", "tpu")],
)
def test_bad_numbers_are_refused_before_a_folder_is_made(arguments: tuple[object, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = command(tmp_path, "eval", "world", "--model", "tiny-kontext", "--n", 1, *arguments, "--run-dir", run).end()
    assert ended.code == 2
    assert 0 < len(ended.err.splitlines()) <= 3
    assert not run.exists()


def test_a_full_disk_is_said_in_three_lines(
    tmp_path: Path, kontext: UniPic, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Ledger(tmp_path / "results.jsonl") as ledger:
        monkeypatch.setattr(os, "write", refuse)
        with pytest.raises(UnipicError, match="No space left") as caught:
            ledger.add([{"id": "a", "text": "b"}])
        monkeypatch.undo()
    assert len(str(caught.value).splitlines()) == 3
    assert ledger.records == {}


def test_a_folder_of_others_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"id": "mine"')
    with pytest.raises(BadInput, match="the folder holds something else"):
        evaluate_world(UniPic.from_pretrained("tiny-kontext"), tmp_path, n=1)
    assert [p.name for p in tmp_path.iterdir()] == ["results.jsonl"]
    assert (tmp_path / "results.jsonl").read_text() == '{"id": "mine"'
