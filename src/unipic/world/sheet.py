"""A labelled contact sheet: scenes with their texts, questions, edits before and after, and what is refused.

Every verdict on it is given from the drawn pixels.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
from PIL import Image

from unipic.world import edits, language, scene, verify
from unipic.world.layout import BAD, FAINT, GOOD, INK, Card, Line, page
from unipic.world.questions import questions
from unipic.world.render import render

QUESTIONS = 8  # of each scene that is asked about
EDIT_SIZES = ((128, 96), (64, 64), (64, 96), (96, 64), (64, 96), (96, 128))  # three pairs fill a row


def sheet(seed: int, split: str) -> Image.Image:
    """The contact sheet that starts at a seed; the same seed gives the same picture."""
    rng = np.random.default_rng(seed)
    shown = [scene.sample(seed + i, split, size=scene.SIZES[i % len(scene.SIZES)]) for i in range(10)]
    sections = {
        f"Scenes of {split}, each with a prompt and its verdict": [_prompted(s, rng) for s in shown],
        "Dense descriptions, with questions about them": [_described(s, rng) for s in shown[3:5]],
        "Questions": [_asked(shown[i], rng) for i in (5, 2, 9)],
        "Edits: source | target, with verdicts on the target and on a source left as it was": _edited(seed, split),
        "Refused": _refused(seed, split, rng),
    }
    return page([*sections.items()])


def _prompted(shown: scene.Scene, rng: np.random.Generator) -> Card:
    prompt = language.prompts(shown, rng)
    picture = render(shown)
    kind = [(prompt.tag, FAINT), *((f"new {kind}: {what}", INK) for kind, what in prompt.held.items())]
    return Card((picture,), (_line(prompt.text), tuple(kind), _verdict(picture, prompt)))


def _line(text: str, ink: str = INK) -> Line:
    return ((text, ink),)


def _verdict(picture: Image.Image, prompt: language.Prompt) -> Line:
    verdict = verify.prompt(picture, prompt.metadata())
    if verdict.correct:
        return _line("right", GOOD)
    return (f"wrong ({verdict.soft:.2f}):", BAD), (verdict.reasons[0], FAINT)


def _described(shown: scene.Scene, rng: np.random.Generator) -> Card:
    dense = language.dense(shown, rng)
    asked = [
        (f"{q.id}. {q.text}" + (f" [{', '.join(map(str, q.dependencies))}]" if q.dependencies != (0,) else ""))
        for q in dense.questions
    ]
    return Card((render(shown),), (_line(dense.text), _line("  ".join(asked), FAINT)), width=600, beside=True)


def _asked(shown: scene.Scene, rng: np.random.Generator) -> Card:
    chosen = [qa for qa in questions(shown, rng) if qa.kind != "caption"][-QUESTIONS:]
    return Card((render(shown),), tuple(((qa.question, INK), (qa.answer, GOOD)) for qa in chosen), 400, beside=True)


def _edited(seed: int, split: str) -> list[Card]:
    cards = []
    for i, type in enumerate(edits.TYPES):
        edit = edits.sample(seed + i, split, type, size=EDIT_SIZES[i % len(EDIT_SIZES)])
        source, target = render(edit.source), render(edit.target)
        kind = [(type, FAINT)] + [(f"new {edit.novelty}", INK)] * (edit.novelty != "ordinary")
        lines = (_line(edit.instruction), tuple(kind), _scores("target", source, target, edit))
        cards.append(Card((source, target), (*lines, _scores("unedited", source, source, edit))))
    return cards


def _scores(name: str, source: Image.Image, result: Image.Image, edit: edits.Edit) -> Line:
    verdict = verify.edit(source, result, edit)
    numbers = [
        (f"{word} {score:.1f}", GOOD if score >= verify.FINE else BAD)
        for word, score in (("SC", verdict.sc), ("PQ", verdict.pq))
    ]
    return ((name, FAINT), *numbers, *((reason, FAINT) for reason in verdict.reasons[:1]))


def _refused(seed: int, split: str, rng: np.random.Generator) -> list[Card]:
    """Pictures that hold what a prompt asks, and something that is not well-formed; and an edit that did too much."""
    cards = []
    prompts: set[str] = set()
    for name, tag in (("two scenes blended", "position"), ("an object cut in half", "colors"), ("noise", "counting")):
        drawn = (scene.sample(i, split, size=(64, 64)) for i in count(seed + 20))
        shown, prompt = next((s, p) for s in drawn if (p := language.prompt(s, tag, rng)) and p.text not in prompts)
        prompts.add(prompt.text)
        wrong = _spoilt(name, shown, scene.sample(seed + 21, split, size=(64, 64)), rng)
        cards.append(Card((wrong,), (_line(prompt.text), _line(name, FAINT), _verdict(wrong, prompt))))
    drawn_edits = (edits.sample(i, split, "color_alter", size=(64, 64)) for i in count(seed + 20))
    edit, kept = next((e, o) for e in drawn_edits for o in e.source.objects if o in e.target.objects)
    fitting = [c for c in scene.COLORS if c != kept.color and scene.visible(c, edit.target.background)]
    much = [replace(o, color=fitting[0]) if o == kept else o for o in edit.target.objects]
    source, result = render(edit.source), render(replace(edit.target, objects=tuple(much)))
    lines = (_line(edit.instruction), _line("one more object changed", FAINT), _scores("result", source, result, edit))
    return [*cards, Card((source, result), lines)]


def _spoilt(name: str, shown: scene.Scene, other: scene.Scene, rng: np.random.Generator) -> Image.Image:
    picture = render(shown)
    if name == "noise":
        return Image.fromarray(rng.integers(0, 256, (picture.height, picture.width, 3)).astype(np.uint8))
    if name == "two scenes blended":
        return Image.blend(picture, render(other), 0.5)
    left, top, _, bottom = shown.objects[0].box
    pixels = np.asarray(picture).copy()
    pixels[top:bottom, left : shown.objects[0].x] = pixels[0, 0]
    return Image.fromarray(pixels)
