"""New model folders in the published layouts, from components that were kept and components that changed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unipic.errors import BadInput
from unipic.models.checkpoint import read_component, write_component, write_manifest
from unipic.models.folder import ModelFolder

_TWICE = {"encoder.embed_tokens.weight"}  # T5 stores it once, as shared.weight
INDEX = {
    "_class_name": "StableDiffusion3KontextPipeline",
    "transformer": ["unipic.models.kontext", "SD3Transformer2DKontextModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}


@dataclass(frozen=True)
class Changed:
    """A component's new tensors, by their published names, and its JSON.

    beside: the folder whose other files it keeps (a language model's tokenizer and processor), if any.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    beside: ModelFolder | None = None

    @classmethod
    def over(cls, folder: ModelFolder, name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Changed:
        """A folder's component with some of its tensors (buffers, often, are not among those that were trained)."""
        at = "" if name == "mllm" else None
        stored = read_component(folder, name, None, at)
        if lost := [key for key in tensors if key not in stored and key not in _TWICE]:
            raise AssertionError(f"{name} stores no {lost[:5]}")
        new = {key: tensors.get(key, tensor).to(dtype) for key, tensor in stored.items()}
        return cls(folder.config(name, at), new, folder if name == "mllm" else None)


def components_of(folder: ModelFolder) -> dict[str, ModelFolder | Changed]:
    """All that a model's folder holds, as it is."""
    names = (*folder.components(), *(["mllm"] if folder.has("mllm") else []))
    return dict.fromkeys(names, folder)


def assemble(target: Path, components: Mapping[str, ModelFolder | Changed], defaults: Mapping[str, Any]) -> None:
    """Write a folder; it appears whole or not at all.

    target: what does not exist, or is empty. components: by name, changed, or the folder to copy them from (of "mllm"
    also a folder of Qwen2.5-VL's own). defaults: the settings of each task. Raises BadInput where something stands.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput("there is something already", str(target), "give a new or empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as temporary:
        new = Path(temporary) / "model"
        for name, component in components.items():
            if isinstance(component, Changed):
                if component.beside is not None:
                    _copy(component.beside, name, new)
                    for path in [*(new / name).glob("*.safetensors"), *(new / name).glob("*.index.json")]:
                        path.unlink()
                write_component(new, name, dict(component.config), component.tensors)
            else:
                _copy(component, name, new)
        if "text_encoder" in components:
            (new / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
        write_manifest(new, defaults)
        new.replace(target)


def _copy(folder: ModelFolder, name: str, target: Path) -> None:
    alone = name == "mllm" and not folder.has("mllm")  # Qwen2.5-VL's own folder
    if folder.under is not None:
        _copy(replace(folder.under, inside=folder.inside), name, target)
        if not (folder.path / name).exists():
            return
    source = folder.check_subfolder("" if alone else name)
    shutil.copytree(source, target / name, copy_function=shutil.copyfile, ignore=_no_data, dirs_exist_ok=True)


def _no_data(folder: str, names: list[str]) -> list[str]:
    """What in a published folder is neither weights nor settings: pickles and Python are not copied along."""
    kept = (".safetensors", ".json", ".txt", ".model", ".jinja")
    return [name for name in names if not name.endswith(kept) and not Path(folder, name).is_dir()]
