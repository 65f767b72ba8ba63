"""What the world's verifier says of pictures and words, in the forms in which clients ask for it.

Two pictures or more are an edit, the first its source and the last its result; one picture is the answer to a prompt.
Scores are 0 to 10. What was asked is found in the text: behind the last label of LABEL that is understood; where there
is no label, it is the longest quotation or line that is. What is not understood has no score (None).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from unipic.world import reading, verify
from unipic.world.clauses import Clause, satisfied

T = TypeVar("T")

LABEL = re.compile(r"\b(?:(?:editing\s+)?instruction|(?:text\s+)?prompt)\s*:\s*(.+)", re.IGNORECASE)
QUOTATION = re.compile(r"\"([^\"\n]+)\"|“([^“”\n]+)”|(?<!\w)'([^'\n]+)'(?!\w)")
VIESCORE = (re.compile(r"[\"']score[\"']"), re.compile(r"[\"']reasoning[\"']"))  # keys of the JSON that a text asks for
WHOLE = re.compile(r"\bintegers?\b|\bwhole numbers?\b|\bfrom (?:scale )?0 to 10\b", re.IGNORECASE)
LONGEST = 1000  # characters of an instruction or a prompt
MOST_CANDIDATES = 64
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
    "reasons": "reasons",
    "reasoning": "reasons",
    "explanation": "reasons",
}


@dataclass(frozen=True)
class Judgement:
    """fit: SC of an edit, alignment of a picture; None if the text was not understood. quality: PQ. Both 0 to 10."""

    is_edit: bool
    fit: float | None
    quality: float
    reasons: tuple[str, ...]

    @property
    def overall(self) -> float | None:
        """VIEScore's: the geometric mean."""
        return None if self.fit is None else math.sqrt(self.fit * self.quality)


def judge(texts: Sequence[str], pictures: Sequence[Image.Image]) -> Judgement:
    """pictures: at least one, RGB, of the world's sizes; a result of another size is scaled to its source's."""
    if len(pictures) > 1:
        return _of_edit(texts, pictures[0], pictures[-1])
    return _of_picture(texts, pictures[0])


def _of_edit(texts: Sequence[str], source: Image.Image, result: Image.Image) -> Judgement:
    scene = reading.scene_of(source)
    known = bool(scene.background) and len(scene.objects) <= MOST_OBJECTS
    edit = _understood(texts, lambda text: reading.instruction(text, scene)) if known else None
    if edit is None:
        why = "the instruction was not understood" if known else "the source is no scene of the world"
        quality, reasons = verify.quality(result.resize(source.size))
        return Judgement(True, None, quality, (why, *reasons))
    verdict = verify.edit(source, result, edit)
    return Judgement(True, verdict.sc, verdict.pq, verdict.reasons)


def _of_picture(texts: Sequence[str], picture: Image.Image) -> Judgement:
    quality, unclean = verify.quality(picture)
    said = _understood(texts, _claims)
    if said is None:
        return Judgement(False, None, quality, ("the prompt was not understood", *unclean))
    if isinstance(said, tuple):
        fit, reasons = _share(said, picture)
        return Judgement(False, fit, quality, (*reasons, *unclean))
    verdict = verify.prompt(picture, said)
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


def _understood(texts: Sequence[str], read: Callable[[str], T]) -> T | None:
    return next((found for text in _candidates(texts) if (found := read(text)) is not None), None)


def _candidates(texts: Sequence[str]) -> Iterator[str]:
    """What may be the instruction or prompt, the likeliest first."""
    labelled = [match[1] for text in texts for match in LABEL.finditer(text)]
    if labelled:
        likeliest = labelled[::-1]  # examples come before the case
    else:
        quoted = ("".join(m.groups("")) for text in texts for m in QUOTATION.finditer(text))
        lines = (line for text in texts for line in (text, *text.splitlines()))
        likeliest = sorted({c for c in (*quoted, *lines) if len(c) <= LONGEST}, key=lambda c: (-len(c), c))
    yield from (c for c in likeliest[:MOST_CANDIDATES] if len(c) <= LONGEST)


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(judgement: Judgement, texts: Sequence[str], properties: Mapping[str, Any] | None) -> dict[str, Any]:
    """As the client asked: by its schema's properties (all of MEANINGS), in VIEScore's form, or in our own."""
    if properties is not None:
        return {name: _value(judgement, MEANINGS[name.lower()], types(p)) for name, p in properties.items()}
    text = "\n".join(texts)
    if all(key.search(text) for key in VIESCORE):
        meaning = "fit" if judgement.is_edit else "quality"
        score = _value(judgement, meaning, {"integer"} if WHOLE.search(text) else {"number"})
        return {"score": [score, score], "reasoning": _value(judgement, "reasons", {"string"})}
    names = ("instruction_following" if judgement.is_edit else "alignment", "quality", "reasons")
    return {name: _value(judgement, MEANINGS[name], {"number", "string"}) for name in names}


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
        reasons = judgement.reasons or ("as asked",)
        return list(reasons) if "array" in types and "string" not in types else "; ".join(reasons)
    score: float | None = getattr(judgement, meaning)
    if score is None:
        return None
    return round(score) if "integer" in types and "number" not in types else round(score, 2)
