"""Names of models, against a stand-in for the hub's download; and the settings that published folders have."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import unipic
from unipic import BadInput
from unipic.errors import BadModel
from unipic.models import find, kontext, metaquery, mllm, text, vae
from unipic.models.assembly import assemble, components_of
from unipic.models.checkpoint import read_component
from unipic.models.folder import ModelFolder
from unipic.models.spec import ModelSpec

ASSETS = Path(unipic.__file__).parent / "assets"
PUBLISHED = Path(__file__).parent / "published"


class Hub:
    """`snapshot_download` over a folder instead of a network; it counts what is fetched."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache, self.calls = source, cache, list[dict[str, Any]]()

    def __call__(self, repository: str, *, local_files_only: bool, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append({"repository": repository, "local": local_files_only, **options})
        if not local_files_only:
            for file in (f for f in self.source.rglob("*") if f.is_file()):
                name = file.relative_to(self.source).as_posix()
                if any(fnmatch(name, pattern) for pattern in allow_patterns):
                    (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, self.cache / name)
        if not self.cache.exists():
            raise FileNotFoundError("no snapshot")
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    shutil.copytree(ASSETS / "tiny-kontext", tmp_path / "source")
    stray = ("sd3.5_medium.safetensors", "text_encoders/clip_l.safetensors", "vae/model.bin", "vae/evil.py")
    for name in stray:
        (tmp_path / "source" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_text("")
    stand_in = Hub(tmp_path / "source", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", stand_in)
    return stand_in


def test_a_hub_name_is_downloaded_once_and_only_what_is_needed(hub: Hub) -> None:
    first = find.find_model("org/model")
    assert first.kind == "kontext"
    assert [call["local"] for call in hub.calls] == [True, False]
    fetched = {f.name for f in hub.cache.rglob("*") if f.is_file()}
    assert not fetched & {"sd3.5_medium.safetensors", "clip_l.safetensors", "model.bin", "evil.py"}
    find.find_model("org/model")
    assert [call["local"] for call in hub.calls] == [True, False, True]


def test_a_model_may_be_another_with_some_files_in_their_place(tmp_path: Path) -> None:
    whole = ModelFolder(shutil.copytree(ASSETS / "tiny-kontext", tmp_path / "whole"), "whole")
    own = tmp_path / "own" / "vae" / "diffusion_pytorch_model.safetensors"
    own.parent.mkdir(parents=True)
    tensors = load_file(whole.weights("vae")[0])
    save_file({key: -tensor for key, tensor in tensors.items()}, own)
    folder = ModelFolder(tmp_path / "own", "own", under=whole)
    assert folder.kind == whole.kind
    assert folder.defaults == whole.defaults
    assert folder.weights("transformer") == whole.weights("transformer")
    assert folder.weights_hash() != whole.weights_hash()
    for other in (folder, ModelFolder(_assembled(folder, tmp_path / "new"), "new")):
        loaded = read_component(other, "vae", None)
        assert all(torch.equal(loaded[key], -tensor) for key, tensor in tensors.items())
        assert other.config("vae") == whole.config("vae")
    own.unlink()
    own.symlink_to(__file__)
    with pytest.raises(BadModel, match="outside"):
        folder.weights("vae")


def _assembled(folder: ModelFolder, target: Path) -> Path:
    assemble(target, components_of(folder), folder.defaults)
    return target


def test_an_interrupted_download_is_taken_up(hub: Hub) -> None:
    find.find_model("org/model")
    (hub.cache / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    find.find_model("org/model")
    assert (hub.cache / "vae" / "diffusion_pytorch_model.safetensors").exists()


def test_a_revision_is_passed_on(hub: Hub) -> None:
    assert find.find_model("org/model@v1.0").name == "org/model@v1.0"
    assert {call["revision"] for call in hub.calls} == {"v1.0"}


def test_info_downloads_nothing(hub: Hub) -> None:
    with pytest.raises(BadInput, match="hf download org/model"):
        find.find_model("org/model", download=False)
    assert [call["local"] for call in hub.calls] == [True]


def test_a_failed_download_says_why(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError("401: this repository is gated")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BadInput, match="401: this repository is gated"):
        find.find_model("org/model")


# Settings as published (written down from the checkpoints' JSON), and what must come of them: billions of parameters.
def published(name: str) -> ModelFolder:
    return ModelFolder(PUBLISHED / name, name)


def billions(model: Any) -> float:
    return round(sum(p.numel() for p in model.parameters()) / 1e9, 2)


def test_published_kontext_settings() -> None:
    folder = published("kontext")
    spec = ModelSpec(folder)
    spec.check_schedule()
    spec.check_parts()
    assert (spec.shift, spec.vae_factor, spec.size_multiple, spec.largest_side) == (3.0, 8, 16, 6144)
    assert billions(kontext.blank_transformer(folder)) == 2.24
    assert billions(vae.blank_vae(folder)) == 0.08
    sizes = [billions(text.blank_encoder(folder, f"text_encoder{n}")) for n in ("", "_2", "_3")]
    assert sizes == [0.12, 0.69, 4.76]


def test_published_metaquery_settings() -> None:
    folder = published("metaquery")
    ModelSpec(folder).check_parts()
    assert billions(metaquery.blank_conditioner(folder)) == 0.9
    language = find.find_mllm(folder, None)
    assert language is not None
    model = mllm.blank_mllm(language)
    assert billions(model) == 8.29
    assert model.config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert model.config.image_token_id == 151655
