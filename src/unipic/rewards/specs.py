"""What a sample's `spec` is as JSON, and back: the world's Prompt, Dense, Scene and Edit; maps that are JSON already.

    {"kind": "prompt", "value": {"text": "a photo of a star", "tag": "single_object", "include": [{"name": "star", …}]}}

value: the object's own fields. Of the world they are read strictly: none is missing or left over, and what they say
exists there, so that nothing that verifies it can stumble. Maps (kind: map) are for rewards that know what is in them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from unipic.errors import BadInput
from unipic.world.clauses import PLACES, Clause, Count, Description, Ground, Related
from unipic.world.edits import TYPES, Edit
from unipic.world.language import NUMBERS, TAGS, Dense, Group, Prompt
from unipic.world.scene import (
    BACKGROUNDS,
    COLORS,
    DIAMETERS,
    LETTERS,
    MOST_OBJECTS,
    NOVELTIES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    Scene,
    fits,
    textures_of,
)

KINDS: dict[str, type[Any]] = {"prompt": Prompt, "dense": Dense, "scene": Scene, "edit": Edit}
NAMES = (*SHAPES, *(f"letter {letter}" for letter in LETTERS))
MOST_PARTS = 64  # questions of a description, groups of a prompt


def told(spec: Any) -> dict[str, Any] | None:
    """As JSON has it; None of None. Raises BadInput for what cannot be sent as it is, rather than leave it out."""
    if spec is None:
        return None
    if isinstance(spec, Mapping) and (value := _plain(spec)) == spec:
        return {"kind": "map", "value": value}
    for kind, form in KINDS.items():
        if type(spec) is form:
            return {"kind": kind, "value": _plain(asdict(spec))}
    known = ", ".join(form.__name__ for form in KINDS.values())
    what = f"a spec of type {type(spec).__name__} cannot be sent to a remote reward"
    raise BadInput(what, "Sample.spec", f"give a {known} of the world, or a map of what JSON has")


def read(content: Mapping[str, Any]) -> Any:
    """The spec that `told` tells so; the two are equal. Raises BadInput."""
    kind, value = content.get("kind"), content.get("value")
    if set(content) != {"kind", "value"} or not isinstance(value, dict):
        raise _refused("a map of kind and value is wanted")
    if kind == "map":
        return value
    if kind not in KINDS:
        raise _refused(f"kind {kind!r}")
    try:
        spec = _adapter(kind).validate_json(json.dumps(value))
    except ValidationError as error:
        worst = error.errors(include_url=False, include_input=False)[0]
        raise _refused(f"{'.'.join(map(str, worst['loc']))}: {worst['msg']}") from None
    if told(spec) != content:
        raise _refused("keys that it does not have, or lacks")
    if fault := _fault(spec):
        raise _refused(fault)
    return spec


def _plain(value: Any) -> Any:
    """What JSON keeps of it, lists for tuples; None if it cannot hold it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    adapter: TypeAdapter[Any] = TypeAdapter(KINDS[kind])
    return adapter


def _refused(where: str) -> BadInput:
    return BadInput("this is no spec", where, f"give a kind ({', '.join(KINDS)}, map) and exactly its fields")


# --- what there is in the world ---------------------------------------------------------------------------------------


def _fault(spec: Any) -> str:
    """What of it the world does not have; empty if all is there."""
    if isinstance(spec, Scene):
        return _of_scene(spec)
    if isinstance(spec, Edit):
        return _of_edit(spec)
    return _of_prompt(spec) if isinstance(spec, Prompt) else _of_dense(spec)


def _outside(known: Mapping[str, tuple[Any, Collection[Any]]]) -> str:
    """known: by what it is, a value and those that there are."""
    return next((f"{name} {value!r}" for name, (value, values) in known.items() if value not in values), "")


def _of_scene(scene: Scene) -> str:
    objects = scene.objects
    fault = _outside(
        {
            "size": ((scene.width, scene.height), SIZES),
            "background": (scene.background, BACKGROUNDS),
            "tone": (scene.tone, TONES),
            "number of objects": (len(objects), range(1, MOST_OBJECTS + 1)),
        }
    )
    for o in objects:
        fault = fault or _outside(
            {"shape": (o.shape, SHAPES + LETTERS), "color": (o.color, COLORS), "size": (o.size, DIAMETERS)}
        )
        fault = fault or _outside({"texture": (o.texture, textures_of(o.shape, o.size))})
    return fault or ("" if fits(objects, scene.width, scene.height) else "objects that do not fit the picture")


def _of_edit(edit: Edit) -> str:
    places = range(len(edit.target.objects))
    fault = _outside({"type": (edit.type, TYPES)}) or _of_scene(edit.source) or _of_scene(edit.target)
    fault = fault or next((f"free {i}" for i in edit.free if i not in places), "")
    if (edit.source.width, edit.source.height) != (edit.target.width, edit.target.height):
        fault = fault or "scenes of two sizes"
    return fault or ("" if len(edit.free) == len(set(edit.free)) == len(edit.regions) else "free and regions")


def _of_prompt(prompt: Prompt) -> str:
    fault = _outside({"tag": (prompt.tag, TAGS), "number of groups": (len(prompt.include), range(1, MOST_PARTS))})
    fault = fault or _outside({"number of groups": (len(prompt.exclude), range(MOST_PARTS))})
    for groups in (prompt.include, prompt.exclude):
        for i, group in enumerate(groups):
            fault = fault or _of_group(group, i)
    return fault


def _of_group(group: Group, index: int) -> str:
    known: dict[str, tuple[Any, Collection[Any]]] = {
        "name": (group.name, NAMES),
        "color": (group.color, (None, *COLORS)),
        "count": (group.count, range(1, len(NUMBERS))),
    }
    if group.position is not None:
        known |= {"relation": (group.position[0], RELATIONS), "position": (group.position[1], range(index))}
    return _outside(known)


def _of_dense(dense: Dense) -> str:
    fault = _outside(
        {
            "novelty": (dense.novelty, NOVELTIES),
            "number of questions": (len(dense.questions), range(1, MOST_PARTS + 1)),
        }
    )
    for number, question in enumerate(dense.questions, 1):
        known: dict[str, tuple[Any, Collection[Any]]] = {"id": (question.id, (number,))}
        known |= {f"dependency {i}": (i, range(number)) for i in question.dependencies}
        fault = fault or _outside(known) or _of_clause(question.wanted)
    return fault


def _of_clause(clause: Clause) -> str:
    if isinstance(clause, Ground):
        return _outside(
            {"background": (clause.background, (None, *BACKGROUNDS)), "tone": (clause.tone, (None, *TONES))}
        )
    fault = _of_description(clause.what)
    if isinstance(clause, Related):
        fault = fault or _outside({"relation": (clause.relation, RELATIONS)}) or _of_description(clause.other)
    if isinstance(clause, Count):
        fault = fault or _outside({"count": (clause.count, range(len(NUMBERS)))})
    return fault


def _of_description(what: Description) -> str:
    return _outside(
        {
            "name": (what.name, (None, *NAMES)),
            "color": (what.color, (None, *COLORS)),
            "size": (what.size, (None, *DIAMETERS)),
            "texture": (what.texture, (None, *TEXTURES)),
            "place": (what.place, (None, *PLACES)),
        }
    )
