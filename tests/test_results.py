"""docs/results/pdtr.md: every number is of a run's files; floors and goals as they are said; no page of what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from tests.test_pdtr import RAW
from unipic.config import resolve
from unipic.errors import BadInput
from unipic.evals.score import wilson
from unipic.train.stages import AnyConfig, run_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import curve_sheet
import pdtr_runs
import results

pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real one, of two steps and one; nine items of each part, so that some prompts are novel, and no edits."""
    folder = tmp_path_factory.mktemp("results") / "pdtr"
    grpo = RAW["grpo"] | {"held_out": {"world": {"kind": "world"}}, "log_every": 1}
    raw = RAW | {"grpo": grpo, "evaluate": {"n": 9, "steps": 1}}
    run_recipe(resolve(TypeAdapter(AnyConfig), raw, "test"), folder)
    return folder


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "pdtr"))


def tables(page: str) -> dict[str, list[list[str]]]:
    """Rows of each table by its heading, the first row its columns."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.strip("# ")
        elif line.startswith("|") and "---" not in line:
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_page_says_what_the_files_say(run: Path, tmp_path: Path) -> None:
    results.main([run], tmp_path / "docs" / "results", "a machine of cardboard")
    page = (tmp_path / "docs" / "results" / "pdtr.md").read_text()
    found = tables(page)
    rows = found["`pdtr`: Flow-GRPO on edits, then on text-to-image"][1:]
    assert [row[0] for row in rows] == ["before", "after 1-edit", "after 2-generate"]
    for number, row in enumerate(rows):
        scores = json.loads((run / f"eval-{number}" / "scores.json").read_text())
        expected = [
            None if half[part] is None else (half[part]["overall"], *half["intervals"][part]["overall"])
            for part in ("geneval", "edit")
            for half in (scores, scores["ordinary"], scores["novel"])
        ]
        assert expected[2] is not None  # of novel prompts there are some
        assert expected[5] is None  # of novel edits none
        for said, wanted in zip(row[1:], expected, strict=True):
            if wanted is None:
                assert said == "–"
            else:
                assert [float(n) for n in re.findall(r"[\d.e-]+", said)] == pytest.approx(wanted, rel=5e-3, abs=1e-9)
    learnt = found["While it learnt"]
    lines = [json.loads(line) for line in (run / "1-edit" / "log.jsonl").read_text().splitlines()]
    rewards = [line["reward"] for line in lines if "reward" in line]
    assert len(rewards) == 2
    assert learnt[1][learnt[0].index("`reward`")] == f"{rewards[0]:.3g} → {rewards[-1]:.3g}"
    assert {"single_object", "tone_transfer", "overall"} <= {row[1] for row in found["By tag and type"]}
    assert "a machine of cardboard" in page
    assert "on cpu in float32" in page
    linked = re.findall(r"\]\(\.\./images/(.+?)\)", page)
    assert linked == ["pdtr-curves.png", "pdtr-generate.png", "pdtr-edit.png"]
    for name in linked:
        with Image.open(tmp_path / "docs" / "images" / name) as picture:
            assert picture.width >= 1240
            assert len({*picture.convert("RGB").resize((60, 60)).get_flattened_data()}) > 20


def test_a_page_may_be_made_again_and_changes_nothing_of_the_run(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pages = []
    for _ in range(2):
        results.main([run], tmp_path / "results", "")
        pages.append({path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()})
    assert pages[0] == pages[1]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def scored(run: Path, **of: tuple[float, float, float]) -> None:
    """Put these overall scores into the three evaluations, with the intervals of a hundred items."""
    for number in range(3):
        path = run / f"eval-{number}" / "scores.json"
        scores: dict[str, Any] = json.loads(path.read_text())
        for part, values in of.items():
            best = 10 if part == "edit" else 1
            scores[part]["overall"] = values[number]
            scores["intervals"][part]["overall"] = [best * end for end in wilson(values[number] / best, 100)]
        path.write_text(json.dumps(scores))


@pytest.mark.parametrize(
    ("edit", "geneval", "holds", "reached"),
    [
        # of 100, 0.40 is [0.309, 0.498] and 4.0 of 10 is [3.09, 4.98]
        ((4.0, 6.0, 6.0), (0.4, 0.4, 0.6), [True] * 4, [True, True]),
        ((4.0, 4.9, 4.9), (0.4, 0.4, 0.6), [False, True, True, True], [True, True]),  # a rise within the interval
        ((4.0, 6.0, 6.0), (0.4, 0.3, 0.6), [True, False, True, True], [True, True]),  # it cost too much of the other
        ((4.0, 6.0, 5.1), (0.4, 0.32, 0.45), [True, True, True, True], [False, True]),
        ((4.0, 6.0, 4.4), (0.4, 0.4, 0.6), [True, True, True, False], [True, False]),  # lost again by the second part
        ((4.0, 4.0, 4.0), (0.9, 0.9, 0.93), [False, True, False, True], [True, False]),  # high already
        ((4.0, 4.0, 4.5), (0.1, 0.1, 0.2), [False, True, True, True], [True, True]),  # exactly as much as wanted
    ],
)
def test_floors_and_goals(
    copied: Path,
    edit: tuple[float, float, float],
    geneval: tuple[float, float, float],
    holds: list[bool],
    reached: list[bool],
) -> None:
    scored(copied, edit=edit, geneval=geneval)
    opened = pdtr_runs.opened(copied)
    found = {(each.part.number, each.own): each.holds for each in pdtr_runs.effects(opened)}
    assert [found[key] for key in ((1, True), (1, False), (2, True), (2, False))] == holds
    assert [there for *_, there in results.goals(opened)] == reached
    assert f"**In short**: {sum(all(holds[i : i + 2]) for i in (0, 2))} of 2 parts" in results.heading(opened, "")


def test_changes_are_of_the_same_items(copied: Path) -> None:
    """Prompts rise by 0.25, edits fall by 2 of 10, where a file's scores are put up and down by so much."""
    for number, shift in ((0, {"geneval": 0.25, "edit": 0.5}), (1, {"geneval": 0.5, "edit": 0.3})):
        path = copied / f"eval-{number}" / "verdicts.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [line | {"score": shift.get(line["id"].split("-")[0], 0)} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    found = {each.task: each.change for each in pdtr_runs.effects(pdtr_runs.opened(copied)) if each.part.number == 1}
    assert found["generate"].value == pytest.approx(0.25)
    assert found["edit"].value == pytest.approx(-2)


def test_a_change_is_as_sure_as_its_items_agree() -> None:
    before = {"a": {"1": 0.0, "2": 1.0, "3": 0.0}, "b": {"4": 1.0, "5": 1.0}}
    alike = {group: {id: score + 1 for id, score in items.items()} for group, items in before.items()}
    found = pdtr_runs.change(before, alike)
    assert (found.value, found.low, found.high, found.count) == (1, 1, 1, 5)
    found = pdtr_runs.change(before, {"a": {"1": 1.0, "2": 1.0, "3": 0.0}, "b": {"4": 1.0, "5": 0.0}})
    assert found.value == pytest.approx((1 / 3 - 1 / 2) / 2)  # groups weigh the same
    error = np.sqrt(np.var([1, 0, 0], ddof=1) / 3 + np.var([0, -1], ddof=1) / 2) / 2
    assert found.high - found.value == pytest.approx(1.96 * error, rel=1e-4)
    alone = pdtr_runs.change(before | {"c": {"6": 0.5}}, alike | {"c": {"6": 1.5}})
    assert alone.value == 1
    assert np.isnan([alone.low, alone.high]).all()


def test_a_run_that_asked_one_task_alone_has_a_page_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "pdtr"
    raw = RAW | {"evaluate": {"n": 6, "steps": 1, "parts": ["geneval"]}}
    run_recipe(resolve(TypeAdapter(AnyConfig), raw, "test"), folder)
    results.main([folder], tmp_path / "docs" / "results", "")
    page = (tmp_path / "docs" / "results" / "pdtr.md").read_text()
    assert "asks the same 6 prompts of its test split" in page
    assert "of 1 parts do what is asked" in page
    assert [row[1] for row in tables(page)["What is asked of each part"][1:]] == [
        "text-to-image (the other)",
        "text-to-image (its own)",
    ]
    assert re.findall(r"\]\(\.\./images/(.+?)\)", page) == ["pdtr-curves.png", "pdtr-generate.png"]


def test_minutes_are_what_the_log_adds_up_to(copied: Path) -> None:
    lines = [{"step": 10, "samples_per_s": 4.0}, {"step": 10, "right": 0.5}, {"step": 15, "samples_per_s": 0.5}]
    (copied / "1-edit" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert pdtr_runs.opened(copied).parts[0].minutes() == pytest.approx((10 * 8 / 4 + 5 * 8 / 0.5) / 60)


def test_an_evaluation_s_minutes_are_from_its_first_picture_to_its_last_answer(copied: Path) -> None:
    one = pdtr_runs.opened(copied).evaluations[0]
    for path in (one.folder / "pictures").glob("*.png"):
        os.utime(path, (1000, 1000))
    os.utime(one.folder / "results.jsonl", (1090, 1090))
    assert one.minutes() == pytest.approx(1.5)
    assert re.search(r", 2 \+ \d+ \+ \d+ of evaluation", results.ended(pdtr_runs.opened(copied)))
    shutil.rmtree(one.folder / "pictures")
    assert "of evaluation" not in results.ended(pdtr_runs.opened(copied))


def test_several_orders_stand_side_by_side(run: Path, copied: Path, tmp_path: Path) -> None:
    other = copied.rename(tmp_path / "pdtr-again")
    scored(other, edit=(4.0, 6.0, 6.0), geneval=(0.4, 0.4, 0.6))
    results.main([run, other], tmp_path / "results", "")
    orders = tables((tmp_path / "results" / "pdtr.md").read_text())["The orders"]
    assert [row[0].split(":")[0] for row in orders] == ["after", "before", "`pdtr`", "`pdtr-again`"]
    assert orders[-1][1].startswith("0.6 [")
    assert (tmp_path / "images" / "pdtr-again-curves.png").exists()


def unfinished(run: Path) -> None:
    (run / "config.yaml").unlink()


def without(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def broken(run: Path) -> None:
    (run / "eval-1" / "scores.json").write_text('{"geneval": ')


def of_another_stage(run: Path) -> None:
    shutil.copy(run / "1-edit" / "config.yaml", run / "config.yaml")


def never_judged(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text(re.sub(r"evaluate:\n(  .*\n)+", "evaluate: null\n", path.read_text()))


def without_model(run: Path) -> None:
    shutil.rmtree(run / "2-generate" / "model")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unfinished, "no finished run of PDTR\n.*there is no config.yaml"),
        (without("eval-2/scores.json"), "no finished run of PDTR\n.*eval-2/scores.json"),
        (without("eval-1/verdicts.jsonl"), "no finished run of PDTR\n.*eval-1/verdicts.jsonl"),
        (without("1-edit/log.jsonl"), "no finished run of PDTR\n.*1-edit/log.jsonl"),
        (without_model, "no finished run of PDTR\n.*2-generate/model"),
        (broken, "no JSON\n.*eval-1/scores.json"),
        (of_another_stage, "no run of PDTR\n.*stage: grpo"),
        (never_judged, "was not evaluated\n.*evaluate: null"),
        (shutil.rmtree, "no such folder\n.*pdtr"),
    ],
)
def test_what_is_no_finished_run_gets_no_page(
    copied: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(copied)
    with pytest.raises(BadInput, match=words):
        results.main([copied], tmp_path / "results", "")
    assert not (tmp_path / "results").exists()


def test_runs_of_other_models_are_not_compared(run: Path, copied: Path, tmp_path: Path) -> None:
    other = copied.rename(tmp_path / "other")
    path = other / "eval-0" / "config.yaml"
    path.write_text(re.sub("weights: .*", "weights: abc", path.read_text()))
    with pytest.raises(BadInput, match=r"cannot be compared\n.*weights"):
        results.main([run, other], tmp_path / "results", "")
    with pytest.raises(BadInput, match="the same name"):
        results.main([run, run], tmp_path / "results", "")


def test_a_curve_is_where_its_points_are() -> None:
    """A rising line of the first colour: low on the left, high on the right; one without points says so."""
    rising = curve_sheet.Panel("rises", {"it": [(1, 0.0), (2, None), (3, 1.0)]})
    picture = curve_sheet.sheet([("a part", [rising, curve_sheet.Panel("empty", {})])])
    color = [int(curve_sheet.COLORS[0][0][i : i + 2], 16) for i in (1, 3, 5)]
    spots = [
        (x, y)
        for x in range(curve_sheet.LEFT, curve_sheet.WIDTH)
        for y in range(curve_sheet.HEADING + curve_sheet.TOP - 5, picture.height)
        if max(abs(a - b) for a, b in zip(picture.getpixel((x, y)), color, strict=True)) < 60  # edges are smoothed
    ]
    left, right = min(spots), max(spots)
    assert left[0] < curve_sheet.LEFT + 5
    assert right[0] > curve_sheet.WIDTH - curve_sheet.RIGHT - 5
    assert left[1] - right[1] > 100
    assert picture.size == (2 * curve_sheet.WIDTH, curve_sheet.HEADING + curve_sheet.HEIGHT)
