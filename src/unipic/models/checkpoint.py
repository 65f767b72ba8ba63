"""Models from published folders and back: strict in what they are built from, plain in what is written.

A model is built on the meta device from its JSON, its tensors are compared with what it expects, name by name and shape
by shape, and only then put in. Attributes are never set by names that a file brings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from torch import Tensor, nn
from transformers import T5EncoderModel

from unipic.errors import BadModel, UnipicError
from unipic.models.folder import FORMAT_VERSION, LAYOUTS, ModelFolder, did_you_mean
from unipic.models.weights import check_tensors, file_sha256, read_tensors, write_tensors

# What these libraries say of loading, we say ourselves.
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers.logging.set_verbosity_error()

T = TypeVar("T")
MAX_LAYERS = 1000
_NOT_ARCHITECTURE = {"dtype", "torch_dtype", "return_dict", "output_hidden_states", "output_attentions"}
_NOT_ARCHITECTURE |= {"is_encoder_decoder", "stop_strings", "transformers_weights", "get_text_config", "to_dict"}


def blank_diffusers(cls: type[Any], config: Mapping[str, Any], where: Path) -> Any:
    """A diffusers model from its JSON, without memory."""
    known = set(signature(cls.__init__).parameters) - {"self"}
    values = {k: v for k, v in config.items() if not k.startswith("_")}
    if stray := next((k for k in values if k not in known), None):
        raise BadModel(
            f"unknown setting {stray!r}{did_you_mean(stray, known)}", str(where / "config.json"), "remove it"
        )
    _check_depth(values, where)
    with describing_errors(where), torch.device("meta"):
        return cls(**values)


def blank_transformers(cls: type[Any], config_cls: type[Any], config: Mapping[str, Any], where: Path) -> Any:
    """A transformers model from its JSON, without memory; what is no matter of its architecture is left out."""
    _check_depth(config, where)
    with describing_errors(where), torch.device("meta"):
        return cls(config_cls.from_dict(_architecture(config)))


def fill(blank: Any, tensors: Mapping[str, Tensor], where: Path) -> Any:
    """Put tensors into a blank model, frozen and in evaluation mode. Its memory is theirs."""
    check_tensors(tensors, blank.state_dict(), where)
    blank.load_state_dict(dict(tensors), strict=True, assign=True)
    return frozen(blank)


def fill_transformers(blank: Any, tensors: Mapping[str, Tensor], where: Path, dtype: torch.dtype) -> Any:
    """The same for a transformers model; the library casts (some of T5's layers stay float32 in half precision)."""
    named = stored_once(tensors, blank)
    check_tensors(named, blank.state_dict(), where)
    # Only tensors and our own config object go in: given no path, the library opens no file and no socket.
    return frozen(type(blank).from_pretrained(None, config=blank.config, state_dict=named, dtype=dtype))


def stored_once(tensors: Mapping[str, T], blank: Any) -> dict[str, T]:
    """A file's tensors under all names that the model knows them by: tied weights are stored under one of theirs."""
    named = {name: t for name, t in tensors.items() if not name.endswith("embeddings.position_ids")}  # 0, 1, 2, …
    if isinstance(blank, T5EncoderModel) or getattr(blank.config, "tie_word_embeddings", False):
        for name, source in (blank._tied_weights_keys or {}).items():
            if source in named:
                named.setdefault(name, named[source])
    return named


def _architecture(config: Any) -> Any:
    """Without wishes for attention kernels and precisions (both are ours to choose) and switches of other outputs."""
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k not in _NOT_ARCHITECTURE and "attn_implementation" not in k}
        return {k: _architecture(v) for k, v in kept.items()}
    return config


def _check_depth(config: Mapping[str, Any], where: Path) -> None:
    """Refuse what would take minutes to build, only to be told that the weights do not fit."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_depth(value, where)
        elif ("layers" in key or key == "depth") and isinstance(value, int) and value > MAX_LAYERS:
            raise BadModel(
                f"{key} is {value}, more than any model has", str(where / "config.json"), "download it again"
            )


class describing_errors:
    """Any error while a model is built from its JSON is that JSON's fault."""

    def __init__(self, where: Path) -> None:
        self.where = where

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, UnipicError):
            what = f"the settings describe no model: {error}"
            raise BadModel(what, str(self.where / "config.json"), "download it again") from error


def frozen(model: nn.Module) -> nn.Module:
    """In evaluation mode, without gradients: a trainer asks for those of the parts that it trains."""
    return model.eval().requires_grad_(False)


def read_component(
    folder: ModelFolder, component: str, dtype: torch.dtype | None, at: str | None = None
) -> dict[str, Tensor]:
    return read_tensors(folder.weights(component, at), dtype)


def write_component(
    folder: Path, component: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor], at: str | None = None
) -> None:
    """A component's JSON and safetensors, in the published names."""
    layout = LAYOUTS[component]
    target = folder / (component if at is None else at)
    target.mkdir(parents=True, exist_ok=True)
    (target / layout.config).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if layout.weights:
        write_tensors(target / f"{layout.weights}.safetensors", tensors)


def write_manifest(folder: Path, defaults: Mapping[str, Any]) -> None:
    """`unipic.json` and, last, the manifest that makes a folder complete."""
    (folder / "unipic.json").write_text(
        json.dumps({"format_version": FORMAT_VERSION, "defaults": defaults}, indent=2, sort_keys=True) + "\n"
    )
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    entries = {str(p.relative_to(folder)): {"size": p.stat().st_size, "sha256": file_sha256(p)} for p in files}
    (folder / "manifest.json").write_text(
        json.dumps({"format_version": FORMAT_VERSION, "files": entries}, indent=2, sort_keys=True) + "\n"
    )
