"""A plain mapping → a strict configuration, or three lines that say what is wrong with it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from unipic.config import text
from unipic.config.recipe import apply_sets, set_key
from unipic.errors import BadInput

T = TypeVar("T")
Key = tuple[str | int, ...]  # data.sources.0.weight, taken apart

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "bool_type": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a map",
    "model_type": "a map",
}
_MAX_DEPTH = 12  # of the keys that are suggested; a class may hold itself


class Strict(BaseModel):
    """A configuration, or a part of one: no unknown keys, no text for a number, no NaN, nothing set afterwards.

    Lists are best declared as tuples: then nothing in it can change. A validator raises ValueError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


def resolve(model: type[T] | TypeAdapter[T], raw: Mapping[str, Any], where: str, sets: Sequence[str] = ()) -> T:
    """The configuration that `raw`, from `where`, describes once `sets` (`a.b=c`) are laid over it.

    model: a `Strict` class, or for several stages TypeAdapter(Annotated[A | B, Field(discriminator="stage")]).
    Raises BadInput: the worst fault in full, the keys of the others.
    """
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    raw = apply_sets(raw, sets)
    try:
        # As JSON, in which strict pydantic takes a list for a tuple, and a text for a path or an enumeration's value.
        return adapter.validate_json(json.dumps(raw))
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False), adapter, raw, where, sets) from None


def _refusal(
    errors: list[ErrorDetails], adapter: TypeAdapter[Any], raw: Mapping[str, Any], where: str, sets: Sequence[str]
) -> BadInput:
    by_key: dict[Key, list[ErrorDetails]] = {}  # several: no member of a union fits
    for error in sorted(errors, key=lambda error: error["type"] != "extra_forbidden"):  # a misspelt key explains others
        by_key.setdefault(_key(error, raw), []).append(error)
    (key, faults), *others = by_key.items()
    place = _origin(key, where, sets, unknown=faults[0]["type"] == "extra_forbidden")
    if others:
        names = [dotted(other) for other, _ in others[:3]] + ["…"] * (len(others) > 3)
        place += f" (and {len(others)} more: {', '.join(names)})"
    what, mend = _explained(key, faults, adapter, raw)
    return BadInput(what, place, mend)


def _explained(
    key: Key, faults: list[ErrorDetails], adapter: TypeAdapter[Any], raw: Mapping[str, Any]
) -> tuple[str, str]:
    """What is wrong, and how to mend it."""
    kind = faults[0]["type"]
    if kind == "extra_forbidden":
        return f'unknown key "{key[-1]}"', _suggestion(key, adapter, raw)
    if kind == "missing" and isinstance(key[-1], int):
        return f"the list has no item {key[-1]}", "make it longer"
    if kind in ("missing", "union_tag_not_found"):
        return f'the key "{key[-1]}" is missing', f"add it, or give --set {dotted(key)}=VALUE"
    wanted = " or ".join(dict.fromkeys(w for fault in faults if (w := _wanted(fault))))
    if not wanted:
        reason = faults[0].get("ctx", {}).get("error", faults[0]["msg"])
        return str(reason), "correct it in the recipe, or with --set KEY=VALUE"
    value = faults[0]["input"][key[-1]] if kind == "union_tag_invalid" else faults[0]["input"]
    mend = f"correct it in the recipe, or give --set {dotted(key)}=VALUE"
    if isinstance(value, str):
        if close := difflib.get_close_matches(value, re.findall(r"'([^']*)'", wanted), n=1):
            mend = f'did you mean "{close[0]}"?'
        elif "number" in wanted and text.is_number(value):
            mend = "write it without quotes"
    return f"{wanted} is wanted, {text.shown(value)} was given", mend


def _wanted(fault: ErrorDetails) -> str:
    """What should stand there; empty if the fault says more than that."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind]
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    if kind == "union_tag_invalid":
        return " or ".join(context["expected_tags"].rsplit(", ", 1))
    should = fault["msg"].removeprefix("Input should be ")
    return "" if should == fault["msg"] else f"a value {should}"


def _suggestion(key: Key, adapter: TypeAdapter[Any], raw: Mapping[str, Any]) -> str:
    schema = adapter.json_schema()
    known = list(_keys(schema, schema.get("$defs", {}), raw))
    name, beside = str(key[-1]), [str(other[-1]) for other in known if other[:-1] == key[:-1]]
    elsewhere = {str(other[-1]): dotted(other) for other in reversed(known)}
    if name not in elsewhere and (close := difflib.get_close_matches(name, beside, n=1)):
        return f'did you mean "{close[0]}"?'
    if close := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.75):
        return f"did you mean {elsewhere[close[0]]}?"
    return f"remove it; known here: {', '.join(beside)}"


def _keys(schema: Mapping[str, Any], classes: Mapping[str, Any], raw: Any, at: Key = ()) -> Iterator[Key]:
    """The keys that a recipe may hold. `raw` says which stage it is of, and how long its lists are."""
    if len(at) > _MAX_DEPTH:
        return
    if "$ref" in schema:
        schema = classes[schema["$ref"].rpartition("/")[2]]
    content = raw if isinstance(raw, dict) else {}
    for name, child in schema.get("properties", {}).items():
        yield (*at, name)
        yield from _keys(child, classes, content.get(name), (*at, name))
    if isinstance(child := schema.get("additionalProperties"), dict):
        for name, value in content.items():
            yield from _keys(child, classes, value, (*at, name))
    if isinstance(child := schema.get("items"), dict):
        for i, value in enumerate(raw if isinstance(raw, list) and raw else [None]):
            yield from _keys(child, classes, value, (*at, i))
    choice = schema.get("discriminator", {"mapping": {}, "propertyName": ""})
    chosen = choice["mapping"].get(str(content.get(choice["propertyName"])))
    for child in [{"$ref": chosen}] if chosen else schema.get("anyOf", []) + schema.get("oneOf", []):
        yield from _keys(child, classes, raw, at)


def _key(fault: ErrorDetails, raw: Mapping[str, Any]) -> Key:
    """Where in `raw` a fault is: pydantic's location without the names of a union's members."""
    key: Key = ()
    spot: Any = raw
    for part in fault["loc"]:
        here = spot if isinstance(spot, dict) else range(len(spot)) if isinstance(spot, list) else ()
        if part in here:
            key, spot = (*key, part), spot[part]
    if fault["type"] == "missing":
        return (*key, fault["loc"][-1])
    if fault["type"].startswith("union_tag"):
        return (*key, fault["ctx"]["discriminator"].strip("'"))
    return key


def _origin(key: Key, where: str, sets: Sequence[str], *, unknown: bool) -> str:
    """The last `--set` that wrote what stands at `key` (or below it, if it should not be there at all), or the file."""
    names = tuple(map(str, key))
    for each in reversed(sets):
        given = set_key(each)
        if names[: len(given)] == given or (unknown and given[: len(names)] == names):
            return f"--set {each}" if names == given else f"--set {each}: {dotted(key)}"
    return f"{where}: {dotted(key)}" if key else where


def dotted(key: Key) -> str:
    """As it is written after --set."""
    return ".".join(map(str, key))
