"""The embedded world's verifier as a judge of pictures and as a reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from unipic.rewards.reward import Sample
from unipic.world import verify
from unipic.world.clauses import satisfied
from unipic.world.edits import Edit
from unipic.world.language import Dense, Prompt, caption
from unipic.world.look import look
from unipic.world.reading import dense as read
from unipic.world.reading import scene_of
from unipic.world.render import render
from unipic.world.scene import Scene


@dataclass(frozen=True)
class Verdict:
    """score, and soft, how near it is to right: 0 to 1. right: nothing is wrong. marks: SC and PQ, 0 to 10.

    clean: √(PQ · what an edit kept), of an edit alone, 0 to 1; it says nothing of whether the edit was done.
    """

    score: float
    right: bool
    reasons: tuple[str, ...] = ()
    marks: Mapping[str, float] = field(default_factory=dict)
    soft: float = 0.0
    clean: float | None = None


def judge(spec: Any, picture: Image) -> Verdict | None:
    """Of a picture for a Prompt, a Dense description, a Scene that was captioned or an Edit; None of anything else.

    A prompt scores 1 or 0 as in GenEval, a description the share of its questions as in DPG-Bench, an edit √(SC·PQ) as
    in GEdit-Bench.
    """
    if isinstance(spec, Edit):
        edited = verify.edit(render(spec.source), picture, spec)
        score, reasons = math.sqrt(edited.sc * edited.pq) / 10, () if edited.right else edited.reasons
        clean = math.sqrt(edited.pq / 10 * edited.kept)
        return Verdict(score, edited.right, reasons, {"sc": edited.sc, "pq": edited.pq}, score, clean)
    if isinstance(spec, Prompt):
        found = verify.prompt(picture, spec.metadata())
        return Verdict(float(found.correct), found.correct, found.reasons, soft=found.soft)
    if isinstance(spec, Dense):
        return _told(spec, picture)
    if isinstance(spec, Scene):
        return _captioned(spec, picture)
    return None


def _told(dense: Dense, picture: Image) -> Verdict:
    """As DPG-Bench counts: no question is answered with yes that hangs on one answered with no."""
    scene, yes = scene_of(verify.to_scale(picture)), {0}
    for question in dense.questions:
        if yes.issuperset(question.dependencies) and satisfied(question.wanted, scene):
            yes.add(question.id)
    wrong = tuple(f"no: {question.text}" for question in dense.questions if question.id not in yes)
    share = 1 - len(wrong) / len(dense.questions)
    return Verdict(share, not wrong, wrong, soft=share)


def _captioned(scene: Scene, picture: Image) -> Verdict:
    """All that the caption says is there, and the picture is clean."""
    small = verify.to_scale(picture)
    seen, clauses = scene_of(small), read(caption(scene)) or ()
    share = sum(satisfied(clause, seen) for clause in clauses) / len(clauses)
    right = share == 1 and look(small).clean
    return Verdict(float(right), right, () if right else (f"wanted {caption(scene)}",), soft=share)


class WorldReward:
    """The verifier's score. soft: of prompts and captions how near a picture is to right, rather than 1 or 0.

    mark: in place of the score "sc" or "pq" as a share of 10; SC is of edits alone, and None of anything else. Or
    "near", how near a picture is to right: an edit's `verify.nearness`, of anything else the soft score. Or "clean":
    √(PQ · what was kept), of what is no edit PQ. Whoever leaves the source as it is has all of that: it is to stand
    beside the score.
    """

    def __init__(self, soft: bool = True, mark: str | None = None) -> None:
        self.soft, self.mark = soft, mark

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        if self.mark == "near":
            return [_near(sample) for sample in samples]
        if self.mark == "clean":
            return [_clean(sample) for sample in samples]
        if self.mark is not None:
            return [_mark(sample, self.mark) for sample in samples]
        verdicts = [_verdict(sample) for sample in samples]
        return [None if v is None else v.soft if self.soft else v.score for v in verdicts]


def _mark(sample: Sample, mark: str) -> float | None:
    verdict = _verdict(sample)
    if verdict is None:
        return None
    if mark == "pq" and not isinstance(sample.spec, Edit):
        return verify.quality(sample.picture)[0] / 10
    return None if mark not in verdict.marks else verdict.marks[mark] / 10


def _near(sample: Sample) -> float | None:
    if isinstance(sample.spec, Edit):
        return verify.nearness(sample.picture, sample.spec)
    verdict = _verdict(sample)
    return None if verdict is None else verdict.soft


def _clean(sample: Sample) -> float | None:
    verdict = _verdict(sample)
    return _mark(sample, "pq") if verdict is None or verdict.clean is None else verdict.clean


def _verdict(sample: Sample) -> Verdict | None:
    """Soft and strict scores, and marks, are of one verdict."""
    if "world" not in sample.verdicts:
        sample.verdicts["world"] = judge(sample.spec, sample.picture)
    verdict: Verdict | None = sample.verdicts["world"]
    return verdict
