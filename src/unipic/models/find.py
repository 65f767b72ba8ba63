"""The folder behind a model's name: embedded, a path, or a repository of the hub."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from unipic.errors import BadInput, UnipicError, one_line
from unipic.models.folder import KONTEXT, LAYOUTS, METAQUERY, REWARD, ModelFolder, did_you_mean

DEFAULT_MLLM = "Qwen/Qwen2.5-VL-7B-Instruct"
EMBEDDED = ("tiny", "tiny-kontext", "tiny-base", "tiny-kontext-base", "tiny-edit-reward")
"""As they are, and what they were before they were reinforced: the same where they were not; and a reward model."""
_HUB_NAME = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:@([\w./-]+))?", re.ASCII)


class Role(NamedTuple):
    """What a folder is needed for. files: of a repository, what is downloaded. check: raises unless it is whole."""

    files: list[str]
    check: Callable[[ModelFolder], None]


def _whole_model(folder: ModelFolder) -> None:
    for component in folder.components():
        folder.config(component)
        if LAYOUTS[component].weights:
            folder.weights(component)


def _whole_mllm(folder: ModelFolder) -> None:
    folder.config("mllm", at="")
    folder.weights("mllm", at="")
    folder.json("tokenizer_config.json")


# Only what a layout holds: no pickles, no Python, no second copy in another precision or as one file.
_SUFFIXES = ("*.safetensors", "*.json", "*.txt", "*.model")
_FOLDERS = sorted({*KONTEXT, *METAQUERY, *REWARD, "mllm"})
_OURS = ["model_index.json", "unipic.json", "manifest.json"]
_MODEL = Role([f"{folder}/{suffix}" for folder in _FOLDERS for suffix in _SUFFIXES] + _OURS, _whole_model)
_MLLM = Role(["*.safetensors", "*.json", "*.txt"], _whole_mllm)


def find_model(name: str, *, download: bool = True) -> ModelFolder:
    """name: "tiny", a folder, or a hub name, which may end in @REVISION.

    A hub name is looked up in the hub's cache, and downloaded if it is not whole there.
    """
    return _find(name, _MODEL, download)


def find_mllm(model: ModelFolder, name: str | None, *, download: bool = True) -> ModelFolder | None:
    """The understanding half: as named, else inside the model, else the published one if it was downloaded before.

    None for a Kontext model without one: it generates and edits by itself.
    """
    kind = model.kind  # a folder that is no model is refused here
    if name is not None:
        return find_language_model(name, download=download)
    if model.has("mllm"):
        return replace(model, inside="mllm")
    if kind == "kontext":
        return None
    try:
        return _find(DEFAULT_MLLM, _MLLM, download=False)
    except BadInput:
        raise BadInput(
            f"the model {model.name!r} needs its multimodal language model, which is not here",
            f"neither {model.root / 'mllm'} nor {DEFAULT_MLLM} in the hub's cache",
            f"give --mllm FOLDER, or --mllm {DEFAULT_MLLM} to download it (16 GB)",
        ) from None


def find_language_model(name: str, *, download: bool = True) -> ModelFolder:
    """A multimodal language model by its own name, or inside a model's folder."""
    folder = _find(name, _MLLM, download)
    return replace(folder, inside="mllm") if folder.has("mllm") else folder


def find_part(name: str, component: str) -> ModelFolder:
    """A model of one component, such as a detector, by itself: a folder, or a hub name in the hub's cache."""

    def whole(folder: ModelFolder) -> None:
        folder.config(component, at="")
        folder.weights(component, at="")

    return _find(name, Role(["*.safetensors", "*.json", "*.txt"], whole), download=False)


def _find(name: str, role: Role, download: bool) -> ModelFolder:
    if name in EMBEDDED:
        assets = Path(str(importlib.resources.files("unipic"))) / "assets"
        whole = ModelFolder(assets / name.removesuffix("-base"), name)
        own = assets / name
        return ModelFolder(own, name, under=whole) if own != whole.root and own.is_dir() else whole
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return ModelFolder(path, path.resolve().name)
        if path.is_file():
            raise BadInput("a file stands where a model's folder is needed", name, "give the folder that holds it")
    except (OSError, ValueError, RuntimeError):  # a name too long, a home that nobody has
        raise BadInput("this is no model's name", name, "give tiny, a folder, or a hub name") from None
    if (parts := _HUB_NAME.fullmatch(name)) is None:
        what = f"there is no such model{did_you_mean(name, EMBEDDED)}"
        raise BadInput(what, name, "give tiny, a folder, or a hub name")
    return _from_hub(name, parts[1], parts[2], role, download)


def _from_hub(name: str, repository: str, revision: str | None, role: Role, download: bool) -> ModelFolder:
    from huggingface_hub import snapshot_download

    def snapshot(local: bool) -> ModelFolder:
        path = snapshot_download(
            repository, revision=revision, allow_patterns=role.files, ignore_patterns="*fp16*", local_files_only=local
        )
        return ModelFolder(Path(path), name)

    try:
        folder = snapshot(local=True)
        role.check(folder)  # an interrupted download leaves a folder, too
        return folder
    except UnipicError:
        missing = "only in part in the hub's cache"
    except Exception:  # no such snapshot: the hub's own kinds of error have changed from version to version
        missing = "neither a folder here nor in the hub's cache"
    if not download:
        raise BadInput(f"this model is {missing}", name, f"run `hf download {repository}`, or give a folder")
    try:
        return snapshot(local=False)
    except Exception as error:  # no network, no access, no such repository, a full disk
        what = f"this model is {missing}, and could not be downloaded: {type(error).__name__}: {one_line(error)}"
        raise BadInput(
            what, name, f"run `hf download {repository}` where that is possible, or give a folder"
        ) from error
