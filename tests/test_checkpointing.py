"""Checkpoints outlive what befalls them: kills at every moment, full disks, flipped bits, other runs."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unipic import files
from unipic.errors import BadInput, UnipicError
from unipic.train import disk
from unipic.train.checkpointing import BrokenCheckpoint, Checkpoint, Checkpoints, CheckpointSkipped, open_checkpoint
from unipic.train.disk import CannotSave


def content(step: int, size: int = 1000) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What a step's checkpoint holds in these tests."""
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "transformer": {"a.weight": torch.randn(size, generator=generator), "b": torch.full((3,), step).bfloat16()},
        "optimizer/transformer": {"a.weight.exp_avg": torch.randn(size, generator=generator)},
    }
    return tensors, {"step": step, "loss": step / 7}


def at(run: Path, keep: int = 2) -> Checkpoints:
    return Checkpoints(run / "checkpoints", keep)


def save(checkpoints: Checkpoints, step: int, size: int = 1000) -> Path:
    return checkpoints.save(step, *content(step, size))


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Equal in names, types, shapes and every bit, NaN included."""

    def bits(tensor: Tensor) -> bytes:
        return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and bits(a[k]) == bits(b[k]) for k in a
    )


def check(found: Checkpoint | None, size: int = 1000) -> int:
    """The checkpoint holds what its step should; gives the step."""
    assert found is not None
    tensors, state = content(found.step, size)
    assert found.state == state
    assert found.names() == tuple(sorted(tensors))
    assert all(same(found.tensors(name), group) for name, group in tensors.items())
    return found.step


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "checkpoints").iterdir())


# What is saved comes back.


def test_odd_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    odd = {
        "transposed": base.t(),
        "strided": base[::2, 1::2],
        "expanded": torch.tensor([1.5]).expand(3, 2),
        "tied": base,
        "tied_again": base,
        "row_of_tied": base[1],
        "bf16": torch.tensor([1.1, -0.0, float("inf"), float("nan")], dtype=torch.bfloat16),
        "fp16": torch.tensor([6e-8, 65504.0], dtype=torch.float16),
        "fp64": torch.tensor([0.1], dtype=torch.float64),
        "nan_payload": torch.tensor([0x7FC12345, -1], dtype=torch.int32).view(torch.float32),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "bytes": torch.get_rng_state(),
        "truth": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.25),
        "scalar_int": torch.tensor(7),
        "empty": torch.empty(0),
        "empty_too": torch.empty(2, 0, 3, dtype=torch.bfloat16),
        "learned": torch.nn.Parameter(torch.ones(2, 2)),
    }
    path = at(tmp_path).save(1, {"odd": odd, "none": {}}, {})
    found = at(tmp_path).latest()
    assert found is not None
    assert found.path == path
    assert same(found.tensors("odd"), odd)
    assert found.tensors("none") == {}


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
@settings(deadline=None, max_examples=30)
def test_any_state_of_strict_json_comes_back(state: dict[str, Any]) -> None:
    assert json.loads(disk.json_bytes(state, "state")) == state


@pytest.mark.parametrize(
    ("state", "key"),
    [
        ({"a": [1.0, {"loss": float("nan")}]}, "state['a'][1]['loss']"),
        ({"best": float("-inf")}, "state['best']"),
        ({"seen": {3: "x"}}, "3 in state['seen']"),
        ({"rng": torch.zeros(1)}, "state['rng']"),
    ],
)
def test_a_state_that_json_does_not_hold_is_named_before_anything_is_written(
    tmp_path: Path, state: dict[str, Any], key: str
) -> None:
    with pytest.raises(BadInput) as caught:
        at(tmp_path).save(1, {}, state)
    assert caught.value.where == key
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "/etc/x", "a//b", ".hidden", "a/.b", "é", "a b", "a\0"])
def test_file_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        at(tmp_path).save(1, {name: {}}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensors", [{"a b": torch.ones(1)}, {"a": torch.ones(1, dtype=torch.complex64)}])
def test_tensors_that_could_not_be_read_back_are_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    with pytest.raises(UnipicError):
        at(tmp_path).save(1, {"x": tensors}, {})
    assert visible(tmp_path) == []
    assert at(tmp_path).latest() is None


def test_a_name_that_is_not_there_is_named(tmp_path: Path) -> None:
    save(at(tmp_path), 1)
    found = at(tmp_path).latest()
    assert found is not None
    with pytest.raises(BadInput, match="optimizer/transformer, transformer"):
        found.tensors("ema")


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert at(tmp_path / "new").latest() is None
    assert not (tmp_path / "new").exists()


# Which ones stay.


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_ones_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = at(tmp_path, keep)
    for step in range(10, 60, 10):
        save(checkpoints, step)
    assert visible(tmp_path) == [f"step_{step:08d}" for step in range(10, 60, 10)][-keep:]
    assert check(at(tmp_path).latest()) == 50


def test_a_smaller_keep_cleans_up_after_a_greater_one(tmp_path: Path) -> None:
    for step in range(5):
        save(at(tmp_path, keep=5), step)
    save(at(tmp_path, keep=1), 5)
    assert visible(tmp_path) == ["step_00000005"]
    with pytest.raises(BadInput):
        at(tmp_path, keep=0)


def test_broken_ones_do_not_push_out_intact_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(at(tmp_path, keep=3), step)
    (tmp_path / "checkpoints/step_00000003/state.json").write_text("{}")
    checkpoints = at(tmp_path, keep=2)
    with pytest.warns(CheckpointSkipped, match="step_00000003"):
        assert check(checkpoints.latest()) == 2
    save(checkpoints, 2)
    assert visible(tmp_path) == ["step_00000001", "step_00000002", "step_00000003"]
    save(checkpoints, 3)  # the broken one is written over
    assert visible(tmp_path) == ["step_00000002", "step_00000003"]
    assert check(checkpoints.latest()) == 3


def test_what_dead_processes_left_is_removed_and_the_living_are_spared(tmp_path: Path) -> None:
    home = tmp_path / "checkpoints"
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    for name in (f".partial-step_00000009-{dead}", f".removed-step_00000001.replaced-{dead}", ".partial-x-1"):
        (home / name).mkdir(parents=True)
        (home / name / "half").write_text("{")
    (home / f".removed-step_00000002-{dead}").write_text("a file")
    save(at(tmp_path), 3)
    assert visible(tmp_path) == [".partial-x-1", "step_00000003"]


# Damage.


def damaged(path: Path, say: str) -> None:
    """The damage is found, with the file named, and the older checkpoint is taken; alone, it is an error."""
    with pytest.raises(BrokenCheckpoint, match=f"(?s)({say})"):
        open_checkpoint(path)
    folder = path.parents[1]
    with pytest.warns(CheckpointSkipped, match=f"{path.name} is skipped: .*({say})"):
        assert check(at(folder).latest()) == 1


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """The second of two checkpoints."""
    save(at(tmp_path), 1)
    return save(at(tmp_path), 2)


FILES = ["manifest.json", "state.json", "transformer.safetensors", "optimizer/transformer.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(newest: Path, name: str) -> None:
    raw = (newest / name).read_bytes()
    places = range(len(raw)) if len(raw) < 1000 else random.Random(0).sample(range(len(raw)), 200)
    for place in places:
        broken = bytearray(raw)
        broken[place] ^= 1 << random.Random(place).randrange(8)
        (newest / name).write_bytes(broken)
        with pytest.raises(BrokenCheckpoint):
            open_checkpoint(newest)
    damaged(newest, name)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_found(newest: Path, name: str) -> None:
    raw = (newest / name).read_bytes()
    for length in {0, 1, len(raw) // 2, len(raw) - 2}:
        (newest / name).write_bytes(raw[:length])
        damaged(newest, name)
    (newest / name).write_bytes(raw + b"x")
    damaged(newest, name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(newest: Path, name: str) -> None:
    (newest / name).unlink()
    damaged(newest, f"a file is missing.*{name}")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_found(newest: Path, name: str) -> None:
    (newest / name).unlink()
    (newest / name).mkdir()
    damaged(newest, f"a link or a folder stands in place.*{name}")


@pytest.mark.parametrize("name", FILES)
def test_a_link_to_the_very_same_bytes_elsewhere_is_refused(newest: Path, tmp_path: Path, name: str) -> None:
    (newest / name).rename(tmp_path / "outside")
    (newest / name).symlink_to(tmp_path / "outside")
    damaged(newest, f"a link or a folder stands in place.*{name}")


def test_links_to_folders_and_to_nowhere_are_refused(newest: Path, tmp_path: Path) -> None:
    (newest / "optimizer").rename(tmp_path / "outside")
    (newest / "optimizer").symlink_to(tmp_path / "outside")
    damaged(newest, "a link or a folder")
    (newest / "state.json").unlink()
    (newest / "state.json").symlink_to("state.json")
    damaged(newest, "a link or a folder")
    shutil.move(newest, tmp_path / "moved")
    newest.symlink_to(tmp_path / "moved")
    damaged(newest, "no folder")


def test_swapped_files_are_found(newest: Path) -> None:
    a, b = newest / FILES[2], newest / FILES[3]
    raw = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(raw)
    damaged(newest, "size|not the one")


def test_a_manifest_from_another_checkpoint_is_found(newest: Path) -> None:
    shutil.copy(newest.parent / "step_00000001/manifest.json", newest / "manifest.json")
    damaged(newest, "another step")


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"format_version": 2}, "a newer unipic"),
        ({"format_version": "1"}, "no manifest"),
        ({"format_version": 0}, "no manifest"),
        ({"files": []}, "no manifest"),
        ({"files": {}}, "no manifest"),
        ({"files": {"state.json": None}}, "lists 'state.json'"),
        ({"files": {"state.json": {}, "../../x": {}}}, "state.json"),
    ],
)
def test_manifests_of_other_making_are_refused(newest: Path, change: dict[str, Any], say: str) -> None:
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(manifest | change))
    damaged(newest, say)


def test_a_manifest_cannot_lead_outside(newest: Path) -> None:
    outside = newest.parent / "secret.safetensors"
    shutil.copy(newest / FILES[2], outside)
    manifest = json.loads((newest / "manifest.json").read_text())
    manifest["files"]["../secret.safetensors"] = manifest["files"][FILES[2]]
    (newest / "manifest.json").write_text(json.dumps(manifest))
    damaged(newest, "lists '../secret")


def test_if_none_is_intact_the_newest_is_named(newest: Path) -> None:
    (newest / "state.json").write_text("{}")
    (newest.parent / "step_00000001/manifest.json").write_text("[" * 100_000)
    with (
        pytest.warns(CheckpointSkipped),
        pytest.raises(BrokenCheckpoint, match=r"(?s)no checkpoint of this run is intact.*step_00000002") as caught,
    ):
        at(newest.parents[1]).latest()
    assert len(str(caught.value).splitlines()) == 3


# The order of what the system is asked.


class Calls:
    """Records the calls that change the disk, and lets `before` act ahead of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, before: Callable[[int, Callable[[], object]], None]) -> None:
        self.seen: list[tuple[str, str]] = []
        self.before = before
        for name in ("fsync", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self._watched(name, getattr(os, name)))
        monkeypatch.setattr(files, "open", self._open, raising=False)

    def note(self, name: str, what: object, half: Callable[[], object] = lambda: None) -> None:
        target = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)  # type: ignore
        self.seen.append((name, str(target)))
        self.before(len(self.seen), half)

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *rest: Any, **more: Any) -> Any:
            self.note(name, what)
            return real(what, *rest, **more)

        return call

    def _open(self, path: Path, mode: str) -> Any:
        self.note("open", path)
        file, note = path.open(mode), self.note

        class Watched:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                try:
                    note("close", path)
                finally:
                    file.close()

            def write(self, data: bytes) -> None:
                note("write", path, lambda: (file.write(data[: len(data) // 2]), file.flush()))
                file.write(data)

            def flush(self) -> None:
                note("flush", path)
                file.flush()

            def fileno(self) -> int:
                return file.fileno()

        return Watched()


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = at(tmp_path, keep=1)
    save(checkpoints, 1)
    calls = Calls(monkeypatch, lambda *_: None)
    final = save(checkpoints, 2)
    home, seen = tmp_path / "checkpoints", calls.seen
    partial = str(home / f".partial-step_00000002-{os.getpid()}")
    published = seen.index(("rename", partial))
    synced = [what for name, what in seen[:published] if name == "fsync"]
    wanted = {str(Path(partial) / name) for name in FILES}
    assert set(synced[: len(wanted)]) == wanted
    assert synced[len(wanted) :] == [f"{partial}/optimizer", partial]
    assert {what for name, what in seen[:published] if name == "write"} == wanted
    for name in wanted:
        last_write = max(i for i, call in enumerate(seen) if call == ("write", name))
        assert last_write < seen.index(("fsync", name)) < published
    assert seen[published + 1] == ("fsync", str(home))
    assert seen[published + 2 :] == [("rename", str(home / "step_00000001"))]  # only now is the old one removed
    assert visible(tmp_path) == [final.name]


def test_the_first_checkpoint_also_makes_its_folder_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, lambda *_: None)
    save(at(tmp_path), 1)
    assert calls.seen[:2] == [("mkdir", str(tmp_path / "checkpoints")), ("fsync", str(tmp_path))]


# Full disks.


@pytest.mark.parametrize(("step", "code"), [(2, errno.ENOSPC), (2, errno.EIO), (1, errno.EDQUOT)])
def test_a_disk_that_refuses_at_any_call_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, code: int
) -> None:
    refused = 0
    for refused in itertools.count(1):
        folder = tmp_path / str(refused)
        checkpoints = at(folder, keep=1)
        save(checkpoints, 1)

        def refuse(number: int, half: Callable[[], object], when: int = refused) -> None:
            if number == when:
                half()
                raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            calls = Calls(patch, refuse)
            try:
                save(checkpoints, step)
                if len(calls.seen) < refused:
                    break
                assert calls.seen[refused - 1][0] == "mkdir"  # of a folder that is there: no harm done
                continue
            except CannotSave as caught:
                error = caught
        assert error.exit_code == 75
        assert ("full" in error.what) == (code != errno.EIO)
        assert error.where == str(folder / "checkpoints")
        found = checkpoints.latest()
        assert check(found) in {1, step}
        assert found is not None
        assert error.mend.endswith(f"run the same command again; the last checkpoint is {found.path}")
        assert not any(name.startswith(".partial") for name in visible(folder)), calls.seen[-1]
        save(checkpoints, step)
        assert visible(folder) == [f"step_{step:08d}"]
        assert check(checkpoints.latest()) == step
    assert refused > 25


def test_a_real_limit_of_the_kernel(tmp_path: Path) -> None:
    """A file size limit in a child: the writes themselves fail, not a stand-in for them."""
    save(at(tmp_path), 1)

    def child() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save(at(tmp_path), 2, size=100_000)
        except CannotSave as error:
            told = "File too large" in error.what and "step_00000001" in error.mend
            return 75 if told and visible(tmp_path) == ["step_00000001"] else 1
        return 0

    assert os.waitstatus_to_exitcode(os.waitpid(fork(child), 0)[1]) == 75
    assert check(at(tmp_path).latest()) == 1


def test_the_first_save_on_a_full_disk_says_that_there_is_none_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    Calls(monkeypatch, full)
    with pytest.raises(CannotSave, match=r"free space and .* there is no checkpoint yet"):
        save(at(tmp_path), 1)


# Kills.


def fork(child: Callable[[], int]) -> int:
    """A process of its own, without another import of torch."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = child()
    finally:
        os._exit(code)


@pytest.mark.parametrize("step", [2, 1], ids=["new", "again"])
def test_a_kill_ahead_of_any_call_leaves_an_intact_checkpoint(tmp_path: Path, step: int) -> None:
    first = tmp_path / "first"
    save(at(first), 1)
    for moment in itertools.count(1):
        folder = tmp_path / str(moment)
        shutil.copytree(first, folder)

        def child(folder: Path = folder, when: int = moment) -> int:
            def kill(number: int, half: Callable[[], object]) -> None:
                if number == when:
                    half()
                    os.kill(os.getpid(), signal.SIGKILL)

            Calls(pytest.MonkeyPatch(), kill)
            save(at(folder, keep=1), step)
            return 0

        code = os.waitstatus_to_exitcode(os.waitpid(fork(child), 0)[1])
        assert check(at(folder).latest()) in ({1, 2} if code else {step})
        save(at(folder, keep=1), step)  # and the run goes on, without leftovers
        assert visible(folder) == [f"step_{step:08d}"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert moment > 25


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Steps are saved without pause and a save takes some 20 ms, so that most kills fall into one."""
    size, randomness, within, last = 300_000, random.Random(0), 0, 0
    for kill in range(60):
        reading, writing = os.pipe()

        def child(start: int = last + 1, tell: int = writing) -> int:
            checkpoints = at(tmp_path, keep=1 + start % 2)
            for step in itertools.count(start):
                os.write(tell, b"%d begun\n" % step)
                save(checkpoints, step, size)
                os.write(tell, b"%d saved\n" % step)
            return 1

        pid = fork(child)
        os.close(writing)
        told = os.read(reading, 100)
        time.sleep(randomness.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reading, "rb") as rest:
            lines = (told + rest.read()).decode().splitlines()
        saved = max([last, *(int(line.split()[0]) for line in lines if line.endswith("saved"))])
        within += lines[-1].endswith("begun")
        if saved or any(name.startswith("step") for name in visible(tmp_path)):
            last = check(at(tmp_path).latest(), size)
        assert last in (saved, saved + 1)  # a kill may fall between the renaming and the telling
        if kill >= 19 and within >= 12:
            break
    assert within >= 12
    assert last >= 2


# Two runs, one folder.


def test_a_second_run_is_refused_until_the_first_has_ended_however_it_ended(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    reading, writing = os.pipe()

    def child() -> int:
        with disk.locked(folder):
            os.write(writing, b"locked")
            time.sleep(60)
        return 0

    pid = fork(child)
    os.read(reading, 10)
    with pytest.raises(BadInput, match=f"(?s)another run .*process {pid}"), disk.locked(folder):
        pytest.fail("entered a locked folder")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with disk.locked(folder), pytest.raises(BadInput), disk.locked(folder):
        pytest.fail("entered a folder locked by this very process")
    with disk.locked(folder), disk.locked(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UnipicError), disk.locked(tmp_path / "file"):
        pytest.fail("locked a file")


def test_errors_within_a_locked_run_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk.locked(tmp_path):
        (tmp_path / "missing").read_bytes()
    with disk.locked(tmp_path):
        pass
