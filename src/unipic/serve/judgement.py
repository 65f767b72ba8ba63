"""What the world's verifier says of pictures and words, in the forms in which clients ask for it.

Two pictures or more are an edit, the first its source and the last its result; one picture is the answer to a prompt.
Scores are 0 to 10. What was asked is found in the user's words, else in the system's (see `asked`); what is not
understood has no score (None).

Forms: a schema's properties; VIEScore's JSON, with SC of edits and of pictures with a prompt, else PQ; ImgEdit's lines
with whole numbers from 1 to 5, of which those after the first are no higher than it; our own JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from unipic.serve.asked import labels, understood
from unipic.world import reading, verify
from unipic.world.clauses import Clause, satisfied

VIESCORE = (re.compile(r"[\"']score[\"']"), re.compile(r"[\"']reasoning[\"']"))  # keys of the JSON that a text asks for
WHOLE = re.compile(r"\bintegers?\b|\bwhole numbers?\b|\bfrom (?:scale )?0 to 10\b", re.IGNORECASE)
ONE_SCORE = re.compile(r"\[ ?score ?\]")  # in VIEScore's list
RATED = re.compile(r"^[ \t]{0,9}(\S[^:\n]{0,80}): ?A number from 1 to 5\b", re.IGNORECASE | re.MULTILINE)
MOST_WORDS = 20  # of ImgEdit's reasoning
MOST_OBJECTS = 8  # of a source; the world's have four

MEANINGS = {  # of a schema's properties
    "instruction_following": "fit",
    "success": "fit",
    "semantic_consistency": "fit",
    "sc": "fit",
    "alignment": "fit",
    "quality": "quality",
    "perceptual_quality": "quality",
    "pq": "quality",
    "naturalness": "quality",
    "overall": "overall",
    "score": "overall",
    "reasons": "reasons",
    "reasoning": "reasons",
    "explanation": "reasons",
}


@dataclass(frozen=True)
class Judgement:
    """fit: SC of an edit, alignment of a picture; None if the text was not understood. quality: PQ. Both 0 to 10.

    unread: why there is no fit.
    """

    is_edit: bool
    fit: float | None
    quality: float
    reasons: tuple[str, ...]
    unread: str = ""

    @property
    def overall(self) -> float | None:
        """VIEScore's: the geometric mean."""
        return None if self.fit is None else math.sqrt(self.fit * self.quality)


def judge(said: Sequence[Sequence[str]], pictures: Sequence[Image.Image]) -> Judgement:
    """said: texts of the user and of others, in the order in which they are searched. pictures: at least one, RGB."""
    if len(pictures) > 1:
        return _of_edit(said, pictures[0], pictures[-1])
    return _of_picture(said, pictures[0])


def _of_edit(said: Sequence[Sequence[str]], source: Image.Image, result: Image.Image) -> Judgement:
    scene = reading.scene_of(source)
    known = bool(scene.background) and len(scene.objects) <= MOST_OBJECTS
    edit = understood(said, lambda text: reading.instruction(text, scene)) if known else None
    if edit is None:
        why = "the instruction was not understood" if known else "the source is no scene of the world"
        quality, reasons = verify.quality(result.resize(source.size))
        return Judgement(True, None, quality, reasons, why)
    verdict = verify.edit(source, result, edit)
    return Judgement(True, verdict.sc, verdict.pq, verdict.reasons)


def _of_picture(said: Sequence[Sequence[str]], picture: Image.Image) -> Judgement:
    quality, unclean = verify.quality(picture)
    claims = understood(said, _claims)
    if claims is None:
        return Judgement(False, None, quality, unclean, "the prompt was not understood")
    if isinstance(claims, tuple):
        fit, reasons = _share(claims, picture)
        return Judgement(False, fit, quality, (*reasons, *unclean))
    verdict = verify.prompt(picture, claims)
    fit = 10 * verdict.soft if verdict.correct else min(9.0, 10 * verdict.soft)
    return Judgement(False, fit, quality, verdict.reasons)


def _claims(text: str) -> dict[str, Any] | tuple[Clause, ...] | None:
    """GenEval's metadata of a prompt, or what a description states."""
    metadata = reading.prompt(text)
    return reading.dense(text) if metadata is None else metadata


def _share(clauses: Sequence[Clause], picture: Image.Image) -> tuple[float, tuple[str, ...]]:
    """Of a description's statements that hold, times ten."""
    scene = reading.scene_of(picture)
    held = sum(satisfied(clause, scene) for clause in clauses)
    reasons = () if held == len(clauses) else (f"{held} of {len(clauses)} statements hold",)
    return 10 * held / len(clauses), reasons


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(judgement: Judgement, texts: Sequence[str], properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """As the client asked. texts: all that was said. properties: of a schema, all of MEANINGS."""
    text = "\n".join(texts)
    if properties is not None:
        meant = {name: MEANINGS[name.lower()] for name in properties}
        judgement = judgement if {"fit", "overall"} & {*meant.values()} else replace(judgement, unread="")
        return {name: _value(judgement, meant[name], types(p)) for name, p in properties.items()}
    if names := RATED.findall(text):
        return _rated(judgement, names)
    if all(key.search(text) for key in VIESCORE):
        return _viescore(judgement, text)
    names = ["instruction_following" if judgement.is_edit else "alignment", "quality", "reasons"]
    return {name: _value(judgement, MEANINGS[name], {"number", "string"}) for name in names}


def written(answer: Mapping[str, Any], texts: Sequence[str], properties: Mapping[str, Any] | None) -> str:
    """JSON, or lines where these are asked for."""
    if properties is None and RATED.search("\n".join(texts)):
        return "\n".join(f"{name}: {'unknown' if value is None else value}" for name, value in answer.items())
    return json.dumps(answer)


def _viescore(judgement: Judgement, text: str) -> dict[str, Any]:
    of_fit = judgement.is_edit or judgement.fit is not None or "prompt" in labels([text])
    judgement = judgement if of_fit else replace(judgement, unread="")
    score = _value(judgement, "fit" if of_fit else "quality", {"integer"} if WHOLE.search(text) else {"number"})
    return {
        "score": [score] * (1 if ONE_SCORE.search(text) else 2),
        "reasoning": _value(judgement, "reasons", {"string"}),
    }


def _rated(judgement: Judgement, names: Sequence[str]) -> dict[str, Any]:
    """ImgEdit's: the first is of the instruction, the others of how it looks."""
    fit, quality = (None if s is None else round(1 + 4 * s / 10) for s in (judgement.fit, judgement.quality))
    lesser = None if fit is None or quality is None else min(fit, quality)
    reasons = " ".join(_value(judgement, "reasons", {"string"}).split()[:MOST_WORDS])
    return {"Brief reasoning": reasons, names[0]: fit, **dict.fromkeys(names[1:], lesser)}


def types(schema: Any) -> set[str]:
    """The JSON types that a property may have, those of its alternatives too (one level deep)."""
    if not isinstance(schema, dict):
        return set()
    options = schema.get("anyOf")
    found: list[Any] = []
    for option in (schema, *(options if isinstance(options, list) else ())):
        if isinstance(option, dict):
            kind = option.get("type")
            found += kind if isinstance(kind, list) else [kind]
    return {name for name in found if isinstance(name, str)}


def _value(judgement: Judgement, meaning: str, types: set[str]) -> Any:
    if meaning == "reasons":
        reasons = (*filter(None, [judgement.unread]), *judgement.reasons) or ("as asked",)
        return list(reasons) if "array" in types and "string" not in types else "; ".join(reasons)
    score: float | None = getattr(judgement, meaning)
    if score is None:
        return None
    return round(score) if "integer" in types and "number" not in types else round(score, 2)
