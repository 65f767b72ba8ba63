"""Several processes train as one does: same losses, same checkpoints, and none stays behind when another fails."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import TCPStore

from tests.runs import KONTEXT, Child, Ended, Points, Toy, launch, records, stage_from
from tests.test_pdtr import RAW as PDTR
from unipic.config import resolve
from unipic.errors import BadInput, UnipicError
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.checkpoint import read_component
from unipic.models.find import find_model
from unipic.train.checkpointing import Checkpoints
from unipic.train.disk import locked
from unipic.train.lines import read_lines
from unipic.train.loop import Stage, train
from unipic.train.stages import AnyConfig, run_recipe

pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded models, with velocities of about one: their own are so large that rounding would be amplified."""
    root = tmp_path_factory.mktemp("calm")
    for name in ("tiny", "tiny-kontext"):
        folder = find_model(name)
        stored = read_component(folder, "transformer", torch.float32)
        last = {key: 0.03 * stored[key] for key in ("proj_out.weight", "proj_out.bias")}
        components = components_of(folder)
        components["transformer"] = Changed.over(folder, "transformer", last, torch.float32)
        assemble(root / name, components, folder.defaults)
    return root


def raw_of(stage: str, calm: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a stage: a LoRA if its name ends so."""
    kind, _, lora = stage.partition("-")
    raw = KONTEXT | {"stage": kind, "model": str(calm / ("tiny" if kind == "joint" else "tiny-kontext"))}
    raw |= {"steps": 2, "batch": 4, "sample_every": 0, "checkpoint_every": 1, "keep": 9}
    raw |= {"optimizer": {"lr": 1e-4, "schedule": "constant"}, "data": {"phases": [{"resolution": 64}]}}
    if lora:
        raw["lora"] = {"rank": 4, "alpha": 8.0}
    if kind == "joint" and not lora:
        raw["cells"] = 0.1
    if kind == "align":
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        raw |= {"mllm": str(calm / "tiny"), "connector": {**sizes, "num_queries": 8}}
    return raw | changes


def run_in(count: int, folder: Path, raw: dict[str, Any], run: Path) -> None:
    """Train in so many processes."""

    def work(_: int) -> None:
        train(stage_from(raw), run)

    children = launch(folder, count, work) if count > 1 else [Child(folder, lambda: work(0))]
    for child in children:
        ended = child.end()
        assert ended.code == 0, ended


def same_losses(a: Path, b: Path) -> None:
    for one, other in zip(records(a), records(b), strict=True):
        assert one["step"] == other["step"]
        assert math.isclose(one["loss"], other["loss"], rel_tol=1e-6), (one, other)
        assert math.isclose(one["grad_norm"], other["grad_norm"], rel_tol=1e-4), (one, other)


def gradients(run: Path) -> dict[str, Tensor]:
    """The first step's, as the first moments hold them."""
    folder = run / "checkpoints" / "step_00000001" / "optimizer"
    tensors = {f"{f.stem}.{name}": t for f in folder.iterdir() for name, t in load_file(f).items()}
    return {name: t for name, t in tensors.items() if name.endswith(".exp_avg")}


@pytest.mark.parametrize(
    "stage",
    [
        "joint",
        pytest.param("kontext", marks=pytest.mark.slow),
        pytest.param("kontext-lora", marks=pytest.mark.slow),
        pytest.param("align", marks=pytest.mark.slow),
        pytest.param("joint-lora", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(calm: Path, tmp_path: Path, stage: str) -> None:
    """Also the queries, which are read outside the conditioner's forward, and grids, which all must draw together."""
    raw = raw_of(stage, calm, sample_every=1)
    for count in (1, 2):
        run_in(count, tmp_path, raw, tmp_path / str(count))
    same_losses(tmp_path / "2", tmp_path / "1")
    one, two = gradients(tmp_path / "1"), gradients(tmp_path / "2")
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(two[name], gradient, rtol=0, atol=max(1e-4 * scale, 1e-9), msg=name)
    if stage in ("joint", "align"):
        assert one["conditioner.meta_queries.exp_avg"].abs().max() > 0
    assert {p.name for p in (tmp_path / "2" / "samples").iterdir()} == {"step_00000001.png", "step_00000002.png"}
    shapes = [
        {
            n: (t.shape, t.dtype)
            for f in (tmp_path / n / "model").rglob("*.safetensors")
            for n, t in load_file(f).items()
        }
        for n in ("1", "2")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("stage", ["grpo", "nft"])
def test_two_processes_reinforce_as_one(stage: str, calm: Path, tmp_path: Path) -> None:
    """Groups split between processes are compared as wholes, and the same adapters come of it."""
    raw = raw_of("grpo-lora", calm, group=4, batch=4, sampler={"steps": 3, "trained": 2}, merge=False, ema=None)
    raw |= {"model": str(calm / "tiny-kontext"), "rewards": {"bright": {"kind": "brightness"}}}
    raw |= {"stage": stage} | ({"levels": 2} if stage == "nft" else {})
    raw["data"] |= {"tasks": ["edit"]}
    for count in (1, 2):
        run_in(count, tmp_path, raw, tmp_path / str(count))
    for one, other in zip(records(tmp_path / "1"), records(tmp_path / "2"), strict=True):
        assert one["advantage"] > 0
        for name in ("reward", "reward/bright", "advantage", "kl", "loss", "groups_alike", "edges"):
            # of pictures in whole grey levels, and of what is left where almost equal numbers are subtracted
            assert other[name] == pytest.approx(one[name], rel=1e-2, abs=1e-5), name
    one, two = gradients(tmp_path / "1"), gradients(tmp_path / "2")
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=0, atol=1e-2 * largest, msg=name)


def test_two_processes_do_all_parts_of_pdtr(tmp_path: Path) -> None:
    """They meet where those of torchrun do, in a store of its own that remembers, and wait for what one evaluates."""
    parts = [{"tasks": [task], "steps": 1} for task in ("edit", "generate")]
    raw = PDTR | {"grpo": PDTR["grpo"] | {"device": "cpu"}, "parts": parts, "evaluate": {"n": 1, "steps": 1}}
    run = tmp_path / "run"
    for restart in range(2):  # the second time there is nothing left to do
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}

        def work(_: int, agent: dict[str, str] = agent | {"MASTER_PORT": str(store.port)}) -> None:
            os.environ.update(agent)
            run_recipe(resolve(TypeAdapter(AnyConfig), raw, "test"), run)

        for child in launch(tmp_path, 2, work):
            ended = child.end()
            assert (ended.code, ended.err) == (0, ""), (restart, ended)
    assert [len(records(run / part)) for part in ("1-edit", "2-generate")] == [1, 1]
    assert {path.name for path in run.glob("eval-*")} == {"eval-0", "eval-1", "eval-2"}
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize(("first", "then", "kind"), [(2, 1, "adamw"), (1, 2, "muon")])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, first: int, then: int, kind: str) -> None:
    def part(count: int, steps: int, run: Path) -> None:
        settings: dict[str, Any] = {
            "optimizer": {"kind": kind, "lr": 0.01, "schedule": "constant"},
            "batch": 4,
            "checkpoint_every": 1,
        }

        def work(_: int) -> None:
            train(Toy(steps=steps, **settings), run)

        for child in launch(tmp_path, count, work) if count > 1 else [Child(tmp_path, lambda: work(0))]:
            ended = child.end()
            assert (ended.code, ended.err) == (0, "")

    part(1, 8, tmp_path / "whole")
    part(first, 4, tmp_path / "run")
    part(then, 8, tmp_path / "run")
    same_losses(tmp_path / "run", tmp_path / "whole")
    whole, run = (Checkpoints(tmp_path / name / "checkpoints").latest() for name in ("whole", "run"))
    assert whole is not None
    assert run is not None
    assert whole.names() == run.names() == ("ema/net", "net", "optimizer/net")
    for file in whole.names():
        mine, other = run.tensors(file), whole.tensors(file)
        assert mine.keys() == other.keys()
        for name, tensor in other.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torchrun(calm: Path, tmp_path: Path) -> None:
    """The real thing: 20 steps in one process and in two, a run that goes from two to one, and one the other way."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(raw_of("kontext", calm)))

    def start(count: int, steps: int, run: Path) -> None:
        many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        command = [sys.executable, *many, "-m", "unipic.cli", "train", str(path), "--run-dir", str(run)]
        done = subprocess.run([*command, "--set", f"steps={steps}"], capture_output=True, text=True, timeout=300)
        assert (done.returncode, done.stdout) == (0, f"{run / 'model'}\n"), done

    start(1, 20, tmp_path / "1")
    start(2, 20, tmp_path / "2")
    same_losses(tmp_path / "2", tmp_path / "1")
    for first, then in ((1, 2), (2, 1)):
        start(first, 10, tmp_path / f"{first}{then}")
        start(then, 20, tmp_path / f"{first}{then}")
        same_losses(tmp_path / f"{first}{then}", tmp_path / "1")


# Failures. All processes end, soon, and one of them says why.


def end_of(children: list[Child]) -> list[Ended]:
    start = time.monotonic()
    ended = [child.end() for child in children]
    assert time.monotonic() - start < 30
    return ended


def fails(tmp_path: Path, work: Callable[[int], object], code: int, say: str, speaker: int = 0) -> None:
    ended = end_of(launch(tmp_path, 2, work))
    assert [one.code for one in ended] == [code, code], ended
    assert ended[speaker].err.startswith(say), ended
    assert len(ended[speaker].err.splitlines()) == 3
    assert ended[1 - speaker].err == ""


def test_what_the_first_process_refuses_ends_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(Toy(steps=2), run)
    fails(tmp_path, lambda _: train(Toy(steps=2, seed=5), run), 2, "the run was started with seed 0, and now it is 5")
    with locked(run):
        fails(tmp_path, lambda _: train(Toy(steps=4), run), 2, "another run is at work")
    say = "a batch of 3 cannot be shared by 2 processes"
    fails(tmp_path, lambda _: train(Toy(batch=3), tmp_path / "new"), 2, say)
    vae = KONTEXT | {"stage": "vae"}
    del vae["show"]
    fails(tmp_path, lambda _: train(stage_from(vae), tmp_path / "new"), 2, "the stage vae trains in one process")
    children = launch(tmp_path, 2, lambda _: train(Toy(steps=2), run))  # finished
    assert [one.code for one in end_of(children)] == [0, 0]


def test_what_one_process_cannot_load_ends_all(tmp_path: Path) -> None:
    class Broken(Toy):
        def batch(self, step: int, share: range) -> list[Points]:
            if step == 3 and 2 in share:
                raise BadInput("the picture is cut short", "folder/7.png", "download it again")
            return super().batch(step, share)

    fails(tmp_path, lambda _: train(Broken(), tmp_path / "run"), 2, "the picture is cut short", speaker=1)


def test_a_full_disk_ends_all(tmp_path: Path) -> None:
    def work(_: int) -> None:
        real, count = Checkpoints.save, [0]

        def save(self: Checkpoints, *rest: Any) -> Path:
            count[0] += 1
            if count[0] == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")
            return real(self, *rest)

        Checkpoints.save = save  # type: ignore[method-assign]
        train(Toy(checkpoint_every=2), tmp_path / "run")

    first, second = end_of(launch(tmp_path, 2, work))
    assert (first.code, second.err) == (75, "")
    assert second.code > 0
    assert first.err.splitlines()[0] == "the disk is full"
    assert first.err.rstrip().endswith("step_00000002")


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"

    class Slow(Toy):
        def losses(self, micro: Any, draws: Any) -> Tensor:
            time.sleep(0.05)
            return super().losses(micro, draws)

    children = launch(tmp_path, 2, lambda _: train(Slow(steps=200), run))
    while not read_lines(run / "log.jsonl"):
        time.sleep(0.01)
    os.kill(children[1].pid, signal.SIGTERM)
    assert [one.code for one in end_of(children)] == [143, 143]
    found = Checkpoints(run / "checkpoints").latest()
    assert found is not None
    assert found.step == records(run)[-1]["step"] < 200


def test_a_bad_sample_of_any_process_is_named_and_changes_nothing(tmp_path: Path) -> None:
    def spoil(micro: Points, losses: Tensor) -> Tensor:
        bad = torch.tensor([number in (4 * 2 + 3, 4 * 5, 4 * 6 + 2, 4 * 7 + 3) for number in micro.numbers])
        return torch.where(bad, math.nan, losses)

    def stage() -> Stage:
        return Toy(spoil, checkpoint_every=1, keep=9)

    first, second = end_of(launch(tmp_path, 2, lambda _: train(stage(), tmp_path / "run")))
    assert (first.code, second.code, second.err) == (1, 1, "")
    told = first.err.splitlines()
    assert told[:2] == ["no finite loss and gradient in 3 steps in a row", "step 8, samples point-31"]
    lines = records(tmp_path / "run")
    assert [line["samples"] for line in lines if line.get("skipped")] == [
        ["point-11"],
        ["point-20"],
        ["point-26"],
        ["point-31"],
    ]
    with pytest.raises(UnipicError):
        train(stage(), tmp_path / "one")
    same = [
        {
            n: load_file(tmp_path / "run" / "checkpoints" / f"step_{s:08d}" / f"{n}.safetensors")
            for n in ("net", "ema/net")
        }
        for s in (5, 7)
    ]
    assert all(torch.equal(same[0][file][name], same[1][file][name]) for file in same[0] for name in same[0][file])
    for one, other in zip(lines, records(tmp_path / "one"), strict=True):
        assert one["step"] == other["step"]
        assert one.get("samples") == other.get("samples")
