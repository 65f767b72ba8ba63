"""PDTR's parts in turn: each from the last one's model, both tasks judged around each, one model out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors.torch import load_file

from unipic.config import resolve
from unipic.errors import BadInput
from unipic.evals import world
from unipic.models.find import find_model
from unipic.models.kontext import load_transformer
from unipic.models.lora import merge_lora
from unipic.train import pdtr
from unipic.train.batches import WorldConfig
from unipic.train.grpo import GrpoStage
from unipic.train.pdtr import PdtrConfig, part_config
from unipic.train.stages import AnyConfig, run_recipe

pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")
RAW: dict[str, Any] = {
    "stage": "pdtr",
    "grpo": {
        "stage": "grpo",
        "model": "tiny-kontext",
        "steps": 1,
        "batch": 8,
        "group": 4,
        "lora": {"rank": 2, "alpha": 4},
        "rewards": {"bright": {"kind": "brightness"}},
        "sampler": {"steps": 3, "trained": 2},
        "optimizer": {"lr": 0.05},
        "data": {"phases": [{"resolution": 64}]},
        "ema": None,
        "show": {"count": 0},
    },
    "parts": [{"tasks": ["edit"], "steps": 2}, {"tasks": ["generate"], "steps": 1}],
    "evaluate": {"n": 3, "steps": 1, "parts": ["geneval", "edit"]},
}


def recipe(**more: Any) -> PdtrConfig:
    config = resolve(TypeAdapter(AnyConfig), {**RAW, **more}, "test")
    assert isinstance(config, PdtrConfig)
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pdtr") / "run"
    assert run_recipe(recipe(), folder) == folder / "model"
    return folder


def test_both_tasks_are_judged_before_between_and_after(run: Path) -> None:
    for name in ("eval-0", "eval-1", "eval-2"):
        scores = json.loads((run / name / "scores.json").read_text())
        assert scores["geneval"]["overall"] is not None
        assert scores["edit"]["overall"] is not None
        assert scores["dense"] is None  # was not asked
    page = (run / "report.html").read_text()
    assert all(words in page for words in ("before", "after 1-edit", "after 2-generate", "of novel combinations"))


def test_each_part_is_a_run_from_the_model_before_it(run: Path) -> None:
    config = recipe()
    first, second = (part_config(config, part, model) for part, model in zip(config.parts, ("a", "b"), strict=True))
    assert (first.data.tasks, first.steps, first.model) == (("edit",), 2, "a")
    assert (second.data.tasks, second.steps, second.model) == (("generate",), 1, "b")
    assert str(run / "1-edit" / "model") in (run / "2-generate" / "config.yaml").read_text()
    folders = (find_model(str(run / part / "model")) for part in ("1-edit", "2-generate"))
    before, after = (load_transformer(folder, torch.float32) for folder in folders)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_a_part_s_own_rewards_and_beta_are_in_place_of_those_in_common() -> None:
    own = {"rewards": {"right": {"kind": "world"}}, "beta": 0.0}
    config = recipe(parts=[RAW["parts"][0] | own, RAW["parts"][1]])
    first, second = (part_config(config, part, "a") for part in config.parts)
    assert (set(first.rewards), set(second.rewards)) == ({"right"}, {"bright"})
    assert (first.beta, second.beta) == (0.0, config.grpo.beta)
    assert config.grpo.beta > 0
    assert first.model_copy(update={k: getattr(second, k) for k in ("rewards", "beta", "steps", "data")}) == second


def test_a_part_s_own_sources_and_phases_are_in_place_of_those_in_common() -> None:
    own = {"phases": [{"resolution": 80}], "sources": [{"kind": "world", "types": {"extract": 1}}]}
    config = recipe(parts=[RAW["parts"][0] | own, RAW["parts"][1]])
    first, second = (part_config(config, part, "a").data for part in config.parts)
    assert (first.phases[0].resolution, first.sources[0], first.tasks) == (
        80,
        WorldConfig(types={"extract": 1}),
        ("edit",),
    )
    assert (second.phases[0].resolution, second.sources[0], second.tasks) == (64, WorldConfig(), ("generate",))


@pytest.mark.parametrize(
    "data", [{"phases": [{"step": 5, "resolution": 64}]}, {"sources": [{"kind": "folder", "path": "/nowhere"}]}]
)
def test_what_is_wrong_with_a_later_part_s_data_is_said_at_once(data: dict[str, Any], tmp_path: Path) -> None:
    config = recipe(parts=[RAW["parts"][0], RAW["parts"][1] | data])
    with pytest.raises(BadInput, match=r"phases|nowhere"):
        run_recipe(config, tmp_path / "run")
    assert not (tmp_path / "run" / "1-edit").exists()


def test_all_of_the_benchmark_is_asked_unless_parts_are_named() -> None:
    config = recipe(evaluate={"n": 3})
    assert config.evaluate is not None
    assert config.evaluate.parts == world.PARTS
    with pytest.raises(BadInput, match="evaluate"):
        recipe(evaluate={"n": 3, "parts": ["genevals"]})


def belong_together(run: Path) -> None:
    """The adapter of all parts makes the same model."""
    merged = load_transformer(find_model("tiny-kontext"), torch.float32)
    merge_lora(merged, str(run / "lora"))
    final = load_transformer(find_model(str(run / "model")), torch.float32)
    base = load_transformer(find_model("tiny-kontext"), torch.float32)
    moved = 0.0
    for (name, ours), wanted, start in zip(
        merged.named_parameters(), final.parameters(), base.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5, msg=name)
        moved = max(moved, float((wanted - start).abs().max()))
    assert moved > 1e-3


def test_the_adapter_of_all_parts_makes_the_same_model(run: Path) -> None:
    belong_together(run)


def test_the_same_command_again_makes_nothing_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it load what trains and rewards."""

    def times() -> dict[str, int]:
        weights = [*run.rglob("*.safetensors"), *run.rglob("*.png"), *run.rglob("results.jsonl")]
        return {str(p): p.stat().st_mtime_ns for p in weights}

    before = times()
    assert len(before) > 10
    monkeypatch.delattr(pdtr, "GrpoStage")
    run_recipe(recipe(), run)
    assert times() == before


def test_a_run_that_was_moved_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a part starts from is known by its weights, not by where they lay."""
    shutil.copytree(run, tmp_path / "moved")
    monkeypatch.delattr(pdtr, "GrpoStage")
    monkeypatch.chdir(tmp_path)
    assert run_recipe(recipe(), Path("moved")) == Path("moved/model")


def test_the_page_tells_of_each_part(run: Path) -> None:
    page = (run / "report.html").read_text()
    for name in ("1-edit", "2-generate"):
        assert f"No alarm. All else: {name}/report.html." in page
        assert all(f"{name}: {curve}" in page for curve in ("reward", "kl"))


def test_more_steps_and_a_kill_leave_a_model_and_adapters_that_belong_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later part is not left as it is when what it started from has changed; and what is not finished says so."""
    run, last = tmp_path / "run", tmp_path / "run" / "2-generate" / "model" / "manifest.json"

    def train(edit: int, generate: int) -> bytes:
        parts = [{"tasks": ["edit"], "steps": edit}, {"tasks": ["generate"], "steps": generate}]
        run_recipe(recipe(parts=parts, evaluate=None), run)
        assert (run / "model" / "manifest.json").read_bytes() == last.read_bytes()
        assert (run / "config.yaml").exists()
        return last.read_bytes()

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    first = train(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(pdtr, "save_lora", killed)
        with pytest.raises(KeyboardInterrupt):
            train(1, 2)
    assert last.read_bytes() != first
    assert not (run / "config.yaml").exists()
    second = train(1, 2)
    belong_together(run)
    with pytest.raises(BadInput, match=r"other weights .*\n.*2-generate: .*1-edit/model\n.*delete eval-1, 2-generate"):
        train(2, 2)
    assert not (run / "config.yaml").exists()
    shutil.rmtree(run / "2-generate")
    assert train(2, 2) != second
    belong_together(run)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"rewards": {"judged": {"kind": "judge", "model": "m", "key_env": "NO_SUCH_KEY"}}}, "NO_SUCH_KEY"),
        ({"rewards": {"edits": {"kind": "edit_reward", "model": "/nowhere"}}}, "/nowhere"),
        ({"rewards": {"edits": {"kind": "edit_reward", "model": "tiny-kontext"}}}, "no reward model"),
        ({"rewards": {"geneval": {"kind": "geneval", "detector": "/nowhere"}}}, "/nowhere"),
        ({"held_out": {"geneval": {"kind": "geneval", "detector": "/nowhere"}}}, "/nowhere"),
        (
            {"rewards": {"edits": {"kind": "edit_reward"}}},
            "never scores task generate\nrewards: edits; tasks: generate",
        ),
        (
            {"rewards": {"done": {"kind": "world", "mark": "sc"}}},
            "never scores task generate\nrewards: done; tasks: generate",
        ),
        (
            {"held_out": {"done": {"kind": "world", "mark": "sc"}}},
            "never scores task generate\nheld_out: done; tasks: generate",
        ),
        (
            {"tasks": ["edit", "generate"], "rewards": {"edits": {"kind": "edit_reward"}}},
            "none of these rewards ever scores task generate\nrewards: edits; tasks: edit, generate",
        ),
        (
            {
                "tasks": ["edit", "generate"],
                "rewards": {"bright": {"kind": "brightness"}, "done": {"kind": "world", "mark": "sc"}},
                "held_out": {"light": {"kind": "brightness"}},
            },
            "held_out: light; rewards: bright, done; task: generate",
        ),
        ({"held_out": {"light": {"kind": "brightness", "weight": 2}}}, "held_out: light; rewards: bright"),
        ({"held_out": {"light": {"kind": "brightness"}}}, "held_out: light; rewards: bright"),
    ],
)
def test_rewards_of_a_later_part_that_are_not_there_are_said_at_once(
    part: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = recipe(parts=[RAW["parts"][0], RAW["parts"][1] | part])
    with pytest.raises(BadInput, match=said):
        run_recipe(config, tmp_path / "run")
    assert not (tmp_path / "run" / "1-edit").exists()


def test_a_judge_scores_what_its_template_asks_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    template = tmp_path / "edits.yaml"
    words = "edit:\n  system: Judge.\n  user: '{source} {picture} {text}'\n  marks: {done: 10 if it is done}\n"
    template.write_text(words)
    judge = {"kind": "judge", "model": "m", "key_env": "A_KEY", "base_url": "http://127.0.0.1:9/v1"}
    config = recipe(parts=[RAW["parts"][1] | {"rewards": {"judged": judge | {"template": str(template)}}}])
    with pytest.raises(BadInput, match="never scores task generate\nrewards: judged; tasks: generate"):
        run_recipe(config, tmp_path / "run")


def test_other_held_out_rewards_do_not_go_on_with_a_run(tmp_path: Path) -> None:
    """Alarms compare with the steps before, which the log holds."""
    part = {"tasks": ["generate"], "steps": 1, "held_out": {"right": {"kind": "world"}}}
    run_recipe(recipe(parts=[part], evaluate=None), tmp_path / "run")
    other = part | {"steps": 2, "held_out": {"right": {"kind": "world", "soft": False}}}
    with pytest.raises(BadInput, match="held_out"):
        run_recipe(recipe(parts=[other], evaluate=None), tmp_path / "run")


def test_a_later_part_s_pictures_are_not_larger_than_the_transformer_knows(tmp_path: Path) -> None:
    Image.effect_noise((2048, 2048), 60).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('{"image": "a.png", "text": "noise"}\n')
    data = {"sources": [{"kind": "folder", "path": str(tmp_path)}], "phases": [{"resolution": 1024}]}
    with pytest.raises(BadInput, match="pictures of 1024x1024 have more positions than"):
        run_recipe(recipe(parts=[RAW["parts"][0], RAW["parts"][1] | data]), tmp_path / "run")
    assert not (tmp_path / "run" / "1-edit").exists()


def test_a_stop_in_the_second_part_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{"tasks": ["edit"], "steps": 1}, {"tasks": ["generate"], "steps": 3}]
    show = {"show": {"count": 1, "steps": 1}, "sample_every": 1, "checkpoint_every": 1}
    config = recipe(parts=parts, evaluate=None, grpo=RAW["grpo"] | show)
    run_recipe(config, tmp_path / "whole")
    rollout = GrpoStage.rollout

    def stopped(stage: GrpoStage, micros: Any, step: int, processes: Any) -> Any:
        if stage.config.data.tasks == ("generate",) and step == 2:
            raise KeyboardInterrupt
        return rollout(stage, micros, step, processes)

    with monkeypatch.context() as patch:
        patch.setattr(GrpoStage, "rollout", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(config, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model").exists()
    run_recipe(config, tmp_path / "stopped")
    for folder in ("model", "2-generate/samples"):  # grids, too: before the part, and after each step
        whole, stopped_ = (
            {str(p.relative_to(run)): p.read_bytes() for p in sorted((run / folder).rglob("*")) if p.is_file()}
            for run in (tmp_path / "whole", tmp_path / "stopped")
        )
        assert whole
        assert whole == stopped_, folder
    whole_lora, stopped_lora = (load_file(tmp_path / run / "lora" / pdtr.LORA) for run in ("whole", "stopped"))
    assert whole_lora.keys() == stopped_lora.keys()  # its file's header has no fixed order
    assert all(torch.equal(tensor, stopped_lora[name]) for name, tensor in whole_lora.items())
    grids = [p.name for p in sorted((tmp_path / "whole" / "2-generate" / "samples").iterdir())]
    assert grids == [f"step_{step:08d}.png" for step in range(4)]


def test_steps_of_tasks_in_turn_are_rewarded_by_what_is_of_their_task(tmp_path: Path) -> None:
    rewards = {"done": {"kind": "world", "mark": "sc"}, "right": {"kind": "world", "weight": 2}}
    held_out = {"kept": {"kind": "edit_reward"}, "light": {"kind": "brightness"}}
    part = {"tasks": ["edit", "generate"], "steps": 2, "rewards": rewards, "held_out": held_out}
    run_recipe(recipe(parts=[part], evaluate=None), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "1-edit-generate" / "log.jsonl").open()]
    edits, prompts = (line for line in lines if "reward" in line)
    assert edits["reward"] == pytest.approx(edits["reward/done"] + 2 * edits["reward/right"])
    assert edits["held_out"] == pytest.approx(edits["held_out/kept"] + edits["held_out/light"])
    assert prompts["reward"] == pytest.approx(2 * prompts["reward/right"])
    assert prompts["held_out"] == pytest.approx(prompts["held_out/light"])
    assert not {"reward/done", "held_out/kept"} & prompts.keys()
    assert edits["missing"] == prompts["missing"] == 0


def test_every_part_has_a_seed_of_its_own() -> None:
    config = recipe()
    seeds = [part_config(config, config.parts[0], "a", number).seed for number in range(1, 5)]
    assert seeds[0] == config.grpo.seed
    assert len(set(seeds)) == 4
    assert seeds == [part_config(config, config.parts[0], "b", number).seed for number in range(1, 5)]


def test_rounds_repeat_the_parts(tmp_path: Path) -> None:
    raw = {"parts": [{"tasks": ["generate", "edit"], "steps": 1}], "rounds": 2, "evaluate": None}
    run_recipe(recipe(**raw), tmp_path / "run")
    assert {p.name for p in (tmp_path / "run").iterdir() if p.is_dir()} == {
        "1-generate-edit",
        "2-generate-edit",
        "model",
        "lora",
    }
    first, second = (
        [json.loads(line)["reward"] for line in (tmp_path / "run" / name / "log.jsonl").open() if "loss" in line]
        for name in ("1-generate-edit", "2-generate-edit")
    )
    assert first != second
