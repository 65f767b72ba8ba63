"""What a model's folder holds, from its JSON and the headers of its weights: no tensor is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from unipic.errors import BadInput, UnipicError
from unipic.models.checkpoint import stored_once
from unipic.models.find import find_mllm, find_model
from unipic.models.folder import LAYOUTS, ModelFolder
from unipic.models.kontext import blank_transformer
from unipic.models.metaquery import blank_conditioner
from unipic.models.mllm import blank_mllm, current_name, load_companions
from unipic.models.reward_model import blank_head
from unipic.models.spec import ModelSpec
from unipic.models.text import blank_encoder, read_tokenizer
from unipic.models.vae import blank_vae
from unipic.models.weights import Entry, check_tensors, read_header


@dataclass
class Holding:
    """A component: its files' size in bytes, parameters, stored precisions, hash, and what is wrong with it."""

    component: str
    bytes: int = 0
    parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    problem: str | None = None


_BLANKS: dict[str, Callable[[ModelFolder], Any]] = {
    "transformer": blank_transformer,
    "vae": blank_vae,
    "conditioner": blank_conditioner,
    "text_encoder": lambda folder: blank_encoder(folder, "text_encoder"),
    "text_encoder_2": lambda folder: blank_encoder(folder, "text_encoder_2"),
    "text_encoder_3": lambda folder: blank_encoder(folder, "text_encoder_3"),
    "mllm": blank_mllm,
    "reward_head": blank_head,
}


def report_of(name: str, mllm: str | None = None) -> dict[str, Any]:
    """What `unipic info` prints: kind, components, hash of all weights, completeness."""
    folder = find_model(name, download=False)
    missing = None
    try:
        language = find_mllm(folder, mllm, download=False)
    except BadInput as error:
        language, missing = None, Holding("mllm", problem=f"{error.what}: {error.where}")
    rows = [*inventory(folder, language), *([missing] if missing else [])]
    complete = all(row.problem is None for row in rows)
    hashed = language if folder.kind != "kontext" else None
    return {
        "model": folder.name,
        "folder": str(folder.root),
        "kind": folder.kind,
        "components": [asdict(row) for row in rows],
        "defaults": folder.defaults,
        "weights": folder.weights_hash(hashed) if complete else None,
        "complete": complete,
    }


def inventory(folder: ModelFolder, mllm: ModelFolder | None) -> list[Holding]:
    """Every component, whole or with its problem."""
    rows = [_look(folder, name, None) for name in folder.components()]
    return [*rows, _look(mllm, "mllm", "")] if mllm else rows


def _look(folder: ModelFolder, component: str, at: str | None) -> Holding:
    holding = Holding(component)
    try:
        _fill_in(holding, folder, component, at)
    except UnipicError as error:
        holding.problem = f"{error.what}: {error.where}"
    return holding


def _fill_in(holding: Holding, folder: ModelFolder, component: str, at: str | None) -> None:
    folder.config(component, at)
    if component.startswith("tokenizer"):
        read_tokenizer(folder, component)
    if component == "scheduler":
        ModelSpec(folder).check_schedule()
        ModelSpec(folder).check_parts()
    if LAYOUTS[component].weights is None:
        return
    files = folder.weights(component, at)
    entries: dict[str, Entry] = {}
    for file in files:
        holding.bytes += file.stat().st_size
        entries |= read_header(file)
    holding.parameters = sum(math.prod(entry.shape) for entry in entries.values())
    holding.dtypes = sorted({entry.dtype for entry in entries.values()})
    blank = _BLANKS[component](folder)
    named = {current_name(name): entry for name, entry in entries.items()} if component == "mllm" else entries
    if hasattr(blank, "_tied_weights_keys"):
        named = stored_once(named, blank)
    check_tensors(named, blank.state_dict(), files[0].parent)
    if component == "mllm":
        load_companions(folder, blank)
    holding.sha256 = {file.name: folder.hashes.sha256(file) for file in files}
