"""Recipes: packaged ones by name, files by path, one laid over another (`base:`), and `--set a.b=c` over them all."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unipic.config import text
from unipic.errors import BadInput

RECIPES = Path(str(importlib.resources.files("unipic"))) / "recipes"
MAX_BASES = 8


def recipes() -> dict[str, Path]:
    """The packaged recipes by their names, such as "tiny/kontext"."""
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in sorted(RECIPES.rglob("*.yaml"))}


def read_recipe(name_or_path: str) -> tuple[dict[str, Any], str]:
    """A packaged recipe by its name, or a file by its path (which ends in .yaml): its content, and where that is from.

    `base: NAME_OR_PATH` in it (a path is relative to its file) lays it over another: maps merge, all else replaces.
    Raises BadInput.
    """
    layers: list[dict[str, Any]] = []
    files: list[Path] = []
    where = ""
    name, beside, asked_by = name_or_path, Path(), ""
    while True:
        path, called = _find(name, beside, asked_by)
        where = f"{where} on {called}" if where else called
        if path in files:
            raise BadInput("a recipe lies under itself", where, "remove one `base:`")
        if len(files) > MAX_BASES:
            raise BadInput(f"more than {MAX_BASES} recipes lie under this one", where, "remove one `base:`")
        files.append(path)
        layers.append(text.read_file(path, called))
        if "base" not in layers[-1]:
            break
        name, beside, asked_by = layers[-1].pop("base"), path.parent, f"{called}: base: "
        if not isinstance(name, str):
            raise BadInput("a base is one name or path", f"{asked_by}{text.shown(name)}", "name one recipe")
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged = _merged(merged, layer)
    return merged, where


def _find(name: str, beside: Path, asked_by: str) -> tuple[Path, str]:
    """A recipe's file, and what a user calls it."""
    if not name.endswith((".yaml", ".yml")):
        known = recipes()
        if name in known:
            return known[name].resolve(), f"recipe {name}"
        close = difflib.get_close_matches(name, known, cutoff=0.5)
        mend = f"did you mean {' or '.join(close)}?" if close else "give a packaged name, or a path that ends in .yaml"
        raise BadInput("there is no such recipe", f"{asked_by}{name!r}", mend)
    try:
        path = beside / Path(name).expanduser()
        if path.is_file():
            return path.resolve(), str(path)
        what = "a folder stands where a recipe is needed" if path.is_dir() else "there is no such file"
    except (OSError, ValueError, RuntimeError):  # a name too long, a home that nobody has
        what = "this is no file's name"
    raise BadInput(what, f"{asked_by}{name}", "give a packaged name, or the path of a .yaml file")


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def apply_sets(raw: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """`raw` with each "a.b=VALUE" laid over it, in their order. VALUE is YAML; a number in a key counts a list's items.

    Maps on the way are made, list items are not. Raises BadInput.
    """
    result = dict(raw)
    for each in sets:
        where = f"--set {each}"
        _, equals, value = each.partition("=")
        if not equals or not all(set_key(each)):
            raise BadInput("this sets nothing", where, "give --set KEY=VALUE, such as --set optimizer.lr=1e-4")
        result = _with(result, set_key(each), text.read(value, where), where)
    return result


def set_key(each: str) -> tuple[str, ...]:
    """What "a.b=c" sets: ("a", "b")."""
    return tuple(part.strip() for part in each.partition("=")[0].split("."))


def _with(old: Any, key: tuple[str, ...], value: Any, where: str) -> Any:
    """A copy of `old` with `value` at `key`."""
    if not key:
        return value
    name, rest = key[0], key[1:]
    if old is None or isinstance(old, dict):
        old = old or {}
        return {**old, name: _with(old.get(name), rest, value, where)}
    if not isinstance(old, list):
        raise BadInput(f'"{name}" would stand below {text.shown(old)}', where, "set the key above it")
    if name not in map(str, range(len(old))):
        mend = "count from 0, or set the whole list"
        raise BadInput(f'there is no item "{name}" in a list of {len(old)}', where, mend)
    at = int(name)
    return [*old[:at], _with(old[at], rest, value, where), *old[at + 1 :]]
