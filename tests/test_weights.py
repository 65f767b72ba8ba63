"""Reading safetensors with suspicion: sound files are read as the library reads them, broken ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from unipic import BadModel
from unipic.models.weights import HashCache, read_header, read_tensors

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sound_files_are_read_as_the_library_reads_them(
    tmp_path: Path, shapes: list[list[int]], dtype: torch.dtype
) -> None:
    path = tmp_path / "sound.safetensors"
    save_file({f"layer.{i}": torch.ones(shape).to(dtype) for i, shape in enumerate(shapes)}, path)
    ours, theirs = read_tensors([path]), load_file(path)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) and ours[k].dtype == theirs[k].dtype for k in theirs)


@given(st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_is_named_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """A byte changed, cut off or added anywhere: BadModel, or a file that is still sound in itself."""
    whole = tmp_path / "whole.safetensors"
    save_file({"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}, whole)
    raw = bytearray(whole.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "add"]))
    place = data.draw(st.integers(0, len(raw) - 1))
    if kind == "flip":
        raw[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[place:]
    else:
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(raw)
    verdict = ""
    try:
        tensors = read_tensors([damaged])
    except BadModel as error:
        verdict = str(error)
    if verdict:
        assert str(damaged) in verdict
        assert len(verdict.splitlines()) <= 3
    else:
        assert all(t.isfinite().all() for t in tensors.values())


def test_floating_tensors_are_cast_and_others_kept(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2), "steps": torch.tensor([3])}, tmp_path / "a.safetensors")
    read = read_tensors([tmp_path / "a.safetensors"], torch.bfloat16)
    assert (read["w"].dtype, read["steps"].dtype) == (torch.bfloat16, torch.int64)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(BadModel, match="two files"):
        read_tensors([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert list(read_header(tmp_path / "a.safetensors")) == ["w"]


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    cache, file = HashCache(tmp_path / "cache" / "hashes.json"), tmp_path / "weights"
    file.write_bytes(b"one")
    first = cache.sha256(file)
    remembered = json.loads(cache.path.read_text())
    assert list(remembered.values()) == [first]
    cache.path.write_text(json.dumps(dict.fromkeys(remembered, "remembered")))
    assert cache.sha256(file) == "remembered"
    file.write_bytes(b"three")
    assert cache.sha256(file) not in ("remembered", first)
    assert len(json.loads(cache.path.read_text())) == 1


def test_a_broken_or_unwritable_cache_only_costs_time(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    broken = tmp_path / "hashes.json"
    broken.write_text("{")
    assert HashCache(broken).sha256(file) == HashCache(file / "below" / "a-file").sha256(file)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container with a number for a user."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"one")
    assert len(HashCache().sha256(tmp_path / "weights")) == 64
