"""Verdicts on pictures, from their pixels: does a picture show what a prompt says?

They rest on `look`, which finds the objects. A picture with debris (something half drawn, merged, or shining through)
is never passed as right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from unipic.world.look import Seen, View, look


@dataclass(frozen=True)
class PromptVerdict:
    """correct: every clause holds and the picture is clean. soft: mean over clauses of how far each holds, 0 to 1."""

    correct: bool
    reasons: tuple[str, ...]
    soft: float


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
