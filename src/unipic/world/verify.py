"""Verdicts on pictures, from their pixels: does a picture show what a prompt says, was an edit done?

They rest on `look`, which finds the objects. A picture with debris (something half drawn, merged, or shining through)
is never passed as right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unipic.world.edits import Edit
from unipic.world.look import Seen, View, look
from unipic.world.scene import Object

WEIGHTS = (0.375, 0.375, 0.125, 0.125)  # of shape, colour, texture and size in how alike two objects are
ALIKE = 0.5  # from here on two objects are versions of one
LOSS = 0.6  # of what was to be kept, for each thing that was not
PLACE = 3.0  # pixels by which an object that should not move may be off


@dataclass(frozen=True)
class PromptVerdict:
    """correct: every clause holds and the picture is clean. soft: mean over clauses of how far each holds, 0 to 1."""

    correct: bool
    reasons: tuple[str, ...]
    soft: float


@dataclass(frozen=True)
class EditVerdict:
    """sc: the least of how far the edit was done and how much else was kept. pq: objects well formed, ground clean.

    Both 0 to 10.
    """

    sc: float
    pq: float
    reasons: tuple[str, ...]


def objects(picture: Image.Image) -> tuple[Seen, ...]:
    """The well-formed objects of a picture."""
    return look(picture).objects


def prompt(picture: Image.Image, spec: Mapping[str, Any]) -> PromptVerdict:
    """spec: GenEval's metadata (`include`, `exclude`), with classes, colours and relations of this world.

    As GenEval judges: of each class the best `count` objects are taken; colours and relations are asked of those.
    """
    view = look(picture)
    reasons: list[str] = [] if view.clean else [_unclean(view)]
    soft: list[float] = []
    groups: list[list[Seen]] = []
    for clause in spec.get("include", ()):
        found = _of_class(view, clause["class"])
        wanted = int(clause["count"])
        groups.append(found[:wanted])
        soft.append(max(0.0, 1 - abs(wanted - len(found)) / wanted))
        if len(found) < wanted:
            reasons.append(f"expected {clause['class']} >= {wanted}, found {len(found)}")
            soft += [0.0] * (("color" in clause) + ("position" in clause))
            continue
        if "color" in clause:
            right = sum(o.color == clause["color"] for o in groups[-1])
            soft.append(right / wanted)
            if right < wanted:
                colors = ", ".join(o.color for o in groups[-1])
                reasons.append(f"expected {clause['color']} {clause['class']} >= {wanted}, found {colors}")
        if "position" in clause:
            share, why = _position(groups, *clause["position"])
            soft.append(share)
            reasons += why
    for clause in spec.get("exclude", ()):
        found = _of_class(view, clause["class"])
        if len(found) >= int(clause["count"]):
            reasons.append(f"expected {clause['class']} < {clause['count']}, found {len(found)}")
    return PromptVerdict(not reasons, tuple(reasons), float(np.mean(soft)) if soft else 0.0)


def _of_class(view: View, name: str) -> list[Seen]:
    shape = name.removeprefix("letter ")
    return sorted((o for o in view.objects if o.shape == shape), key=lambda o: -o.quality)


def _position(groups: Sequence[Sequence[Seen]], relation: str, index: int) -> tuple[float, list[str]]:
    """Share of pairs in the relation, and what is wrong with the others."""
    targets = groups[index] if index < len(groups) else ()
    pairs = [(o, t) for o in groups[-1] for t in targets]
    if not pairs:
        return 0.0, [f"nothing to be {relation}"]
    held = [relation in relations_seen(o, t) for o, t in pairs]
    return float(np.mean(held)), [] if all(held) else [f"expected {pairs[0][0].shape} {relation} {pairs[0][1].shape}"]


def relations_seen(a: Seen, b: Seen) -> set[str]:
    """GenEval's relations between boxes (see `scene.relations`)."""
    center = [np.array([(o.box[0] + o.box[2]) / 2, (o.box[1] + o.box[3]) / 2]) for o in (a, b)]
    size = [np.array([o.box[2] - o.box[0], o.box[3] - o.box[1]]) for o in (a, b)]
    offset = center[0] - center[1]
    length = float(np.linalg.norm(offset))
    if not length:
        return set()
    x, y = np.sign(offset) * np.maximum(np.abs(offset) - 0.1 * (size[0] + size[1]), 0) / length
    found = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in found.items() if holds}


def _unclean(view: View) -> str:
    if view.background is None:
        return "no known background"
    worst = max(view.debris, key=lambda d: d.area)
    return f"{worst.reason} at {worst.box}"


# --- edits ------------------------------------------------------------------------------------------------------------


def edit(source: Image.Image, result: Image.Image, spec: Edit) -> EditVerdict:
    """SC and PQ of an edit. A result of another size is scaled to the source's, as the benchmarks do."""
    if result.size != source.size:
        result = result.resize(source.size)
    view = look(result)
    reasons: list[str] = []
    pq = 10 * _well_formed(view, reasons)
    if view.background is None:
        return EditVerdict(0.0, pq, tuple(reasons))
    done, kept = _changes(view, spec, reasons)
    return EditVerdict(10 * min(done, kept), pq, tuple(reasons))


def quality(picture: Image.Image) -> tuple[float, tuple[str, ...]]:
    """PQ of a picture by itself, 0 to 10, and what is wrong with it."""
    reasons: list[str] = []
    pq = 10 * _well_formed(look(picture), reasons)
    return pq, tuple(reasons)


def _well_formed(view: View, reasons: list[str]) -> float:
    """Share of what is drawn that is well-formed objects, by area; less for rough ones."""
    if view.background is None:
        reasons.append("no known background")
        return 0.0
    good = sum((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) * min(1.0, o.quality / 0.9) for o in view.objects)
    everything = sum((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in view.objects) + sum(
        2 * d.area for d in view.debris
    )
    if not view.clean:
        reasons.append(_unclean(view))
    return good / everything if everything else 1.0


def _changes(view: View, spec: Edit, reasons: list[str]) -> tuple[float, float]:
    """How far the asked changes were made, and how much else was kept, each 0 to 1."""
    source, target = spec.source, spec.target
    seen = list(view.objects)
    done: list[float] = []
    lost = 0.0
    for name, before, after, now in (
        ("background", source.background, target.background, view.background),
        ("tone", source.tone, target.tone, view.tone),
    ):
        if before != after:
            done.append(float(now == after))
        elif now != after:
            lost += 1
            reasons.append(f"{name} became {now}")
    kept = set(source.objects) & set(target.objects)
    for wanted in kept:
        found, likeness = _best(seen, wanted)
        if found is not None:
            seen.remove(found)
        if likeness < 1:
            lost += 1
            reasons.append(f"the {wanted.color} {wanted.name} was not kept")
    for gone in (o for o in source.objects if o not in kept and not _continued(o, spec)):
        still = next((o for o in seen if _near(o, gone) and o.shape == gone.shape), None)
        done.append(float(still is None))
        if still is not None:
            seen.remove(still)
            reasons.append(f"the {gone.color} {gone.name} is still there")
    for index, wanted in enumerate(target.objects):
        if wanted in kept:
            continue
        found, likeness = _best(seen, wanted, _region(spec, index))
        if found is not None and (likeness >= ALIKE or index not in spec.free):
            seen.remove(found)
        earlier = _likeness_before(spec, wanted, index)
        grown = any(_follows(wanted, o) for o in source.objects if o not in kept)
        lost += grown and likeness < ALIKE  # it should have changed, and is gone
        done.append(max(0.0, (likeness - earlier) / (1 - earlier)) if earlier < 1 else 1.0)
        if likeness < 1:
            reasons.append(f"no {wanted.texture} {wanted.size} {wanted.color} {wanted.name} where it should be")
    lost += len(seen)
    reasons += [f"an unasked {o.color} {o.shape} at {o.x:.0f}, {o.y:.0f}" for o in seen]
    return float(np.mean(done)) if done else 1.0, max(0.0, 1 - LOSS * lost)


def _continued(gone: Object, spec: Edit) -> bool:
    """Whether an object of the source lives on, changed, in the target."""
    return any(_follows(o, gone) for o in spec.target.objects if o not in spec.source.objects)


def _follows(new: Object, old: Object) -> bool:
    """Whether one object is the other, changed where it stands or moved as it is."""
    return (new.x, new.y) == (old.x, old.y) or _attributes(new) == _attributes(old)


def _attributes(o: Object | Seen) -> tuple[str, str, str, str]:
    return (o.shape, o.color, o.texture, o.size)


def _near(seen: Seen, o: Object) -> bool:
    return abs(seen.x - o.x) <= PLACE and abs(seen.y - o.y) <= PLACE


def _region(spec: Edit, index: int) -> tuple[int, int, int, int] | None:
    """Where an object's middle must lie, if the instruction leaves its place open."""
    return spec.regions[spec.free.index(index)] if index in spec.free else None


def _best(
    seen: Sequence[Seen], wanted: Object, region: tuple[int, int, int, int] | None = None
) -> tuple[Seen | None, float]:
    """The object in the right place that is most like the wanted one, and how much, 0 to 1."""
    there = [o for o in seen if (_near(o, wanted) if region is None else _within(o, region))]
    best = max(there, key=lambda o: _likeness(o, wanted), default=None)
    return (None, 0.0) if best is None else (best, _likeness(best, wanted))


def _within(seen: Seen, region: tuple[int, int, int, int]) -> bool:
    left, top, right, bottom = region
    return bool(left - PLACE <= seen.x <= right + PLACE and top - PLACE <= seen.y <= bottom + PLACE)


def _likeness(seen: Seen, wanted: Object) -> float:
    """How much of shape, colour, texture and size agrees."""
    agree = (a == b for a, b in zip(_attributes(seen), _attributes(wanted), strict=True))
    return float(sum(weight for weight, same in zip(WEIGHTS, agree, strict=True) if same))


def _likeness_before(spec: Edit, wanted: Object, index: int) -> float:
    """The same for the source: what was right before the edit earns nothing."""
    changing = [o for o in spec.source.objects if o not in spec.target.objects and _continued(o, spec)]
    stand_ins = [Seen(o.shape, o.color, o.texture, o.size, o.x, o.y, o.box, 1.0) for o in changing]
    return _best(stand_ins, wanted, _region(spec, index))[1]
