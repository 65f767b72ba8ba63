"""Low-rank adapters of the transformer, from peft's or diffusers' safetensors, merged into its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unipic.errors import BadInput, BadModel
from unipic.models.folder import ModelFolder
from unipic.models.weights import read_tensors

_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_PREFIXES = ("base_model.model.", "transformer.")


def merge_lora(transformer: nn.Module, source: str) -> None:
    """W ← W + (α/r)·B·A for each adapted linear layer. source: a .safetensors file, or a folder that holds one.

    α and r come from `adapter_config.json` beside it (peft), else from `<layer>.alpha` tensors, else α = r.
    """
    path, config = _find(source)
    tensors = {_layer_name(k): t for k, t in read_tensors([path], torch.float32).items()}
    layers = {name: m for name, m in transformer.named_modules() if isinstance(m, nn.Linear)}
    adapted = {k.removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight")}
    known = {f"{name}.{end}" for name in adapted for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    if stray := [k for k in tensors if k not in known] or [k for k in sorted(adapted) if k not in layers]:
        raise BadModel(
            f"the adapter does not fit this transformer: {stray[0]!r}", str(path), "use the model it was trained on"
        )
    for name in sorted(adapted):
        merge_pair(layers[name], *_pair(tensors, name, path), _scale(tensors, name, config))


def merge_pair(layer: nn.Linear, a: Tensor, b: Tensor, scale: float) -> None:
    """a: r×in, b: out×r."""
    if a.shape != (len(a), layer.in_features) or b.shape != (layer.out_features, len(a)):
        raise BadModel(
            f"adapter shapes {list(b.shape)} × {list(a.shape)} do not fit {list(layer.weight.shape)}",
            "--lora",
            "use the model it was trained on",
        )
    with torch.no_grad():
        layer.weight.copy_(layer.weight.float() + scale * (b @ a))


def lora_hash(source: str) -> str:
    """SHA-256 of the adapter's file."""
    return hashlib.sha256(_find(source)[0].read_bytes()).hexdigest()


def _pair(tensors: dict[str, Tensor], name: str, path: Path) -> tuple[Tensor, Tensor]:
    try:
        return tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    except KeyError:
        raise BadModel(f"the adapter lacks the B half of {name!r}", str(path), "save or download it again") from None


def _scale(tensors: dict[str, Tensor], name: str, config: dict[str, Any]) -> float:
    rank = len(tensors[f"{name}.lora_A.weight"])
    stored = tensors.get(f"{name}.alpha")
    alpha = float(stored) if stored is not None else float(config.get("lora_alpha", rank))
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


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
    config = folder.json("adapter_config.json") if folder.has("adapter_config.json") else {}
    for option in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(option):
            raise BadModel(
                f"adapters with {option} cannot be merged",
                str(root / "adapter_config.json"),
                json.dumps(config[option]),
            )
    return folder.file(names[0]), config


def _layer_name(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
