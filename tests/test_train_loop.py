"""A run of training outlives kills, full disks, signals and NaN, and says what it did."""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.runs import GRPO, KONTEXT, Ended, Points, Toy, command, files, recipe, records, stage_from
from unipic.errors import BadInput, UnipicError
from unipic.pictures import settings_of
from unipic.train import loop
from unipic.train.checkpointing import Checkpoint, Checkpoints
from unipic.train.disk import locked
from unipic.train.lines import read_lines
from unipic.train.loop import train
from unipic.train.processes import Processes

pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")
STEPS = KONTEXT["steps"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing befell."""
    return undisturbed(tmp_path_factory.mktemp("whole"))


def undisturbed(folder: Path, raw: Mapping[str, Any] = KONTEXT) -> Path:
    ended = command(folder, "train", recipe(folder, raw), "--run-dir", folder / "run").end()
    assert (ended.code, ended.out, ended.err) == (0, f"{folder / 'run' / 'model'}\n", "")
    return folder / "run"


def same_as(whole: Path, run: Path) -> None:
    assert files(run, STEPS) == files(whole, STEPS)
    assert records(run) == records(whole)
    assert [r["step"] for r in records(run)] == list(range(1, STEPS + 1))


def last_of(run: Path) -> Checkpoint | None:
    """The newest checkpoint; a broken one would be a warning, and fail."""
    return Checkpoints(run / "checkpoints").latest()


def toy_run(run: Path, step: int, **changes: Any) -> dict[str, dict[str, Tensor]]:
    """Everything in the checkpoint of a toy's step."""
    found = last_of(run)
    assert found is not None
    assert found.step == step
    return {name: found.tensors(name) for name in found.names()}


def equal(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[f][n], b[f][n]) for f in a for n in a[f])


# What a run leaves.


def test_a_run_leaves_all_that_is_promised(whole: Path) -> None:
    assert (whole / "model" / "manifest.json").exists()
    assert sorted(p.name for p in (whole / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
    grids = sorted((whole / "samples").iterdir())
    assert [p.name for p in grids] == ["step_00000006.png", "step_00000012.png"]
    assert [s["right"] for s in settings_of(grids[-1])["samples"]] == [False, False]
    page = (whole / "report.html").read_text()
    assert all(
        f">{heading}</h2>" in page for heading in ("loss", "grad_norm", "lr", "right", "Fixed samples", "Settings")
    )
    lines = read_lines(whole / "log.jsonl")
    assert set(lines[0]) == {"step", "loss", "grad_norm", "lr", "samples_per_s"}
    assert [line["step"] for line in lines if "right" in line] == [6, STEPS]


def test_a_finished_run_says_where_its_model_is_and_does_nothing(whole: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}
    ended = command(tmp_path, "train", whole.parent / "recipe.yaml", "--run-dir", whole).end()
    assert (ended.code, ended.out, ended.err) == (0, f"{whole / 'model'}\n", "")
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"}


def test_more_steps_make_a_new_model_of_a_finished_run(tmp_path: Path) -> None:
    train(Toy(steps=4), tmp_path / "run")
    old = (tmp_path / "run" / "model" / "net.safetensors").read_bytes()
    train(Toy(steps=6), tmp_path / "run")
    assert (tmp_path / "run" / "model" / "net.safetensors").read_bytes() != old
    assert (tmp_path / "run" / "model.former" / "net.safetensors").read_bytes() == old
    assert [r["step"] for r in records(tmp_path / "run")] == list(range(1, 7))
    train(Toy(steps=5), tmp_path / "run")  # it has these, and more
    assert toy_run(tmp_path / "run", 6)


def test_a_model_of_others_is_not_in_the_way_at_the_end_but_refused_at_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(BadInput, match="a model or checkpoints stand where"):
        train(Toy(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_average_is_the_closed_formula(tmp_path: Path) -> None:
    """a_n = d_n a_{n−1} + (1 − d_n) w_n with d_n = min(decay, (1 + n) / (10 + n)), written out as one sum."""
    settings: dict[str, Any] = {"optimizer": {"lr": 0.01, "schedule": "constant"}, "ema": {"decay": 0.5}}
    weights, count = [], 8
    for steps in range(count + 1):
        stage = Toy(steps=max(steps, 1), **settings)
        train(stage, tmp_path / "run") if steps else stage.place(Processes("cpu"))
        weights.append({n: p.detach().clone() for n, p in stage.net.named_parameters()})
    decays = [min(0.5, (1 + n) / (10 + n)) for n in range(1, count + 1)]
    assert decays[-1] == 0.5 > decays[0]
    shares = [math.prod(decays), *((1 - decays[i]) * math.prod(decays[i + 1 :]) for i in range(count))]
    for name, average in toy_run(tmp_path / "run", count)["ema/net"].items():
        wanted = sum(share * w[name].double() for share, w in zip(shares, weights, strict=True))
        torch.testing.assert_close(average.double(), wanted, rtol=1e-6, atol=1e-7)
    exported = load_file(tmp_path / "run" / "model" / "net.safetensors")
    assert equal({"net": exported}, {"net": toy_run(tmp_path / "run", count)["ema/net"]})


def test_an_average_of_every_third_update(tmp_path: Path) -> None:
    """Until then it is the weights themselves."""
    settings: dict[str, Any] = {"optimizer": {"lr": 0.01, "schedule": "constant"}}
    train(Toy(steps=5, ema={"decay": 0.5, "every": 3}, **settings), tmp_path / "averaged")
    second, third = (Toy(steps=steps, ema=None, **settings) for steps in (2, 3))
    train(second, tmp_path / "second")
    train(third, tmp_path / "third")
    after = [dict(stage.net.named_parameters()) for stage in (second, third)]
    for name, average in toy_run(tmp_path / "averaged", 5)["ema/net"].items():
        before, now = (each[name].detach() for each in after)
        assert not torch.equal(before, now)
        torch.testing.assert_close(average, torch.lerp(before, now, 1 - 2 / 11))


# Splitting a batch changes nothing.


def test_batches_are_pure(tmp_path: Path) -> None:
    stage: Any = stage_from(KONTEXT | {"micro_batch": 1, "batch": 3})
    first = [stage.batch(step, range(3)) for step in (0, 5, 2)]
    again = [stage_from(KONTEXT | {"micro_batch": 1, "batch": 3}).batch(step, range(3)) for step in (0, 5, 2)]
    for batch, other in zip(first, again, strict=True):
        assert [m.ids for m in batch] == [m.ids for m in other]
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(batch, other, strict=True))
    (alone,) = stage.batch(5, range(1, 2))
    assert torch.equal(alone.pixels, first[1][1].pixels)
    assert alone.numbers == (16,)


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_add_up(tmp_path: Path, micro: int) -> None:
    train(Toy(), tmp_path / "whole")
    train(Toy(micro_batch=micro), tmp_path / "split")
    whole, split = toy_run(tmp_path / "whole", 10), toy_run(tmp_path / "split", 10)
    for file, name in ((f, n) for f in whole for n in whole[f]):
        torch.testing.assert_close(split[file][name], whole[file][name], rtol=1e-5, atol=1e-6)
    pairs = zip(records(tmp_path / "whole"), records(tmp_path / "split"), strict=True)
    assert all(math.isclose(a["loss"], b["loss"], rel_tol=1e-6) for a, b in pairs)


def test_micro_batches_of_a_real_model_add_up(tmp_path: Path) -> None:
    raw = KONTEXT | {"steps": 3, "batch": 4, "sample_every": 0, "optimizer": {"lr": 1e-6}}
    for micro in (1, 2, 4):
        train(stage_from(raw | {"micro_batch": micro}), tmp_path / str(micro))
    whole = records(tmp_path / "4")
    for micro in ("1", "2"):
        for a, b in zip(records(tmp_path / micro), whole, strict=True):
            assert math.isclose(a["loss"], b["loss"], rel_tol=1e-6)
            assert math.isclose(a["grad_norm"], b["grad_norm"], rel_tol=1e-5)


def test_workers_change_no_bit(whole: Path, tmp_path: Path) -> None:
    ended = command(tmp_path, "train", recipe(tmp_path), "--run-dir", tmp_path / "run", "--set", "workers=2").end()
    assert (ended.code, ended.err) == (0, "")
    same_as(whole, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_is_broken_is_named_in_three_lines(tmp_path: Path, workers: int) -> None:
    class Broken(Toy):
        def batch(self, step: int, share: range) -> list[Points]:
            if step == 3:
                raise BadInput("the picture is cut short", "folder/7.png", "download it again")
            return super().batch(step, share)

    with pytest.raises(BadInput) as caught:
        train(Broken(workers=workers, checkpoint_every=2), tmp_path / "run")
    assert str(caught.value).splitlines() == ["the picture is cut short", "folder/7.png", "download it again"]
    assert [r["step"] for r in records(tmp_path / "run")] == [1, 2, 3]


# Numbers that are none.


def spoilt(kind: str, steps: range) -> Callable[[Points, Tensor], Tensor]:
    """The second sample of these steps' batches is spoilt."""

    def spoil(micro: Points, losses: Tensor) -> Tensor:
        bad = torch.tensor([n // 4 in steps and n % 4 == 1 for n in micro.numbers])
        if not bad.any():
            return losses
        if kind == "gradient":  # of a loss that is finite
            losses.register_hook(lambda gradient: gradient * torch.where(bad, math.nan, 1.0))
            return losses
        value = {"loss": math.nan, "infinite": math.inf, "sample": math.nan}[kind]
        return losses * torch.where(bad, value, 1.0) if kind == "sample" else losses + torch.where(bad, value, 0.0)

    return spoil


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize("kind", ["sample", "loss", "infinite", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, kind: str, micro: int | None) -> None:
    stage = Toy(spoilt(kind, range(5, 7)), micro_batch=micro, checkpoint_every=1, keep=10)
    train(stage, tmp_path / "run")
    found = {}
    for path in sorted((tmp_path / "run" / "checkpoints").iterdir()):
        found[int(path.name[5:])] = {str(f.relative_to(path)): load_file(f) for f in path.rglob("*.safetensors")}
    assert equal(found[5], found[6])
    assert equal(found[6], found[7])
    assert not equal(found[7], found[8])
    assert all(t.isfinite().all() for state in found.values() for group in state.values() for t in group.values())
    lines = records(tmp_path / "run")
    skipped = [line for line in lines if line.get("skipped")]
    ids = [[f"point-{4 * step + 1}"] for step in (5, 6)]
    if kind == "gradient":
        ids = [[f"point-{4 * step + place}" for place in range(4)] for step in (5, 6)]
    assert [(line["step"], line["samples"]) for line in skipped] == [(6, ids[0]), (7, ids[1])]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert (skipped[0]["loss"] is None) == (kind != "gradient")
    assert "point-21" in (tmp_path / "run" / "report.html").read_text()


def test_a_spike_names_its_worst_samples(tmp_path: Path) -> None:
    def spoil(micro: Points, losses: Tensor) -> Tensor:
        return losses * torch.tensor([{240: 1000.0, 242: 2000.0}.get(n, 1.0) for n in micro.numbers])

    train(Toy(spoil, steps=64, optimizer={"lr": 1e-4}), tmp_path / "run")
    (spike,) = [line for line in records(tmp_path / "run") if "samples" in line]
    assert (spike["step"], spike["spike"]) == (61, True)
    assert spike["samples"][:2] == ["point-242", "point-240"]
    assert "point-242" in (tmp_path / "run" / "report.html").read_text()


def test_three_in_a_row_end_the_run_and_it_ends_there_again(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UnipicError) as caught:
            train(Toy(spoilt("sample", range(5, 8)), checkpoint_every=2), tmp_path / "run")
        told = str(caught.value).splitlines()
        assert told[:2] == ["no finite loss and gradient in 3 steps in a row", "step 8, samples point-29"]
        assert told[2].endswith(f"the last checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step_00000006'}")
        assert len(told) == 3
        assert caught.value.exit_code == 1
        assert [r["step"] for r in records(tmp_path / "run")] == list(range(1, 9))
    train(Toy(checkpoint_every=2), tmp_path / "run")  # mended, it goes on; and the bad step before is not forgotten
    assert [r["step"] for r in records(tmp_path / "run") if r.get("skipped")] == [6]


def test_bad_steps_are_counted_over_an_interruption(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(micro: Points, losses: Tensor) -> Tensor:
        if micro.numbers[0] == 28:
            raise Stopped
        return spoilt("sample", range(5, 8))(micro, losses)

    with pytest.raises(Stopped):
        train(Toy(stop, checkpoint_every=1), tmp_path / "run")
    with pytest.raises(UnipicError, match="step 8, samples point-29"):
        train(Toy(spoilt("sample", range(5, 8)), checkpoint_every=1), tmp_path / "run")


def test_a_pixel_that_is_not_finite_reaches_no_weight_of_a_real_model(tmp_path: Path) -> None:
    raw = KONTEXT | {"steps": 4, "checkpoint_every": 1, "keep": 4, "sample_every": 0}
    stage: Any = stage_from(raw)
    real = stage.batch

    def batch(step: int, share: range) -> Any:
        (micro,) = real(step, share)
        if step == 2:
            object.__setattr__(micro, "pixels", torch.where(micro.pixels < 0, 0.0, math.nan))
        return [micro]

    stage.batch = batch
    train(stage, tmp_path / "run")
    names = ("transformer", "optimizer/transformer", "ema/transformer")
    at = [
        {n: load_file(tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / f"{n}.safetensors") for n in names}
        for step in (2, 3, 4)
    ]
    assert equal(at[0], at[1])
    assert not equal(at[1], at[2])
    assert [r.get("samples") for r in records(tmp_path / "run")][2] == list(real(2, range(2))[0].ids)


# Kills.


def kill_until_done(run: Path, folder: Path, duration: float, chance: random.Random) -> tuple[int, int]:
    """Kill and start again until the run is done. Gives the kills, and how many of them fell into a save."""
    kills = within = saved = 0
    while True:
        reading, writing = os.pipe()

        def tell(out: int = writing) -> None:
            real = Checkpoints.save

            def save(self: Checkpoints, step: int, *rest: Any) -> Path:
                os.write(out, b"%d begun\n" % step)
                path = real(self, step, *rest)
                os.write(out, b"%d saved\n" % step)
                return path

            Checkpoints.save = save  # type: ignore[method-assign]

        child = command(folder, "train", folder / "recipe.yaml", "--run-dir", run, before=tell)
        os.close(writing)
        with os.fdopen(reading) as told:
            lines = []
            if chance.random() < 0.6:  # into a save: it takes some 30 ms
                for _ in range(2 * chance.randrange(2) + 1):
                    lines.append(told.readline())
                time.sleep(chance.uniform(0, 0.03))
            else:
                time.sleep(chance.uniform(0, duration))
            os.kill(child.pid, signal.SIGKILL)
            ended = child.end()
            lines += told.readlines()
        assert ended.code in (0, -signal.SIGKILL), ended
        assert not any((run / "model").glob("*")) or (run / "model" / "manifest.json").exists()
        saved = max([saved, *(int(line.split()[0]) for line in lines if line.endswith("saved\n"))])
        found = last_of(run)
        assert (found.step if found else 0) >= saved
        if ended.code == 0:
            return kills, within
        kills, within = kills + 1, within + (bool(lines) and lines[-1].endswith("begun\n"))


NFT = GRPO | {"stage": "nft", "sampler": {"steps": 3, "trained": 3}, "levels": 2}
SLOW = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        pytest.param(KONTEXT, 4, id="kontext"),
        pytest.param(KONTEXT, 30, id="kontext-often", marks=SLOW),
        pytest.param(GRPO, 3, id="grpo"),
        pytest.param(GRPO, 20, id="grpo-often", marks=SLOW),
        pytest.param(NFT, 20, id="nft-often", marks=SLOW),
    ],
)
def test_kills_at_random_moments_change_no_bit(raw: dict[str, Any], wanted: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, chance, kills, within = undisturbed(tmp_path / "whole", raw), random.Random(wanted), 0, 0
    for number in itertools.count():
        (folder := tmp_path / str(number)).mkdir()
        recipe(folder, raw)
        more = kill_until_done(folder / "run", folder, 3.0, chance)
        kills, within = kills + more[0], within + more[1]
        same_as(whole, folder / "run")
        assert not any(p.name.startswith((".model", ".partial")) for p in (folder / "run").rglob("*"))
        if kills >= wanted and within >= wanted / 3:
            break


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kills_of_the_command_itself(whole: Path, tmp_path: Path) -> None:
    """From the shell's view, with workers, whose lives must not keep the folder locked."""
    shell = [sys.executable, "-m", "unipic.cli", "train", str(recipe(tmp_path)), "--run-dir", str(tmp_path / "run")]
    for step in (3, 7):
        running = subprocess.Popen([*shell, "--set", "workers=2"], stderr=subprocess.DEVNULL)
        while running.poll() is None and len(read_lines(tmp_path / "run" / "log.jsonl")) < step:
            time.sleep(0.01)
        running.kill()
        assert running.wait() == -signal.SIGKILL
    done = subprocess.run(shell, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'run' / 'model'}\n", "")
    same_as(whole, tmp_path / "run")


def test_a_killed_run_does_not_keep_its_folder_locked(tmp_path: Path) -> None:
    """Its workers live on for a while, and share all that it had open."""
    run = tmp_path / "run"
    child = command(tmp_path, "train", recipe(tmp_path), "--run-dir", run, "--set", "workers=2")
    while not read_lines(run / "log.jsonl"):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.end()
    with locked(run):
        pass


def test_sigterm_ends_the_step_saves_it_and_exits_143(whole: Path, tmp_path: Path) -> None:
    """A real command, with workers, which get the signal too, as a terminal or a scheduler sends it."""
    run = tmp_path / "run"
    shell = [sys.executable, "-m", "unipic.cli", "train", str(recipe(tmp_path)), "--run-dir", str(run)]
    running = subprocess.Popen(
        [*shell, "--set", "workers=2", "--set", "checkpoint_every=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while running.poll() is None and len(read_lines(run / "log.jsonl")) < 3:
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGTERM)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (143, "", "")
    found = last_of(run)
    assert found is not None
    assert 3 <= found.step == records(run)[-1]["step"] < STEPS
    assert command(tmp_path, "train", tmp_path / "recipe.yaml", "--run-dir", run).end().code == 0
    same_as(whole, run)


def test_a_signal_in_the_last_save_is_obeyed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, before = Checkpoints.save, signal.getsignal(signal.SIGTERM)

    def save(self: Checkpoints, *rest: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(SystemExit) as stop:
            train(Toy(checkpoint_every=0), tmp_path / "run")
    assert stop.value.code == 143
    assert not (tmp_path / "run" / "model").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    train(Toy(checkpoint_every=0), tmp_path / "run")
    assert (tmp_path / "run" / "model").exists()


# Full disks.


def refuse_from(count: int, folder: Path) -> None:
    """In this process, from the count-th on, no file below a folder is opened to be written, nor renamed there."""
    seen, writing = 0, os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event in ("os.rename", "os.mkdir") or (event == "open" and (arguments[2] or 0) & writing)
        if writes and str(folder) in str(arguments[0]):
            seen += 1
            if seen >= count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))

    sys.addaudithook(refuse)


def told_of_a_full_disk(ended: Ended, run: Path) -> None:
    assert ended.code == 75, ended
    assert len(ended.err.splitlines()) == 3, ended.err
    found = last_of(run)
    assert "disk is full" in ended.err.splitlines()[0]
    assert ended.err.rstrip().endswith(f"the last checkpoint is {found.path}" if found else "no checkpoint yet")


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_disk_that_is_full_at_any_write_costs_nothing(whole: Path, tmp_path: Path, stride: int) -> None:
    """From a checkpoint on: two steps, a grid, a checkpoint, a page and the model."""
    half = tmp_path / "half"
    shutil.copytree(whole, half, ignore=shutil.ignore_patterns("model", "step_00000012"))
    for count in itertools.count(1, stride):
        folder = tmp_path / str(count)
        shutil.copytree(half, run := folder / "run")
        arguments = ["train", recipe(folder), "--run-dir", run]
        ended = command(folder, *arguments, before=partial(refuse_from, count, run)).end()
        if ended.code == 0:
            break
        told_of_a_full_disk(ended, run)
        if count % (3 * stride) == 1:  # with room again, it goes on
            assert command(folder, *arguments).end().code == 0
            same_as(whole, run)
        shutil.rmtree(folder)
    assert count > 30


def test_a_file_that_the_kernel_cuts(tmp_path: Path) -> None:
    """The writes themselves fail, first of the checkpoint, then of the model, which safetensors' own code writes."""
    arguments = ["train", recipe(tmp_path, steps=3), "--run-dir", tmp_path / "run"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    def limit_at_the_end() -> None:
        real = loop.RunLog.__exit__

        def leave(*rest: Any) -> None:
            real(*rest)
            limit()

        loop.RunLog.__exit__ = leave  # type: ignore[method-assign]

    for step, before in ((None, limit), (3, limit_at_the_end)):
        ended = command(tmp_path, *arguments, before=before).end()
        assert ended.code == 75, ended
        told = ended.err.splitlines()
        assert told[0] == "the disk refuses: File too large"
        assert told[2].endswith(f"step_{step:08d}" if step else "there is no checkpoint yet")
        assert len(told) == 3
    assert command(tmp_path, *arguments).end().code == 0


# What is refused.


def test_another_recipe_does_not_go_on_with_a_run(tmp_path: Path) -> None:
    train(Toy(steps=2), tmp_path / "run")
    with pytest.raises(BadInput) as caught:
        train(Toy(steps=2, optimizer={"lr": 0.02}), tmp_path / "run")
    assert str(caught.value).splitlines()[0] == "the run was started with optimizer.lr 0.01, and now it is 0.02"
    harmless = {"checkpoint_every": 1, "keep": 7, "sample_every": 2, "log_every": 3, "workers": 1, "micro_batch": 2}
    train(Toy(steps=4, **harmless), tmp_path / "run")
    assert toy_run(tmp_path / "run", 4)


def test_a_run_that_got_nowhere_takes_another_recipe(tmp_path: Path) -> None:
    def broken(step: int, share: range) -> list[Points]:
        raise BadInput("no such folder", "data.sources", "give another")

    stage: Any = Toy(steps=2, seed=1)
    stage.batch = broken
    with pytest.raises(BadInput, match="no such folder"):
        train(stage, tmp_path / "run")
    train(Toy(steps=2, seed=2), tmp_path / "run")
    assert toy_run(tmp_path / "run", 2)


def test_a_run_has_no_fewer_steps_than_it_has_done(tmp_path: Path) -> None:
    whole = Toy(steps=6, checkpoint_every=1)
    update_of = whole.losses
    whole.losses = lambda micro, draws: (  # type: ignore[method-assign]
        update_of(micro, draws) if micro.numbers[0] < 16 else (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        train(whole, tmp_path / "run")
    with pytest.raises(BadInput, match="the run has done 4 steps already"):
        train(Toy(steps=3, checkpoint_every=1), tmp_path / "run")
    train(Toy(steps=6, checkpoint_every=1), tmp_path / "run")
    assert toy_run(tmp_path / "run", 6)


def test_checkpoints_without_their_recipe_are_no_run(tmp_path: Path) -> None:
    train(Toy(steps=2), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.yaml").unlink()
    with pytest.raises(BadInput, match="a model or checkpoints stand where"):
        train(Toy(steps=2, seed=1), tmp_path / "run")


def test_grids_of_steps_that_are_done_again_go(tmp_path: Path) -> None:
    samples = tmp_path / "run" / "samples"
    samples.mkdir(parents=True)
    for step in (2, 9):
        (samples / f"step_{step:08d}.png").touch()
    (samples / "step_mine.png").touch()
    train(Toy(steps=3, sample_every=1), tmp_path / "run")
    left = [f"step_{step:08d}.png" for step in (1, 2, 3)]
    assert sorted(p.name for p in samples.iterdir()) == [*left, "step_mine.png"]


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(BadInput, match="a run's folder is wanted"):
        train(Toy(steps=1), tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_another_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        ended = command(tmp_path, "train", recipe(tmp_path), "--run-dir", tmp_path / "run").end()
    assert ended.code == 2
    assert ended.err.splitlines()[0] == "another run is at work in this folder"
    assert f"process {os.getpid()}" in ended.err
    assert len(ended.err.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "say"),
    [
        (["tiny/vea"], "did you mean tiny/vae"),
        (["nothing.yaml"], "no such file"),
        (["RECIPE", "--set", "optimiser.lr=1"], 'did you mean "optimizer"?'),
        (["RECIPE", "--set", "stage=kontex"], 'did you mean "kontext"?'),
        (["RECIPE", "--set", "steps=0"], "greater than or equal to 1"),
        (["RECIPE", "--set", "optimizer.lr=.nan"], "nan"),
        (["RECIPE", "--set", "track=[tensorbord]"], 'did you mean "tensorboard"?'),
        (["RECIPE", "--set", "model=tiny"], "this stage starts from a Kontext model"),
        (["RECIPE", "--set", "dtype=fp16"], "use bf16 or fp32"),
        (["RECIPE", "--set", "data.tasks=[]"], "give at least one task"),
        (["RECIPE", "--set", "model=runs/mine/model"], "give tiny, a folder, or a hub name"),
        (["RECIPE", "--set", "model=no", "--set", "data.sources=[{kind: folder, path: gone}]"], "gone/metadata.jsonl"),
        (["tiny/joint"], "run `unipic train tiny/align` first"),
        (["tiny/align"], "run `unipic train tiny/kontext-shapes` first"),
        (["tiny/kontext"], "run `unipic train tiny/kontext-t2i` first"),
        (["tiny/vae"], "run `python -m unipic.models.tiny runs/tiny/blank --to-train` first"),
        (["tiny/mllm"], "run `python -m unipic.models.tiny runs/tiny/blank --to-train` first"),
    ],
)
def test_bad_recipes_are_refused_in_three_lines(
    arguments: list[str], say: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(recipe(tmp_path))
    ended = command(tmp_path, "train", *(path if a == "RECIPE" else a for a in arguments)).end()
    assert ended.code == 2, ended
    assert say in ended.err
    assert len(ended.err.splitlines()) <= 3
    assert ended.out == ""


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(BadInput, match=f"{name} is not installed"):
            train(Toy(track=(name,)), tmp_path / "run")


def test_trackers_get_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert purge_step == 1  # what a killed run had told beyond its last checkpoint is taken back
            seen.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((step, name, value))

        def add_image(self, name: str, picture: Any, step: int, dataformats: str) -> None:
            seen.append((step, name, picture.shape))

        def close(self) -> None:
            seen.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"], "SummaryWriter", Writer, raising=False)
    train(Toy(track=("tensorboard",), sample_every=5, spoil=spoilt("loss", range(1))), tmp_path / "run")
    assert seen[0] == str(tmp_path / "run" / "tensorboard")
    assert seen[-1] == "closed"
    logged = {(r["step"], "loss"): r["loss"] for r in records(tmp_path / "run")}
    told = {entry[:2]: entry[2] for entry in seen[1:-1] if entry[1] == "loss"}
    assert logged.pop((1, "loss")) is None
    assert math.isnan(told.pop((1, "loss")))
    assert told == logged
    assert [entry[0] for entry in seen[1:-1] if entry[1] == "samples"] == [5, 10]


def test_a_run_that_goes_on_is_the_same_run_in_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    told: list[int] = []
    wandb: Any = type(sys)("wandb")
    wandb.init = lambda **settings: (
        begun.append(settings)
        or SimpleNamespace(log=lambda values, step: told.append(step), finish=lambda: told.append(-1))
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for steps in (4, 6):
        train(Toy(steps=steps, track=("wandb",)), tmp_path / "run")
    assert begun[0]["id"] == begun[1]["id"]
    assert {entry["resume"] for entry in begun} == {"allow"}
    assert told == [1, 2, 3, 4, -1, 5, 6, -1]
    train(Toy(steps=1, track=("wandb",)), tmp_path / "other")
    assert begun[2]["id"] != begun[0]["id"]


def test_a_broken_checkpoint_is_told_in_one_line(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, run := tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    broken = run / "checkpoints" / "step_00000012" / "transformer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    ended = command(tmp_path, "train", recipe(tmp_path), "--run-dir", run).end()
    assert ended.code == 0
    (line,) = ended.err.splitlines()
    assert line.startswith("warning: step_00000012 is skipped: the file has not the size")
    same_as(whole, run)
