"""GenEval (Ghosh et al. 2023): does a picture show the objects that its prompt asks for? As the official script judges.

Who finds objects and names their colours is given (`detector`, `colors`); here is what follows from what they say.
`world.verify.prompt` answers the same question of the embedded world, by itself: it knows its objects exactly, passes
no picture with debris, and asks for places also where a colour or the target's clause has failed already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from unipic.errors import BadInput
from unipic.rewards.reward import Sample
from unipic.world.language import TAGS, Prompt
from unipic.world.scene import COLORS, RELATIONS

DETECTOR, CLIP = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9  # a detection scores more than this; the second where objects are counted
MOST = 16  # detections of a class; boxes may overlap as they like
SHRINK = 0.1  # of the two boxes' sizes: what their offset loses
BEYOND = 0.5  # of the offset's length: what must be left of a component


@dataclass(frozen=True)
class Detection:
    """An object that was found. box: x0, y0, x1, y1 in pixels. mask: which of the picture's pixels, height×width."""

    label: str
    box: tuple[float, float, float, float]
    score: float
    mask: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Verdict:
    """correct: as the official script says. soft: how near the picture is to right, 0 to 1 (see `verdict`)."""

    correct: bool
    reasons: tuple[str, ...]
    soft: float


Detect = Callable[[Sequence[Image]], Sequence[Sequence[Detection]]]
"""The objects of each picture; those that no threshold passes may be left out"""
NameColors = Callable[[Sequence[tuple[Image, Detection]]], Sequence[str]]
"""The colour of each object, of the picture it was found in"""


def verdict(
    detections: Sequence[Detection], metadata: Mapping[str, Any], color_of: Callable[[Detection], str]
) -> Verdict:
    """Of a picture with all its detections. metadata: a line of GenEval's; an "include" holds where

    - as many objects of its class are there, or more: the best of them, as many as wanted, are its group;
    - each of the group has the colour (it is asked only then);
    - each of the group stands so to each of the target's group, whose own clause must hold.

    An "exclude" holds where fewer objects of its class are there than it says.

    soft: the mean over statements of how far they hold. Of a count, 1 − |wanted − found| / wanted, at least 0; of a
    colour the share of the group, of a position that of all pairs, and 0 where they are not asked. An "exclude" is a
    statement of its own, 1 or 0, where no "include" counts what is too many. soft is 1 only where the picture is
    correct. The other way it is not so: the script forgives objects too many where nothing excludes them, but a reward
    that did would be earned with more and more of them.
    """
    seen = found(detections, metadata.get("tag", ""))
    groups: list[list[Detection] | None] = []
    reasons: list[str] = []
    soft: list[float] = []
    for clause in metadata.get("include", ()):
        objects = seen.get(clause["class"], [])
        group = objects[: clause["count"]]
        wrong, shares = _include(clause, group, groups, color_of)
        groups.append(None if wrong else group)
        soft += [max(0.0, 1 - abs(clause["count"] - len(objects)) / max(clause["count"], 1)), *shares]
        reasons += wrong
    for clause in metadata.get("exclude", ()):
        name, count = clause["class"], clause["count"]
        number = len(seen.get(name, []))
        if not any(c["class"] == name and c["count"] < count for c in metadata.get("include", ())):
            soft.append(float(number < count))
        if number >= count:
            reasons.append(f"expected {name} < {count}, found {number}")
    return Verdict(not reasons, tuple(reasons), float(np.mean(soft)) if soft else 1.0)


def found(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """By class, the detections that count, best first.

    Scores are compared in float32, and equal ones come in the order that numpy's own sorting leaves them in, reversed,
    as in the script.
    """
    threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
    classes: dict[str, list[Detection]] = {}
    for detection in detections:
        classes.setdefault(detection.label, []).append(detection)
    kept = {}
    for label, members in classes.items():
        scores = np.array([detection.score for detection in members], np.float32)
        order = np.argsort(scores)[::-1]
        kept[label] = [members[i] for i in order[scores[order] > threshold][:MOST]]
    return kept


def _include(
    clause: Mapping[str, Any],
    group: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    color_of: Callable[[Detection], str],
) -> tuple[list[str], list[float]]:
    """What is wrong with a clause, and how far its colour and its position hold."""
    name, wanted = clause["class"], clause["count"]
    asked = ("color" in clause) + ("position" in clause)
    if len(group) < wanted:
        return [f"expected {name} >= {wanted}, found {len(group)}"], [0.0] * asked
    shares = []
    if "color" in clause:
        colors = [color_of(detection) for detection in group]
        right = colors.count(clause["color"])
        shares.append(right / max(wanted, 1))
        if right < wanted:
            told = ", ".join(f"{colors.count(color)} {color}" for color in dict.fromkeys(colors))
            return [f"expected {clause['color']} {name} >= {wanted}, found {told}"], shares + [0.0] * (asked - 1)
    if "position" in clause:
        relation, index = clause["position"]
        target = groups[index]
        if target is None:
            return [f"no target for {name} to be {relation}"], [*shares, 0.0]
        pairs = [relations(a, b) for a in group for b in target]
        held = sum(relation in pair for pair in pairs)
        shares.append(held / max(len(pairs), 1))
        if held < len(pairs):
            first = next(pair for pair in pairs if relation not in pair)
            return [f"expected {name} {relation} target, found {' and '.join(sorted(first)) or 'neither'}"], shares
    return [], shares


def relations(a: Detection, b: Detection) -> set[str]:
    """How a stands to b: left of, right of, above, below; none of these where their boxes overlap too much.

    Computed in float32, in which the official detector gives boxes; what is no number stands nowhere.
    """
    with np.errstate(all="ignore"):
        corners = np.array([a.box, b.box], np.float32).reshape(2, 2, 2)  # of which object, which corner, x or y
        (center_a, center_b), sizes = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
        offset = center_a - center_b
        left = np.maximum(np.abs(offset) - SHRINK * sizes.sum(axis=0), 0) * np.sign(offset)
        if np.all(np.abs(left) < 1e-3):
            return set()
        x, y = left / np.linalg.norm(offset)
    held = {"left of": x < -BEYOND, "right of": x > BEYOND, "above": y < -BEYOND, "below": y > BEYOND}
    return {name for name, holds in held.items() if holds}


class GenevalReward:
    """Verdicts on samples whose spec is a `Prompt` of the world or a line of GenEval's metadata; others have none.

    soft: how near a picture is to right, rather than 1 or 0. What the detector has no name for, it does not find.
    """

    def __init__(self, detect: Detect, name_colors: NameColors, soft: bool = True) -> None:
        self.detect, self.name_colors, self.soft = detect, name_colors, soft

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        verdicts = self.judge(samples)
        return [None if v is None else v.soft if self.soft else float(v.correct) for v in verdicts]

    def judge(self, samples: Sequence[Sample]) -> list[Verdict | None]:
        """All pictures are looked at together, and so are all objects whose colours are asked for."""
        asked = [(i, metadata) for i, s in enumerate(samples) if (metadata := _metadata_of(s.spec)) is not None]
        pictures = [samples[i].picture.convert("RGB") for i, _ in asked]
        seen = self.detect(pictures) if pictures else []
        objects: list[tuple[Image, Detection]] = []
        for (_, metadata), picture, detections in zip(asked, pictures, seen, strict=True):
            objects += [(picture, detection) for detection in _colored(detections, metadata)]
        names = self.name_colors(objects) if objects else []
        colors = {id(detection): name for (_, detection), name in zip(objects, names, strict=True)}
        verdicts: list[Verdict | None] = [None] * len(samples)
        for (i, metadata), detections in zip(asked, seen, strict=True):
            verdicts[i] = verdict(detections, metadata, lambda detection: colors[id(detection)])
        return verdicts


def _metadata_of(spec: Any) -> Mapping[str, Any] | None:
    if isinstance(spec, Prompt):
        return spec.metadata()
    return spec if isinstance(spec, Mapping) and "include" in spec else None


def _colored(detections: Sequence[Detection], metadata: Mapping[str, Any]) -> list[Detection]:
    """Those whose colours a verdict will ask for. What they are does not change which they are."""
    asked: list[Detection] = []

    def noted(detection: Detection) -> str:
        asked.append(detection)
        return ""

    verdict(detections, metadata, noted)
    return asked


# --- metadata ---------------------------------------------------------------------------------------------------------


def check_metadata(metadata: Any) -> None:
    """Refuse what is no line of GenEval's metadata; classes may be any. Raises BadInput, naming the first fault."""
    line = _fields("metadata", metadata, {"tag", "include"}, {"exclude", "prompt"})
    if line["tag"] not in TAGS:
        raise _wrong("tag", line["tag"], f"one of {', '.join(TAGS)}")
    for key, others in (("include", {"color", "position"}), ("exclude", set[str]())):
        clauses = line.get(key, [])
        if not isinstance(clauses, list) or (key == "include" and not clauses):
            raise _wrong(key, clauses, "a list of clauses")
        for number, clause in enumerate(clauses):
            _check_clause(f"{key}.{number}", _fields(f"{key}.{number}", clause, {"class", "count"}, others), number)


def _check_clause(where: str, clause: Mapping[str, Any], number: int) -> None:
    """number: of the clause; its target is one before it."""
    if not isinstance(clause["class"], str) or not clause["class"]:
        raise _wrong(f"{where}.class", clause["class"], "a name")
    if type(clause["count"]) is not int or clause["count"] < 1:
        raise _wrong(f"{where}.count", clause["count"], "a whole number from 1")
    if "color" in clause and (not isinstance(clause["color"], str) or clause["color"] not in COLORS):
        raise _wrong(f"{where}.color", clause["color"], f"one of {', '.join(COLORS)}")
    if "position" in clause:
        match clause["position"]:
            case [str(relation), int(target)] if relation in RELATIONS and type(target) is int and 0 <= target < number:
                return
        raise _wrong(f"{where}.position", clause["position"], f"a relation and the number of a clause before {where}")


def _fields(where: str, value: Any, needed: set[str], others: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    if missing := sorted(needed - value.keys()):
        raise BadInput(f'GenEval\'s {where} lacks "{missing[0]}"', repr(value), "add it")
    if stray := sorted(set(map(str, value)) - needed - others):
        raise BadInput(f'GenEval\'s {where} has an unknown key "{stray[0]}"', repr(value), "remove it")
    return value


def _wrong(where: str, value: Any, wanted: str) -> BadInput:
    return BadInput(f"GenEval's {where} is not {wanted}", repr(value), "correct it")
