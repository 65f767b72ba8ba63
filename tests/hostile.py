"""Model folders that are broken or hostile, each in one way, and odd ones that are neither.

A case takes a fresh copy of an embedded model, without its manifest (so that the fault is found, not the changed hash),
in a place of its own:

    model/      the copy; every folder of it holds modeling_evil.py, which JSON may name
    outside/    what nobody may read: the targets of links and paths that lead out of the model
    adapter/    in cases about one: the adapter to load with the model
    canary      appears when code of the folder has run
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import unipic

ASSETS = Path(unipic.__file__).parent / "assets"
TINY, KONTEXT = "tiny", "tiny-kontext"
DIT = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
CONDITIONER = "conditioner/diffusion_pytorch_model.safetensors"
MLLM = "mllm/model.safetensors"
CLIP = "text_encoder/model.safetensors"
BIAS = "proj_out.bias"  # a small tensor of the DiT
LAYER = "transformer_blocks.0.attn.to_q"
ADAPTER = "adapter/adapter_model.safetensors"


class Case(NamedTuple):
    """name: what is odd. model, job: what is copied, and what needs the odd part. says: what a refusal must tell."""

    name: str
    model: str
    job: str
    damage: Callable[[Path], Path | None]
    says: tuple[str, ...] = ()


REFUSED: list[Case] = []
ACCEPTED: list[Case] = []


def refused(model: str, job: str, *says: str, name: str = "") -> Callable[[Any], Any]:
    """Registers a function that damages a model. It may return where the model is now."""

    def register(damage: Any) -> Any:
        REFUSED.append(Case(name or damage.__name__, model, job, damage, says))
        return damage

    return register


def accepted(model: str, job: str) -> Callable[[Any], Any]:
    def register(change: Any) -> Any:
        ACCEPTED.append(Case(f"{change.__name__}_{job}", model, job, change))
        return change

    return register


def stage(case: Case, place: Path) -> Path:
    """The folder of a case, made in an empty place."""
    model = place / "model"
    shutil.copytree(ASSETS / case.model, model)
    (model / "manifest.json").unlink()
    (place / "outside").mkdir()
    for folder in (model, *(p for p in model.iterdir() if p.is_dir())):
        (folder / "modeling_evil.py").write_text(f"open({str(canary(model))!r}, 'w')\n")
    return case.damage(model) or model


def use(model: Path, job: str) -> None:
    """Load a model, with the adapter that lies beside it, and do the job."""
    adapter = model.parent / "adapter"
    system = unipic.UniPic.from_pretrained(model, device="cpu", lora=adapter if adapter.exists() else None)
    picture = Image.new("RGB", (64, 64), "red")
    if job == "generate":
        system.generate("a red circle", width=64, height=64, steps=1)
    elif job == "edit":
        system.edit(picture, "make it blue", image_size=64, steps=1)
    else:
        system.describe(picture, max_new_tokens=1)


def canary(model: Path) -> Path:
    return model.parent.resolve() / "canary"


def outside(model: Path) -> Path:
    return model.parent.resolve() / "outside"


# --- making things odd ------------------------------------------------------------------------------------------------


def pickle_of(model: Path) -> bytes:
    """A pickle that makes the canary when it is read: `open(canary, "w")` in pickle's opcodes."""
    path = str(canary(model)).encode()
    return b"\x80\x02cbuiltins\nopen\nX" + struct.pack("<I", len(path)) + path + b"X\x01\x00\x00\x00w\x86R."


def change(path: Path, changes: Mapping[str, Any]) -> None:
    """Change settings of a JSON file; dots lead inwards, None removes."""
    content = json.loads(path.read_text()) if path.exists() else {}
    for key, value in changes.items():
        *outer, last = key.split(".")
        inner = content
        for step in outer:
            inner = inner[step]
        inner[last] = value
        if value is None:
            del inner[last]
    path.write_text(json.dumps(content))


def put(path: Path, tensors: Mapping[str, Tensor | None]) -> None:
    """Add, replace or (None) remove tensors of a file."""
    path.parent.mkdir(exist_ok=True)
    kept = (load_file(path) if path.exists() else {}) | dict(tensors)
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, path)


def pack(path: Path, header: Any, data: bytes = b"") -> None:
    """A safetensors file of any header, sound or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def entry(begin: int, end: int, **other: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **other}


def move_out(path: Path) -> None:
    """Put a file or folder outside the model, and a link to it in its place."""
    target = outside(path.parents[len(path.parents) - 2] if not path.is_absolute() else path) / path.name
    shutil.move(path, target)
    path.symlink_to(target)


def shard(path: Path) -> tuple[Path, Path]:
    """Split a weights file in two, with an index."""
    tensors = load_file(path)
    names = sorted(tensors)
    files = [path.with_name(f"{path.stem}-0000{i}-of-00002.safetensors") for i in (1, 2)]
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, part in zip(files, parts, strict=True):
        save_file({name: tensors[name] for name in part}, file)
    places = {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": places}))
    path.unlink()
    return files[0], files[1]
