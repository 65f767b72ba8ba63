"""Low-rank adapters of the transformer, from peft's or diffusers' safetensors, merged into its weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipic.errors import BadInput, BadModel
from unipic.models.folder import ModelFolder
from unipic.models.weights import file_sha256, read_metadata, read_tensors

_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_PREFIXES = ("base_model.model.", "transformer.")


def merge_lora(transformer: nn.Module, source: str) -> None:
    """W ← W + (α/r)·B·A for each adapted linear layer. source: a .safetensors file, or a folder that holds one.

    α comes from `<layer>.alpha` tensors, else from `adapter_config.json` beside the file (peft), else from the file's
    metadata (diffusers), else α = r.
    """
    path, config = _find(source)
    tensors: dict[str, Tensor] = {}
    for key, tensor in read_tensors([path], torch.float32).items():
        if (name := _layer_name(key)) in tensors:
            raise BadModel(f"the adapter holds {name!r} twice", str(path), "save or download it again")
        tensors[name] = tensor
    layers = {name: m for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}
    adapted = {k.removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight")}
    known = {f"{name}.{end}" for name in adapted for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    if stray := [k for k in tensors if k not in known] or [k for k in sorted(adapted) if k not in layers]:
        what = f"the adapter does not fit this transformer: {stray[0]!r}"
        raise BadModel(what, str(path), "use the model it was trained on")
    for name in sorted(adapted):
        _merge(layers[name], name, tensors, config, path)


def _merge(layer: nn.Linear, name: str, tensors: dict[str, Tensor], config: dict[str, Any], path: Path) -> None:
    """One layer. a: r×in, b: out×r."""
    a, b = tensors[f"{name}.lora_A.weight"], tensors.get(f"{name}.lora_B.weight")
    if b is None:
        raise BadModel(f"the adapter lacks the B half of {name!r}", str(path), "save or download it again")
    rank = len(a) if a.ndim else 0
    fits = a.shape == (rank, layer.in_features) and b.shape == (layer.out_features, rank)
    alpha = tensors.get(f"{name}.alpha", torch.tensor(float(config.get("lora_alpha", rank))))
    if not rank or not fits or alpha.ndim or not (a.is_floating_point() and b.is_floating_point()):
        shapes = f"{list(b.shape)} by {list(a.shape)}, alpha {list(alpha.shape)}"
        what = f"the adapter of {name!r}, {shapes}, does not fit weights of {list(layer.weight.shape)}"
        raise BadModel(what, str(path), "use the model it was trained on")
    scale = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.float() + scale * (b @ a))


def lora_hash(source: str) -> str:
    """SHA-256 of the adapter's file."""
    return file_sha256(_find(source)[0])


def _find(source: str) -> tuple[Path, dict[str, Any]]:
    path = Path(source)
    try:
        root = path if path.is_dir() else path.parent
        folder = ModelFolder(root, root.name)
        names = [n for n in (_FILES if path.is_dir() else [path.name]) if folder.has(n)]
    except OSError:  # a name too long
        names = []
    if not names or not names[0].endswith(".safetensors"):
        raise BadInput(
            "there is no adapter", source, f"give a .safetensors file, or a folder with {' or '.join(_FILES)}"
        )
    file = folder.file(names[0])
    config = folder.json("adapter_config.json") if folder.has("adapter_config.json") else _stored_config(file)
    if not math.isfinite(alpha if isinstance(alpha := config.get("lora_alpha", 1), int | float) else math.nan):
        where = str(root / "adapter_config.json")
        raise BadModel(f"lora_alpha is {alpha!r}, no number", where, "save or download the adapter again")
    for option in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(option):
            raise BadModel(
                f"adapters with {option} cannot be merged",
                str(root / "adapter_config.json"),
                json.dumps(config[option]),
            )
    return file, config


def _stored_config(file: Path) -> dict[str, Any]:
    """What diffusers writes into the file's header in place of an adapter_config.json."""
    try:
        stored = json.loads(read_metadata(file).get("lora_adapter_metadata", "{}"))
        return {key.removeprefix("transformer."): value for key, value in stored.items()}
    except (ValueError, AttributeError, RecursionError):
        raise BadModel("the adapter's metadata is no JSON object", str(file), "save or download it again") from None


def _layer_name(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
