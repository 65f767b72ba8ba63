"""scripts/tiny.py ship: trained models become the embedded ones, and share with what they were all that is the same."""

from __future__ import annotations

import errno
import importlib.resources
import json
import re
import shutil
import sys
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest
import torch
from torch import Tensor

from unipic.errors import BadInput, BadModel
from unipic.models import tiny, weights
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.checkpoint import read_component
from unipic.models.find import find_model
from unipic.models.folder import LAYOUTS, ModelFolder
from unipic.models.reward_model import load_reward_model, new_head
from unipic.models.weights import read_header

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import tiny as script

LEARNT = {"transformer_blocks.0.attn.to_q.weight", "transformer_blocks.1.attn.to_out.0.weight"}
TOO_LITTLE = "proj_out.bias"  # changes, too, but not in fp16


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stages and PDTR leave: random models in float32, and the same with some tensors changed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, make in (("tiny-kontext", tiny.make_kontext), ("tiny", tiny.make_metaquery)):
        make(folder / script.SHIPPED[name] / "model", dtype=torch.float32)
        model = find_model(str(folder / script.SHIPPED[name] / "model"))
        before = read_component(model, "transformer", None)
        after = {key: before[key] + 0.1 for key in LEARNT}
        after[TOO_LITTLE] = torch.nextafter(before[TOO_LITTLE], before[TOO_LITTLE].half().float())
        parts = components_of(model) | {"transformer": Changed.over(model, "transformer", after, torch.float32)}
        assemble(folder / script.REINFORCED[name] / "model", parts, model.defaults)
    return folder


@pytest.fixture
def assets(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the script ships to, and `--model tiny…` looks."""
    monkeypatch.setattr(script, "RUNS", runs)
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    return tmp_path / "assets"


def in_fp16(model: ModelFolder) -> dict[str, Tensor]:
    read = {n: read_component(model, n, torch.float16) for n in components_of(model) if LAYOUTS[n].weights}
    return {f"{name}.{key}": tensor for name, tensors in read.items() for key, tensor in tensors.items()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def weight_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors"))


def test_both_are_read_as_they_were_trained(assets: Path, runs: Path) -> None:
    script.ship(assets, reinforced=True)
    for name in script.SHIPPED:
        for shipped, run in ((name, script.REINFORCED[name]), (f"{name}-base", script.SHIPPED[name])):
            found, trained = find_model(shipped), find_model(str(runs / run / "model"))
            tensors, expected = in_fp16(found), in_fp16(trained)
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())
            assert found.defaults["edit"] == trained.defaults["edit"] | script.SAMPLING
            assert found.defaults.get("describe") == (script.ANSWERS if found.has("mllm") else None)


def test_only_what_adapters_change_is_stored_twice(assets: Path) -> None:
    script.ship(assets, reinforced=False)
    expected = weight_bytes(assets)
    hashes = {name: find_model(name).weights_hash() for name in script.SHIPPED}
    script.ship(assets, reinforced=True)
    for name in script.SHIPPED:
        common, learnt = find_model(name).weights("transformer")
        assert find_model(f"{name}-base").weights("transformer")[0] == common
        before = find_model(f"{name}-base").weights("transformer")[1]
        keys = set(weights.read_header(learnt))
        assert LEARNT <= keys == set(weights.read_header(before))
        assert all(re.search(r"blocks\.\d+\.attn\.\w+(\.0)?\.weight$", key) and "norm" not in key for key in keys)
        assert not keys & set(weights.read_header(common))
        expected += before.stat().st_size
        assert find_model(f"{name}-base").weights_hash() == hashes[name] != find_model(name).weights_hash()
    assert weight_bytes(assets) == expected


def test_what_was_not_trained_stays_as_it_was(
    assets: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.ship(assets, reinforced=False)
    before = {name: data for name, data in content(assets).items() if name.startswith("tiny/")}
    own = tmp_path / "runs" / script.REINFORCED["tiny-kontext"]
    shutil.copytree(runs / script.REINFORCED["tiny-kontext"], own)
    monkeypatch.setattr(script, "RUNS", own.parent)
    script.ship(assets, reinforced=True)
    assert before == {name: data for name, data in content(assets).items() if name.startswith("tiny/")} != {}
    assert (assets / "tiny-kontext-base" / "manifest.json").exists()


def test_the_reward_model_is_shipped_by_itself(assets: Path, runs: Path) -> None:
    """In fp16, beside what was there, and in an earlier one's place."""
    script.ship(assets, reinforced=True)
    before, language = content(assets), find_model("tiny")
    for seed in (0, 1):
        head = new_head(64, seed)
        parts = {"mllm": language, "reward_head": Changed(head.config, head.state_dict())}
        shutil.rmtree(runs / "edit-reward", ignore_errors=True)
        assemble(runs / "edit-reward" / "model", parts, {})
        script.ship_reward(assets)
        own = find_model(script.EDIT_REWARD)
        model = load_reward_model(own, torch.float32, torch.device("cpu"))
        assert torch.equal(model.net.head.scores.weight, head.scores.weight.half().float())
        assert all(read_header(path) for path in own.weights("reward_head"))
        after = content(assets)
        assert before == {name: data for name, data in after.items() if not name.startswith(script.EDIT_REWARD)}


def test_manifests_name_every_file_as_it_is(assets: Path) -> None:
    script.ship(assets, reinforced=True)
    assert {p.name for p in assets.iterdir()} == {"tiny", "tiny-base", "tiny-kontext", "tiny-kontext-base"}
    for folder in assets.iterdir():
        files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.*") if p.name != "manifest.json"}
        entries = {name: {"size": p.stat().st_size, "sha256": weights.file_sha256(p)} for name, p in files.items()}
        assert json.loads((folder / "manifest.json").read_text())["files"] == entries
    for shard in find_model("tiny-base").weights("transformer"):  # in common with tiny, and its own
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-1] + b"?")
        with pytest.raises(BadModel, match="not the one that manifest"):
            find_model("tiny-base").weights("transformer")
        shard.write_bytes(whole)


def test_another_model_is_not_its_reinforced_form(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.make_kontext(tmp_path / "other" / "model", seed=1)
    monkeypatch.setitem(script.REINFORCED, "tiny-kontext", str(tmp_path / "other"))
    with pytest.raises(BadInput, match="adapters do not change"):
        script.ship(assets, reinforced=True)


def test_without_reinforcement_nothing_of_it_stays(assets: Path) -> None:
    script.ship(assets, reinforced=True)
    script.ship(assets, reinforced=False)
    assert not [name for name in content(assets) if "-base" in name]
    assert find_model("tiny-base").root == assets / "tiny"


@pytest.mark.parametrize(("reinforced", "room"), [(False, 6), (True, 7), (True, 14)])
def test_full_disk_changes_nothing(assets: Path, monkeypatch: pytest.MonkeyPatch, reinforced: bool, room: int) -> None:
    """room: for how many files of weights; 7 are before tiny-kontext-base's shard, 14 before tiny-base's."""
    script.ship(assets, reinforced=not reinforced)
    before, full = content(assets.parent), OSError(errno.ENOSPC, "no space left")
    disk = Mock(wraps=weights.save_file, side_effect=[DEFAULT] * room + [full])
    monkeypatch.setattr(weights, "save_file", disk)
    with pytest.raises(OSError, match="no space left"):
        script.ship(assets, reinforced)
    assert content(assets.parent) == before
