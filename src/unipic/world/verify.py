"""Verdicts on pictures, from their pixels: does a picture show what a prompt says, was an edit done?

They rest on `look`, which finds the objects. A picture with debris (something half drawn, merged, or shining through)
is never passed as right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unipic.world.accounting import account_of
from unipic.world.edits import Edit
from unipic.world.look import Seen, View, look
from unipic.world.render import render
from unipic.world.scene import SIZES

LOSS = 0.6  # of what was to be kept, for each thing that was not
FEW = 2.0  # things lost at which the soft share of what was kept is e⁻¹
FINE = 9.5  # of 10, in SC and PQ, from which an edit is right
FADES = 48  # grey levels off at which a pixel's nearness is e⁻¹


@dataclass(frozen=True)
class PromptVerdict:
    """correct: every clause holds and the picture is clean. soft: mean over clauses of how far each holds, 0 to 1."""

    correct: bool
    reasons: tuple[str, ...]
    soft: float


@dataclass(frozen=True)
class EditVerdict:
    """sc: the least of how far the edit was done and how much else was kept. pq: objects well formed, ground clean.

    Both 0 to 10. kept: exp(−things lost / FEW), in which one loss fewer shows among many, too; 0 without a known
    ground.
    """

    sc: float
    pq: float
    reasons: tuple[str, ...]
    kept: float = 0.0

    @property
    def right(self) -> bool:
        return min(self.sc, self.pq) >= FINE


def objects(picture: Image.Image) -> tuple[Seen, ...]:
    """The well-formed objects of a picture; places are in its pixels after `to_scale`."""
    return look(to_scale(picture)).objects


def to_scale(picture: Image.Image) -> Image.Image:
    """A picture that is 2, 3, 4, … times as large as one of the world's, scaled down to that; others as they are."""
    times = {size: picture.width // size[0] for size in SIZES}
    larger = (s for s, n in times.items() if n > 1 and picture.size == (n * s[0], n * s[1]))
    size = next(larger, None)
    return _scaled(picture, size) if size else picture


def _scaled(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    whole = picture.width % size[0] == 0 and picture.height % size[1] == 0
    return picture.convert("RGB").resize(size, Image.Resampling.BOX if whole else Image.Resampling.BICUBIC)


def prompt(picture: Image.Image, spec: Mapping[str, Any]) -> PromptVerdict:
    """spec: GenEval's metadata (`include`, `exclude`), with classes, colours and relations of this world.

    A picture of two, three, four, … times one of the world's sizes is scaled down, others are looked at as they are. As
    GenEval judges: of each class the best `count` objects are taken; colours and relations are asked of those.
    """
    view = look(to_scale(picture))
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
    """SC and PQ of an edit. What the source holds is taken from `spec.source`; its picture is not looked at.

    A result of another size than that scene's is scaled to it, as the benchmarks do.
    """
    size = (spec.source.width, spec.source.height)
    view = look(result if result.size == size else _scaled(result, size))
    reasons: list[str] = []
    pq = 10 * _well_formed(view, reasons)
    if view.background is None:
        return EditVerdict(0.0, pq, tuple(reasons))
    account = account_of(view, spec)
    done = float(np.mean(account.done)) if account.done else 1.0
    kept = max(0.0, 1 - LOSS * account.lost)
    said = tuple(dict.fromkeys([*reasons, *account.reasons]))
    return EditVerdict(10 * min(done, kept), pq, said, math.exp(-account.lost / FEW))


def nearness(result: Image.Image, spec: Edit) -> float:
    """√(near where the edit changes something · near elsewhere) to its target, pixel by pixel, 0 to 1; unlike the
    verdicts it does not rest on `look`. Where an edit changes all there is, the first of the two alone.

    It tells nearly from far, where SC tells done from not. What the instruction leaves open is off, too, where the
    target has it otherwise: a right result may be less near than a wrong one.
    """
    before, target = render(spec.source), render(spec.target)
    near = closeness(result.convert("RGB") if result.size == target.size else _scaled(result, target.size), target)
    changed = (np.asarray(before) != np.asarray(target)).any(axis=2)
    parts = [near[where].mean() for where in (changed, ~changed) if where.any()]
    return float(np.prod(parts) ** (1 / len(parts)))


def closeness(picture: Image.Image, target: Image.Image, fades: float = FADES) -> NDArray[np.float64]:
    """exp(−(d / fades)²) of each pixel of two RGB pictures of one size, H×W; d: grey levels, the farthest channel."""
    off = np.abs(np.asarray(picture, np.int64) - np.asarray(target, np.int64)).max(axis=2)
    near: NDArray[np.float64] = np.exp(-((off / fades) ** 2))
    return near


def quality(picture: Image.Image) -> tuple[float, tuple[str, ...]]:
    """PQ of a picture by itself, 0 to 10, and what is wrong with it."""
    reasons: list[str] = []
    pq = 10 * _well_formed(look(to_scale(picture)), reasons)
    return pq, tuple(reasons)


def _well_formed(view: View, reasons: list[str]) -> float:
    """Share of what is drawn that is well-formed objects, by area; less for rough ones."""
    if view.background is None:
        reasons.append("no known background")
        return 0.0
    good = sum((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) * o.quality for o in view.objects)
    everything = sum((o.box[2] - o.box[0]) * (o.box[3] - o.box[1]) for o in view.objects) + sum(
        2 * d.area for d in view.debris
    )
    if not view.clean:
        reasons.append(_unclean(view))
    return good / everything if everything else 1.0
