"""The packaged recipes: all are sound, and the paper's hold the paper's numbers."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unipic.config import read_recipe, recipes
from unipic.data.world import TEXTS
from unipic.errors import BadInput
from unipic.models.checkpoint import read_component
from unipic.models.find import find_model
from unipic.models.folder import LAYOUTS
from unipic.rewards.configs import of_task
from unipic.train.loop import train
from unipic.train.pdtr import PdtrConfig, part_config
from unipic.train.stages import read, stage_of

PAPER = [name for name in recipes() if name.startswith("paper/")]
PDTR = [name for name in recipes() if "/pdtr" in name or "/table4" in name]
# What a paper's recipe leaves to its user.
MISSING = {name: "data.path" if "/edit-reward" in name else "data.sources.0.path" for name in PAPER}
MISSING |= {name: "grpo.data.sources.0.path" for name in PAPER if name in PDTR}
MISSING["paper/edit-scores"] = "train.source.path"
# Paper §4.1: steps, batch, learning rate, million samples of each task.
PRE_TRAINING = {
    "paper/kontext": (200_000, 128, 4e-5, {"edit": 5, "generate": 6}),
    "paper/align": (500_000, 1024, 1e-4, {"generate": 150}),
    "paper/joint": (200_000, 128, 4e-5, {"edit": 5, "generate": 6}),
}
# Tables 2 and 3: who sees the references, what is tuned.
TABLES = {
    "paper/table2-mllm": ("mllm", True, True),
    "paper/table2-dit": ("dit", True, True),
    "paper/table2-both": ("both", True, True),
    "paper/table3-dit": ("both", False, True),
    "paper/table3-connector": ("both", True, False),
    "paper/table3-both": ("both", True, True),
}


def resolved(name: str) -> Any:
    return read(name, given(name))


def given(name: str) -> list[str]:
    return [f"{MISSING[name]}=folder"] if name in PAPER else []


@pytest.mark.parametrize("name", recipes())
def test_a_packaged_recipe_is_sound(name: str) -> None:
    """It resolves, and where it has phases of resolution, they begin at step 0, in order and within the run."""
    for config in runs_of(resolved(name)):
        if hasattr(getattr(config, "data", None), "phases"):
            steps = [phase.step for phase in config.data.phases]
            assert steps[0] == 0
            assert steps == sorted(set(steps))
            assert steps[-1] < config.steps


def runs_of(config: Any) -> list[Any]:
    """The configurations of a recipe's runs."""
    return [part_config(config, part, "tiny") for part in config.parts] if isinstance(config, PdtrConfig) else [config]


TYPOS = [("stpes", "steps"), ("optimiser", "optimizer"), ("optimizer.weigth_decay", "weight_decay"), ("bacth", "batch")]
OF_PDTR = [("rouns", "rounds"), ("grpo.sampler.trianed", "trained"), ("parts.0.task", "tasks")]
OF_SCORES = [("reslts", "results"), ("mix.smapled", "sampled"), ("train.source.knd", "kind")]


def typos(name: str) -> list[tuple[str, str]]:
    return OF_PDTR if name in PDTR else OF_SCORES if name.endswith("/edit-scores") else TYPOS


@pytest.mark.parametrize(
    ("name", "typo", "meant"),
    [(name, *typo) for name in recipes() for typo in typos(name)],
)
def test_an_unknown_key_is_answered_with_the_one_that_was_meant(name: str, typo: str, meant: str) -> None:
    with pytest.raises(BadInput) as refusal:
        read(name, [*given(name), f"{typo}=1"])
    assert str(refusal.value).splitlines()[0] == f'unknown key "{typo.rpartition(".")[2]}"'
    assert f'did you mean "{meant}"?' in str(refusal.value)


@pytest.mark.parametrize("name", PAPER)
def test_without_its_data_a_paper_recipe_says_what_to_set(name: str) -> None:
    with pytest.raises(BadInput) as refusal:
        read(name)
    assert 'the key "path" is missing' in str(refusal.value)
    assert f"--set {MISSING[name]}=VALUE" in str(refusal.value)


@pytest.mark.parametrize("name", PRE_TRAINING)
def test_the_papers_numbers(name: str) -> None:
    steps, batch, lr, _ = PRE_TRAINING[name]
    config = resolved(name)
    assert (config.steps, config.batch) == (steps, batch)
    assert config.optimizer.lr == lr
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.optimizer.eps == 1e-8
    assert config.optimizer.weight_decay == 0.05
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.warmup == 0
    assert config.ema is None
    assert (config.times.mean, config.times.std) == (0, 1)
    assert [phase.resolution for phase in config.data.phases] == [256, 512, 1024]


@pytest.mark.parametrize("name", PRE_TRAINING)
def test_tasks_are_the_papers_and_alternate(name: str) -> None:
    config = resolved(name)
    assert sorted(config.data.tasks) == sorted(PRE_TRAINING[name][3])


@pytest.mark.parametrize("name", PRE_TRAINING)
def test_how_often_samples_come_is_as_the_comments_say(name: str) -> None:
    config = resolved(name)
    said = (recipes()["paper/kontext" if name == "paper/joint" else name]).read_text()
    for millions in PRE_TRAINING[name][3].values():
        times = config.steps * config.batch / len(config.data.tasks) / (millions * 1e6)
        assert f"{times:.1f}" in said


def test_align_has_the_published_connector_and_names() -> None:
    config = resolved("paper/align")
    stored = json.loads((Path(__file__).parent / "published/metaquery/conditioner/config.json").read_text())
    sizes = {**stored["connector_config"], "num_queries": stored["num_queries"]}
    assert {key: sizes[key] for key in config.connector.model_dump()} == config.connector.model_dump()
    assert (config.model, config.mllm) == ("stabilityai/stable-diffusion-3.5-medium", "Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.mark.parametrize("name", TABLES)
def test_a_tables_row_is_joint_but_for_what_it_compares(name: str) -> None:
    config, joint = resolved(name), resolved("paper/joint")
    assert (config.reference, config.tune.connector, config.tune.dit) == TABLES[name]
    same = {"reference": "both", "tune": joint.tune}
    assert config.model_copy(update=same) == joint.model_copy(update=same)


def test_every_row_that_joint_trains_has_a_recipe() -> None:
    assert sorted(TABLES) == [name for name in PAPER if name.startswith(("paper/table2", "paper/table3"))]


def test_text_to_image_alone_is_kontext_but_for_its_tasks() -> None:
    raw, _ = read_recipe("paper/kontext-t2i")
    kontext, _ = read_recipe("paper/kontext")
    assert raw.pop("data") == {**kontext.pop("data"), "tasks": ["generate"]}
    assert raw == kontext


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures, and an edit of each."""
    folder, lines = tmp_path_factory.mktemp("pictures"), []
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (64, 64), colour).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "text": colour})
        lines.append({"source": f"{i}.png", "instruction": "make it red", "target": "0.png"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


SMALL = ["steps=2", "batch=2", "micro_batch=1", "data.phases=[{resolution: 64}]", "dtype=fp32", "device=cpu"]
SMALL += ["workers=0", "show.count=0", "log_every=1"]
CONNECTOR = "connector={hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}"
TINY = {
    "paper/kontext": ["model=tiny-kontext"],
    "paper/align": ["model=tiny-kontext", f"mllm={find_model('tiny').root / 'mllm'}", CONNECTOR],
    "paper/joint": ["model=tiny", "transformer=null"],
}


@pytest.mark.parametrize("name", [*TINY, *TABLES])
def test_a_paper_recipe_trains_once_its_models_are_tiny(name: str, folder: Path, tmp_path: Path) -> None:
    """Two steps, one of each task that the recipe has; what is to be tuned has changed, all else has not."""
    sets = TINY[name if name in TINY else "paper/joint"]
    config = read(name, [f"data.sources.0.path={folder}", *SMALL, *sets])
    new, old = find_model(str(train(stage_of(config), tmp_path / "run"))), find_model(config.model)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [math.isfinite(line["loss"]) for line in log if "loss" in line] == [True, True]
    tuned = {"transformer": config.stage != "align", "conditioner": config.stage == "align"}
    if config.stage == "joint":
        tuned = {"transformer": config.tune.dit, "conditioner": config.tune.connector}
    shared = {name for name in {*old.components()} & {*new.components()} if LAYOUTS[name].weights}
    assert shared >= {"transformer", "vae"}
    for component in shared:
        before, after = (read_component(model, component, torch.float32) for model in (old, new))
        same = all(torch.equal(before[key], after[key]) for key in before)
        assert same != tuned.get(component, False), component


@pytest.mark.parametrize("name", [name for name in recipes() if not name.startswith("paper/")])
def test_no_recipe_cuts_the_world_s_texts(name: str) -> None:
    """Dense descriptions need 48 of T5's tokens, all else 24; a recipe that lies on another may have other texts."""
    (config, *_) = runs_of(resolved(name))
    if config.stage == "kontext":
        texts = {text for source in config.data.sources for text in (source.texts or TEXTS)}
        assert config.max_sequence_length >= (48 if "dense" in texts else 24)


@pytest.mark.parametrize("where", ["tiny", "paper"])
def test_pdtr_s_other_orders_differ_in_their_order_alone(where: str) -> None:
    """And have as many pictures of each task; tiny's mixed one has all sizes, and of edits another one held out."""
    plain, reversed_, mixed = (resolved(f"{where}/pdtr{order}") for order in ("", "-reversed", "-mixed"))
    assert plain.grpo == reversed_.grpo == mixed.grpo
    assert plain.evaluate == reversed_.evaluate == mixed.evaluate
    assert [part.tasks for part in plain.parts] == [("edit",), ("generate",)]
    assert reversed_.parts == plain.parts[::-1]
    (both,) = mixed.parts
    rounds, rest = divmod(both.steps, len(both.tasks))
    assert rest == 0
    assert [both.tasks.count(task) * rounds for task in ("edit", "generate")] == [part.steps for part in plain.parts]
    for part in plain.parts if where == "paper" else ():
        for all_, own in ((both.rewards, part.rewards or plain.grpo.rewards), (both.held_out, part.held_out)):
            assert {name: reward for name, reward in all_.items() if of_task(reward, part.tasks[0])} == own


def test_pdtr_has_the_papers_numbers() -> None:
    config = resolved("paper/pdtr")
    grpo, sampler = config.grpo, config.grpo.sampler
    assert (grpo.batch, grpo.group, grpo.beta) == (256, 16, 0.04)
    assert (sampler.steps, sampler.noise_level) == (10, 0.7)
    assert (grpo.lora.rank, grpo.lora.alpha) == (32, 64)
    optimizer = grpo.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (3e-4, (0.9, 0.999), 1e-8)
    assert [phase.resolution for phase in grpo.data.phases] == [512]
    assert grpo.advantage == "group"
    assert [part.tasks for part in config.parts] == [("edit",), ("generate",)]


# Table 4: rewards of editing, and of text-to-image.
TABLE4 = {
    "judge": {"edit": "judge"},
    "edit-reward": {"edit": "edit_reward"},
    "geneval": {"generate": "geneval"},
    "judge-geneval": {"edit": "judge", "generate": "geneval"},
    "edit-reward-geneval": {"edit": "edit_reward", "generate": "geneval"},
}


PDTR_OF = {"tiny": "pdtr-all", "paper": "pdtr"}  # whose rows they are


@pytest.mark.parametrize("name", TABLE4)
@pytest.mark.parametrize("where", ["paper", "tiny"])
def test_a_row_of_table_4_is_pdtr_but_for_its_parts(where: str, name: str) -> None:
    """In the world the verifier stands for GenEval's detector, and descriptions are asked for, too."""
    config, pdtr = resolved(f"{where}/table4-{name}"), resolved(f"{where}/{PDTR_OF[where]}")
    if where == "tiny":
        own = {"parts": ("geneval", "edit", "dense"), "n": 432, "steps": 10}
        assert config.evaluate == pdtr.evaluate.model_copy(update=own)
    assert config.model_copy(update={"parts": pdtr.parts, "evaluate": pdtr.evaluate}) == pdtr
    found = {}
    for part in map(partial(part_config, config, model="tiny"), config.parts):
        ((task,), (reward,)) = part.data.tasks, part.rewards.values()
        found[task] = reward.kind
    assert found == {t: "world" if (where, kind) == ("tiny", "geneval") else kind for t, kind in TABLE4[name].items()}
