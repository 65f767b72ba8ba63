"""A labelled contact sheet: scenes with their texts, questions, edits before and after, and what is refused.

Every verdict on it is given from the drawn pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unipic.world import edits, language, scene, verify
from unipic.world.questions import questions
from unipic.world.render import render

WIDTH, SPACE = 1280, 20  # pixels
SCALE = 2  # of the pictures
LINE, LETTER = 16, 6.6  # pixels from line to line, and of a letter on average
INK, FAINT, GOOD, BAD = "#1b1b1b", "#6a6a6a", "#11722f", "#b3261e"
QUESTIONS = 9  # of each scene that is asked about


@dataclass(frozen=True)
class Card:
    """Pictures side by side, and lines of text below, each with its ink."""

    pictures: tuple[Image.Image, ...]
    lines: tuple[tuple[str, str], ...]
    least_width: int = 150

    @property
    def width(self) -> int:
        return max(
            self.least_width, sum(p.width * SCALE for p in self.pictures) + SPACE // 2 * (len(self.pictures) - 1)
        )

    def wrapped(self) -> list[tuple[str, str]]:
        columns = int(self.width / LETTER)
        return [(part, ink) for text, ink in self.lines for part in textwrap.wrap(text, columns) or [""]]

    @property
    def height(self) -> int:
        return max(p.height for p in self.pictures) * SCALE + 6 + LINE * len(self.wrapped())


def sheet(seed: int, split: str) -> Image.Image:
    """The contact sheet that starts at a seed; the same seed gives the same picture."""
    rng = np.random.default_rng(seed)
    shown = [scene.sample(seed + i, split, size=scene.SIZES[i % len(scene.SIZES)]) for i in range(10)]
    return _page(
        [
            (f"Scenes of {split}, each with a prompt and its verdict", [_prompted(s, rng) for s in shown]),
            ("Dense descriptions, with questions about them", [_described(s, rng) for s in shown[3:5]]),
            ("Questions", [_asked(s, rng) for s in shown[3:9:2]]),
            ("Edits: source, target, and verdicts on the target and on a source left as it was", _edited(seed, split)),
            ("Refused", _refused(seed, split, rng)),
        ]
    )


def _prompted(shown: scene.Scene, rng: np.random.Generator) -> Card:
    prompt = language.prompts(shown, rng)
    picture = render(shown)
    verdict = verify.prompt(picture, prompt.metadata())
    lines = [(prompt.text, INK), (f"{prompt.tag}, {shown.novelty}", FAINT), _verdict(verdict)]
    return Card((picture,), tuple(lines))


def _verdict(verdict: verify.PromptVerdict) -> tuple[str, str]:
    said = "right" if verdict.correct else f"wrong: {verdict.reasons[0]}"
    return f"{said} ({verdict.soft:.2f})", GOOD if verdict.correct else BAD


def _described(shown: scene.Scene, rng: np.random.Generator) -> Card:
    dense = language.dense(shown, rng)
    asked = [
        (f"{q.id}. {q.text}" + (f"  [{', '.join(map(str, q.dependencies))}]" if q.dependencies != (0,) else ""), FAINT)
        for q in dense.questions
    ]
    return Card((render(shown),), ((dense.text, INK), *asked), least_width=610)


def _asked(shown: scene.Scene, rng: np.random.Generator) -> Card:
    chosen = questions(shown, rng)[:QUESTIONS]
    lines = [line for qa in chosen for line in ((qa.question, INK), (qa.answer, GOOD))]
    return Card((render(shown),), tuple(lines), least_width=400)


def _edited(seed: int, split: str) -> list[Card]:
    cards = []
    for i, type in enumerate(edits.TYPES):
        edit = edits.sample(seed + i, split, type)
        source, target = render(edit.source), render(edit.target)
        lines = [(edit.instruction, INK), (type, FAINT)]
        lines += [_scores("target", source, target, edit), _scores("unedited", source, source, edit)]
        cards.append(Card((source, target), tuple(lines)))
    return cards


def _scores(name: str, source: Image.Image, result: Image.Image, edit: edits.Edit) -> tuple[str, str]:
    verdict = verify.edit(source, result, edit)
    why = f": {verdict.reasons[0]}" if verdict.reasons else ""
    done = min(verdict.sc, verdict.pq) >= 9.5
    return f"{name} SC {verdict.sc:.1f} PQ {verdict.pq:.1f}{why}", GOOD if done else BAD


def _refused(seed: int, split: str, rng: np.random.Generator) -> list[Card]:
    """Pictures that hold what a prompt asks, and something that is not well-formed; and an edit that did too much."""
    shown, other = (scene.sample(seed + i, split, size=(96, 64), count=2) for i in (20, 21))
    picture = render(shown)
    prompt = language.prompts(shown, rng)
    pixels = np.asarray(picture).copy()
    middle = min(shown.objects, key=lambda o: o.x).x
    pixels[:, :middle] = pixels[0, 0]
    noise = rng.integers(0, 256, (picture.height, picture.width, 3)).astype(np.uint8)
    spoilt = {
        "two scenes blended": Image.blend(picture, render(other), 0.5),
        "an object cut in half": Image.fromarray(pixels),
        "noise": Image.fromarray(noise),
    }
    cards = [
        Card((wrong,), ((name, FAINT), (prompt.text, INK), _verdict(verify.prompt(wrong, prompt.metadata()))))
        for name, wrong in spoilt.items()
    ]
    edit = next(
        e
        for e in (edits.sample(seed + i, split, "background_change") for i in range(100))
        if scene.visible("white", e.target.background) and e.target.objects[0].color != "white"
    )
    first, *rest = edit.target.objects
    much = replace(edit.target, objects=(replace(first, color="white"), *rest))
    source = render(edit.source)
    lines = (("one more object changed", FAINT), (edit.instruction, INK), _scores("result", source, render(much), edit))
    return [*cards, Card((source, render(much)), lines)]


# --- layout -----------------------------------------------------------------------------------------------------------


def _page(sections: Sequence[tuple[str, Sequence[Card]]]) -> Image.Image:
    """Cards from left to right in rows, under the heading of their section."""
    places: list[tuple[int, int, Card]] = []
    headings: list[tuple[int, str]] = []
    y = SPACE
    for heading, cards in sections:
        headings.append((y, heading))
        y += 2 * LINE
        x, tallest = SPACE, 0
        for card in cards:
            if x + card.width > WIDTH - SPACE:
                x, y, tallest = SPACE, y + tallest + SPACE, 0
            places.append((x, y, card))
            x, tallest = x + card.width + SPACE, max(tallest, card.height)
        y += tallest + 2 * SPACE
    page = Image.new("RGB", (WIDTH, y), "white")
    draw = ImageDraw.Draw(page)
    title, plain = ImageFont.load_default(19), ImageFont.load_default(13)
    for top, heading in headings:
        draw.text((SPACE, top), heading, INK, title)
    for x, y, card in places:
        _place(page, draw, plain, x, y, card)
    return page


def _place(
    page: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    x: int,
    y: int,
    card: Card,
) -> None:
    left = x
    for picture in card.pictures:
        page.paste(picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST), (left, y))
        left += picture.width * SCALE + SPACE // 2
    below = y + max(p.height for p in card.pictures) * SCALE + 6
    for i, (text, ink) in enumerate(card.wrapped()):
        draw.text((x, below + i * LINE), text, ink, font)
