"""EditReward in training: its loss, its data, its figures of agreement, and what makes the data."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import Toy, files, records, stage_from
from unipic.data.scored import edited, read_scored
from unipic.errors import BadInput, TryLater, UnipicError
from unipic.evals.agreement import agreement, calibration, pairs_right, pearson, ranks, spearman
from unipic.models.checkpoint import read_component
from unipic.models.find import find_model
from unipic.models.reward_model import load_reward_model
from unipic.rewards.reward import Sample, WeightedSum
from unipic.train import edit_scores
from unipic.train.edit_scores import make_scores
from unipic.train.loop import train
from unipic.train.processes import Processes
from unipic.train.reward import squared_errors
from unipic.train.stages import read, run_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import agreement as script

CPU = torch.device("cpu")
SCORES: dict[str, Any] = {
    "stage": "edit-scores",
    "model": "tiny",
    "train": {"edits": 4, "source": {"kind": "world"}},
    "test": {"edits": 3, "source": {"kind": "world", "split": "test"}},
    "results": 3,
    "mix": {"sampled": 0, "target": 1, "source": 1, "spoilt": 2, "misled": 1, "other": 1},
    "judge": {"instruction_following": {"kind": "world", "mark": "sc"}, "quality": {"kind": "world", "mark": "pq"}},
    "resolution": 64,
    "batch": 2,
    "steps": 1,
    "device": "cpu",
}
REWARD: dict[str, Any] = {
    "stage": "edit-reward",
    "model": "tiny",
    "steps": 4,
    "batch": 4,
    "optimizer": {"lr": 1e-3, "schedule": "constant"},
    "checkpoint_every": 2,
    "sample_every": 2,
    "log_every": 1,
    "device": "cpu",
}
LORA = {"rank": 4, "alpha": 8.0}


def config_of(folder: Path, raw: Mapping[str, Any]) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(raw))
    return read(str(path))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores")
    return run_recipe(config_of(folder, SCORES), folder / "run")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_square_of_what_is_scored() -> None:
    scores = torch.tensor([[8.0, 6.0, 7.0], [math.nan, 2.0, math.nan]])
    predicted = torch.tensor([[0.5, 0.7, 0.7], [9.0, 0.5, 9.0]], requires_grad=True)
    losses = squared_errors(predicted, scores)
    assert losses.tolist() == pytest.approx([(0.3**2 + 0.1**2) / 3, 0.3**2])
    losses.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad[1].tolist() == pytest.approx([0, 0.6, 0])


def test_beyond_the_ends_of_the_scale_nothing_is_wrong_where_scores_are_censored() -> None:
    scores = torch.tensor([[0.0, 0.0, 5.0], [10.0, 10.0, math.nan]])
    predicted = torch.tensor([[-0.4, 0.3, -0.1], [1.3, 0.8, 7.0]], requires_grad=True)
    losses = squared_errors(predicted, scores, censored=True)
    assert losses.tolist() == pytest.approx([(0.3**2 + 0.6**2) / 3, 0.2**2 / 2])
    losses.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [pytest.approx([0, 0.2, -0.4]), pytest.approx([0, -0.2, 0])]


def test_a_stage_s_losses_are_of_its_model_s_scores(data: Path) -> None:
    stage: Any = stage_from(REWARD | {"data": {"path": str(data)}, "batch": 6, "micro_batch": 4})
    stage.place(Processes("cpu", "fp32"))
    micros = stage.batch(1, range(6))
    assert [len(micro.ids) for micro in micros] == [4, 2]
    for micro in micros:
        by_id = {edit.id: edit for edit in stage.samples}
        with torch.no_grad():
            losses = stage.losses(micro, None)
            for loss, id in zip(losses.tolist(), micro.ids, strict=True):
                predicted = stage.model.predict(edited([by_id[id]]), shared=False)[0]
                wanted = (predicted - torch.tensor(by_id[id].scores) / 10).square().mean()
                assert loss == pytest.approx(float(wanted), rel=1e-4)


def test_an_epoch_shows_every_sample_once_and_groups_together(data: Path) -> None:
    stage: Any = stage_from(REWARD | {"data": {"path": str(data)}})
    count = len(stage.samples)
    epochs = [[stage._order(epoch)[i] for i in range(count)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        groups = [stage.samples[i].group for i in epoch]
        assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1


@pytest.mark.parametrize("changes", [{"vision": True}, {"lora": LORA}, {"gradient_checkpointing": True}])
def test_a_few_steps_lower_the_loss(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """On eight samples, in 24 steps; what is exported says the same as the model in training."""
    few, eight = tmp_path / "few", lines(data / "train.jsonl")[:8]
    (few / "pictures").mkdir(parents=True)
    (few / "train.jsonl").write_text("\n".join(map(json.dumps, eight)))
    for name in {line[key] for line in eight for key in ("source", "result")}:
        shutil.copy(data / name, few / name)
    raw = REWARD | {"data": {"path": str(few), "held_out": 0.0}, "steps": 24, "batch": 8, "sample_every": 0, **changes}
    rate = {"lr": 1e-2 if "lora" in changes else 1e-3, "schedule": "cosine", "warmup": 2}
    stage: Any = stage_from(raw | {"optimizer": rate})
    model = train(stage, tmp_path / "run")
    losses = [record["loss"] for record in records(tmp_path / "run")]
    assert losses[-1] < 0.5 * losses[0], losses
    edits = edited(stage.samples)
    with torch.no_grad():
        mine = stage.model.predict(edits).clamp(0, 1) * 10
    loaded = load_reward_model(find_model(str(model)), torch.float32, CPU)
    torch.testing.assert_close(loaded.score(edits), mine, rtol=1e-3, atol=1e-3)
    again: Any = stage_from(raw | {"model": str(model)})  # goes on with the head it has
    again.place(Processes("cpu", "fp32"))
    torch.testing.assert_close(again.model.score(edits), mine, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["paper/edit-reward", "paper/edit-reward-full"])
def test_a_paper_recipe_trains_once_its_model_is_tiny(data: Path, tmp_path: Path, name: str) -> None:
    """The language model changes, by adapters or whole; its eye does not."""
    small = ["model=tiny", "steps=1", "batch=2", "micro_batch=1", "workers=0", "dtype=fp32", "device=cpu"]
    config = read(name, [f"data.path={data}", *small, "optimizer.warmup=0", "save_dtype=fp32", "sample_every=0"])
    assert (config.lora is None) == (name == "paper/edit-reward-full")
    new, old = find_model(str(run_recipe(config, tmp_path / "run"))), find_model("tiny")
    before, after = (read_component(folder, "mllm", torch.float32) for folder in (old, new))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    layers = {key for key in changed if ".layers." in key}
    assert not {key for key in changed if "visual" in key}
    assert layers
    assert (layers == changed) == (config.lora is not None)


def test_a_run_in_two_halves_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    raw = REWARD | {"data": {"path": str(data)}, "lora": LORA, "ema": {"decay": 0.9}}
    train(stage_from(raw), tmp_path / "whole")
    train(stage_from(raw | {"steps": 2}), tmp_path / "halves")
    train(stage_from(raw), tmp_path / "halves")
    assert files(tmp_path / "whole", 4) == files(tmp_path / "halves", 4)
    assert records(tmp_path / "whole") == records(tmp_path / "halves")


def test_the_log_and_the_report_tell_of_agreement(data: Path, tmp_path: Path) -> None:
    stage: Any = stage_from(REWARD | {"data": {"path": str(data)}, "steps": 2})
    train(stage, tmp_path / "run")
    (line,) = [line for line in lines(tmp_path / "run" / "log.jsonl") if "spearman/overall" in line]
    judged = np.array([edit.scores for edit in stage.examined.edits])
    predicted = stage.model.score(edited(stage.examined.edits)).numpy()
    assert len(judged) == 9
    assert line["spearman/overall"] == pytest.approx(spearman(predicted[:, 2], judged[:, 2]), abs=1e-3)
    unbounded = stage.model.score(edited(stage.examined.edits), bounded=False).numpy()[:, 2]
    assert line["off/overall_as_reward"] == pytest.approx(np.abs(unbounded - judged[:, 2]).mean(), abs=1e-3)
    assert line["off/quality"] == pytest.approx(np.abs(predicted - judged)[:, 1].mean(), abs=1e-3)
    page = (tmp_path / "run" / "report.html").read_text()
    for said in (
        "Agreement with the judge",
        "By how they were made",
        "Calibration",
        "The largest mistakes",
        "predicted",
    ):
        assert said in page
    making, kinds = stage.examined.by_making(), np.array([edit.made for edit in stage.examined.edits])
    assert {kind: own["results"] for kind, own in making.items()} == Counter(kinds.tolist())
    for kind, own in making.items():
        assert own["judged"] == pytest.approx(judged[kinds == kind, 2].mean())
        assert own["off"] == pytest.approx(np.abs(predicted - judged)[kinds == kind, 2].mean(), abs=1e-3)
    worst = stage.examined.worst()
    assert np.abs(stage.examined.predicted - stage.examined.judged).max(1).argmax() == worst[0]
    assert page.count("<img") > 2 * len(worst)


def test_the_script_s_tables_are_the_log_s_figures(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train(stage_from(REWARD | {"data": {"path": str(data)}, "steps": 2}), tmp_path / "run")
    (line,) = [line for line in lines(tmp_path / "run" / "log.jsonl") if "spearman/overall" in line]
    script.main(str(model), str(data))
    rows = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in capsys.readouterr().out.splitlines()]
    names = next(row for row in rows if "spearman" in row)
    for output in ("quality", "overall_as_reward"):
        (row,) = [row for row in rows if row[0] == output]
        for name in ("pairs", "off"):
            assert float(row[names.index(name)]) == pytest.approx(line[f"{name}/{output}"], rel=6e-3)
    assert {"target", "source"} & {row[0] for row in rows}


def test_a_stage_without_more_to_tell_is_as_it_was(tmp_path: Path) -> None:
    train(Toy(sample_every=5), tmp_path / "run")
    assert "spearman" not in (tmp_path / "run" / "log.jsonl").read_text()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_correlations_by_hand() -> None:
    assert pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    assert ranks([30, 10, 10, 50]).tolist() == [3, 1.5, 1.5, 4]
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 − 6Σd²/(n(n²−1))
    assert spearman([1, 2, 3], [1, 100, 10_000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4), centred: 4.5 / √(4.5 · 5)
    assert spearman([0, 5, 5, 9], [0, 1, 2, 3]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert math.isnan(pearson([1, 1, 1], [1, 2, 3]))


def test_pairs_by_hand() -> None:
    judged, predicted = [0, 5, 5, 10], [1, 2, 1, 3]
    # five pairs differ: (0,5) right, (0,5) tied, (0,10) right, (5,10) right, (5,10) right
    assert pairs_right(predicted, judged) == pytest.approx(4.5 / 5)
    assert pairs_right(predicted, judged, ["a", "a", "b", "b"]) == 1
    assert pairs_right(predicted, judged, ["a", "b", "a", "b"]) == pytest.approx(1.5 / 2)
    assert math.isnan(pairs_right([1, 2], [3, 3]))
    rng = np.random.default_rng(0)
    p, j = rng.normal(size=40), rng.integers(0, 4, 40)
    told = [(a, b) for a in range(40) for b in range(a) if j[a] != j[b]]
    wanted = np.mean([(p[a] - p[b]) * (j[a] - j[b]) > 0 for a, b in told])
    assert pairs_right(p, j) == pytest.approx(wanted)


def test_calibration_and_what_is_missing() -> None:
    assert calibration([4, 1, 3, 2], [40, 10, 30, 20], bins=2) == [(1.5, 15), (3.5, 35)]
    assert calibration([1.0], [2.0]) == [(1, 2)]
    figures = agreement([1, 2, 3, 9], [2, 4, 6, math.nan], list("abcd"))
    assert figures == pytest.approx({"pearson": 1, "spearman": 1, "pairs": 1, "off": 2})  # no group has pairs
    assert agreement([1], [math.nan], ["a"]) == {}


# --- data -------------------------------------------------------------------------------------------------------------

GOOD = {"source": "a.png", "instruction": "make it blue", "result": "b.png", "scores": {"quality": 4}}


def folder_of(folder: Path, *entries: Any, name: str = "train.jsonl") -> Path:
    for i, letter in enumerate("abcd"):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(folder / f"{letter}.png")
    texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / name).write_text("\n".join(texts) + "\n")
    return folder


def test_lines_are_read_and_grouped(tmp_path: Path) -> None:
    full = {"scores": {"instruction_following": 4, "quality": 9}}
    own = {"scores": {"instruction_following": 4, "quality": 9, "overall": 2.5}}
    folder_of(tmp_path, GOOD, GOOD | full | {"instruction": "other"}, "", GOOD | own | {"result": "c.png", "id": "x"})
    train_, test = read_scored(tmp_path, 0.0)
    assert [edit.id for edit in train_] == ["1", "x", "2"]
    assert test == []
    assert np.array([e.scores for e in train_]) == pytest.approx(
        np.array([[math.nan, 4, math.nan], [4, 9, 2.5], [4, 9, 6]]), nan_ok=True
    )
    first, second = edited(train_)
    assert [len(first.results), len(second.results)] == [2, 1]
    assert first.results[1].getpixel((0, 0)) == (80, 0, 0)


BAD = [
    ("{", "the line is no JSON"),
    ("[1]", "the line is no JSON object"),
    ({k: v for k, v in GOOD.items() if k != "result"}, '"result" is missing'),
    (GOOD | {"instruction": " "}, "the instruction is empty"),
    (GOOD | {"source": "none.png"}, "there is no such picture"),
    (GOOD | {"source": "../a.png"}, "leads out of the folder"),
    (GOOD | {"result": ["b.png"]}, '"result" must name a picture'),
    (GOOD | {"scores": 4}, '"scores" must be an object'),
    (GOOD | {"scores": {}}, "there is no score"),
    (GOOD | {"scores": {"qualty": 4}}, "there is no score 'qualty'"),
    (GOOD | {"scores": {"quality": 11}}, "no number from 0 to 10"),
    (GOOD | {"scores": {"quality": True}}, "no number from 0 to 10"),
    (GOOD | {"scores": {"quality": "4"}}, "no number from 0 to 10"),
    (GOOD | {"scores": {"quality": math.nan}}, "no number from 0 to 10"),
    (GOOD | {"id": "1"}, "the same id as line 1"),
    (GOOD | {"id": 7}, "the id is not text"),
    (GOOD | {"made": 7}, '"made" is not text'),
]


@pytest.mark.parametrize(("entry", "said"), BAD)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, entry: Any, said: str) -> None:
    folder_of(tmp_path, GOOD, "", entry)
    with pytest.raises(BadInput) as refusal:
        stage_from(REWARD | {"data": {"path": str(tmp_path)}})
    assert said in refusal.value.what
    assert refusal.value.where == f"{tmp_path / 'train.jsonl'}, line 3"
    assert len(str(refusal.value).splitlines()) == 3


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    folder_of(tmp_path, GOOD)
    (tmp_path / "in/a.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "in/train.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(BadInput, match="leads out of the folder"):
        read_scored(tmp_path / "in", 0.0)


def test_splits_that_share_an_edit_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, GOOD)
    folder_of(tmp_path, GOOD | {"instruction": "another"}, name="test.jsonl")
    assert len(read_scored(tmp_path, 0.5)[1]) == 1
    folder_of(tmp_path, GOOD | {"result": "c.png"}, name="test.jsonl")
    with pytest.raises(BadInput, match=r"learnt from and held out, such as of a\.png: make it blue"):
        read_scored(tmp_path, 0.5)
    with pytest.raises(BadInput, match="cannot be read"):
        read_scored(tmp_path / "nowhere", 0.5)


def test_without_a_test_file_sources_are_held_out(tmp_path: Path) -> None:
    entries = []
    for i in range(60):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{i}.png")
        entries += [GOOD | {"source": f"{i}.png", "result": f"{i}.png", "instruction": said} for said in ("x", "y")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, entries)))
    train_, test = read_scored(tmp_path, 0.3)
    assert len(train_) + len(test) == 120
    assert 0.1 < len(test) / 120 < 0.5
    assert not {edit.source for edit in train_} & {edit.source for edit in test}


# --- the maker --------------------------------------------------------------------------------------------------------


def test_the_maker_s_lines_and_pictures(data: Path) -> None:
    for split, edits in (("train", 4), ("test", 3)):
        own = lines(data / f"{split}.jsonl")
        assert [line["id"] for line in own] == [f"{split}-{e:06d}-{i}" for e in range(edits) for i in range(3)]
        for line in own:
            source, result = (np.asarray(Image.open(data / line[key])) for key in ("source", "result"))
            assert source.shape == result.shape
            assert (line["made"] == "source") == bool((source == result).all())
            sc, pq = line["scores"]["instruction_following"], line["scores"]["quality"]
            if line["made"] == "target":
                assert min(sc, pq) > 9.5
            if line["made"] == "source":
                assert sc < 10
                assert pq > 9.5
    both = lines(data / "train.jsonl") + lines(data / "test.jsonl")
    assert len(Counter(line["made"] for line in both)) >= 3
    assert "Scored edits" in (data.parent / "report.html").read_text()
    train_, test = read_scored(data, 0.0)
    assert (len(train_), len(test)) == (12, 9)


@dataclass
class Counting:
    """The world's verdicts, which fail where they are told to; and what was asked."""

    of: WeightedSum
    asked: list[str]
    fails: int

    def score(self, samples: list[Sample]) -> Any:
        scores = self.of.score(samples)
        for part in scores.parts.values():
            for i, sample in enumerate(samples):
                self.asked.append(f"{sample.text} {hash(sample.picture.tobytes())}")
                if len(self.asked) % 4 == self.fails:
                    part[i] = None
        return scores


def test_the_same_command_goes_on_and_judges_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, asked, opened = config_of(tmp_path, SCORES), [], edit_scores.opened
    fails = 0
    monkeypatch.setattr(edit_scores, "opened", lambda rewards: Counting(opened(rewards), asked, fails))
    with pytest.raises(TryLater, match="without a score") as refusal:
        make_scores(config, tmp_path / "run")
    assert refusal.value.exit_code == 75
    wanted = (data / "train.jsonl").read_text().splitlines()
    half = (tmp_path / "run/data/train.jsonl").read_text().splitlines()
    assert 0 < len(half) < len(wanted)
    assert set(half) < set(wanted)  # what has no score has no line, and never a 0
    with (tmp_path / "run/data/train.jsonl").open("a") as file:
        file.write('{"id": "train-0000')  # a crash
    fails = -1
    first = len(asked)
    make_scores(config, tmp_path / "run")
    for name in ("train.jsonl", "test.jsonl"):
        got, all_ = (sorted((folder / name).read_text().splitlines()) for folder in (tmp_path / "run/data", data))
        assert got == all_
    assert len(asked) - first < first
    again = len(asked)
    make_scores(config, tmp_path / "run")
    assert len(asked) == again
    for path in (data / "pictures").iterdir():
        assert (tmp_path / "run/data/pictures" / path.name).read_bytes() == path.read_bytes()
    more = config.model_copy(update={"train": config.train.model_copy(update={"edits": 5})})
    make_scores(more, tmp_path / "run")
    longer = lines(tmp_path / "run/data/train.jsonl")
    assert [line["id"] for line in longer[-3:]] == [f"train-000004-{i}" for i in range(3)]
    assert len(longer) == 5 * 3
    with pytest.raises(BadInput, match="started with seed 0"):
        make_scores(config.model_copy(update={"seed": 1}), tmp_path / "run")


def test_some_results_may_stay_without_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 21, six that a judge does not score, and two of these when they are asked for again."""
    opened = edit_scores.opened
    monkeypatch.setattr(edit_scores, "opened", lambda rewards: Counting(opened(rewards), [], 1))
    with pytest.raises(TryLater, match="left 6 results"):
        make_scores(config_of(tmp_path, SCORES | {"unscored": 0.2}), tmp_path / "run")
    assert make_scores(config_of(tmp_path, SCORES | {"unscored": 0.1}), tmp_path / "run") == tmp_path / "run/data"


def test_a_checkpoint_s_edits_are_sampled(tmp_path: Path) -> None:
    """Each from its own seed, the same in another run."""
    only = SCORES | {"mix": {"sampled": 1}, "train": {"edits": 2, "source": {"kind": "world"}}, "test": None}
    found = [make_scores(config_of(tmp_path, only), tmp_path / name) for name in ("a", "b")]
    one, other = (sorted((folder / "pictures").iterdir()) for folder in found)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]
    assert len({path.read_bytes() for path in one}) == 2 + 2 * 3
    assert {line["made"] for line in lines(found[0] / "train.jsonl")} == {"sampled"}


def test_a_misled_edit_is_right_of_another_instruction(tmp_path: Path) -> None:
    """A good picture of its source, which hardly ever does what was asked."""
    only = SCORES | {"mix": {"sampled": 0, "misled": 1}, "train": {"edits": 16, "source": {"kind": "world"}}}
    found = lines(make_scores(config_of(tmp_path, only), tmp_path / "run") / "train.jsonl")
    assert {line["made"] for line in found} == {"misled"}
    assert np.mean([line["scores"]["quality"] > 9.5 for line in found]) > 0.9
    assert np.mean([line["scores"]["instruction_following"] < 5 for line in found]) > 0.8


def test_what_cannot_be_judged_so_is_refused(tmp_path: Path) -> None:
    folder = {"edits": 4, "source": {"kind": "folder", "path": str(tmp_path)}}
    with pytest.raises(BadInput, match=r"known in the world alone: set mix\.misled to 0"):
        config_of(tmp_path, SCORES | {"train": folder})
    with pytest.raises(BadInput, match="draw from the same edits"):
        config_of(tmp_path, SCORES | {"test": SCORES["train"]})
    with pytest.raises(BadInput, match="nothing is made"):
        config_of(tmp_path, SCORES | {"mix": {"sampled": 0}})
    (tmp_path / "other/data").mkdir(parents=True)
    (tmp_path / "other/data/train.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="scores stand where"):
        make_scores(config_of(tmp_path, SCORES), tmp_path / "other")
    huge = {"instruction_following": {"kind": "world"}}
    assert re.match("a judge gave 2", _too_much(config_of(tmp_path, SCORES | {"judge": huge}), tmp_path))


def _too_much(config: Any, folder: Path) -> str:
    maker = edit_scores.Maker(config, folder)

    class Twice:
        def score(self, samples: list[Sample]) -> list[float | None]:
            return [2.0] * len(samples)

    maker.judges = {"quality": WeightedSum({"quality": (1.0, Twice())})}
    with pytest.raises(UnipicError) as refusal:
        maker.split("train")
    return refusal.value.what
