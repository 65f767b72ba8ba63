"""`make demo`: a picture, three edits of it and an answer by the embedded model, on one sheet with their verdicts.

    python scripts/demo.py [FOLDER]

Verdicts come from the pixels and from what the words ask for; right or wrong, they are shown.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL.Image import Image

from unipic import UniPic, save_png
from unipic.world import reading, verify
from unipic.world.language import caption
from unipic.world.layout import BAD, FAINT, GOOD, INK, Card, page
from unipic.world.questions import QA, score

PROMPT, SEED = "a photo of a triangle", 1
EDITS = ("Make the triangle blue", "Change the background to mint", "Make the picture dark")
QUESTION = "What is in the picture?"
NOT_TOLD = "the verifier cannot tell what is asked of this picture"

Told = tuple[bool, str]
"""Whether it is right, and what the verifier says."""


def main(folder: Path) -> None:
    start = time.time()
    system = UniPic.from_pretrained("tiny")
    picture = system.generate(PROMPT, seed=SEED)[0]
    edited = system.edit(picture, EDITS, seed=SEED)
    answer = system.describe(picture, QUESTION)
    seconds = time.time() - start

    made = [("generated", PROMPT, picture, of_prompt(picture))]
    made += [
        (f"edited-{i}", said, p, of_edit(picture, p, said))
        for i, (said, p) in enumerate(zip(EDITS, edited, strict=True), 1)
    ]
    for name, said, shown, (right, told) in made:
        save_png(shown, folder / f"{name}.png")
        print(f"{folder / name}.png  {said}\n    {mark(right)}: {told}")
    right, told = of_answer(picture, answer)
    print(f"{QUESTION}  {answer}\n    {mark(right)}: {told}")

    cards = [card((shown,), said, verdict) for _, said, shown, verdict in made]
    cards.append(card((picture,), f"{QUESTION} {answer}", (right, told)))
    save_png(
        page([("unipic, its embedded tiny model: a picture, three edits of it, an answer about it", cards)]),
        folder / "sheet.png",
    )
    print(f"{folder / 'sheet.png'}  ({seconds:.1f} s, imports aside)")
    print(f"""
Try next:
  .venv/bin/unipic generate "a picture of a diamond" --output diamond.png
  .venv/bin/unipic edit diamond.png "Make the diamond blue" --output blue.png
  .venv/bin/unipic describe blue.png "What color is the diamond?"
  .venv/bin/unipic info {folder / "edited-1.png"}
  .venv/bin/unipic generate "a lighthouse at dusk" --model Skywork/UniPic2-SD3.5M-Kontext-2B    (16 GB to download)""")


def of_prompt(picture: Image) -> Told:
    asked = reading.prompt(PROMPT)
    if asked is None:
        return False, NOT_TOLD
    verdict = verify.prompt(picture, asked)
    return verdict.correct, "; ".join(verdict.reasons) or "all that is asked is there"


def of_edit(source: Image, result: Image, said: str) -> Told:
    asked = reading.instruction(said, reading.scene_of(source))
    if asked is None:
        return False, NOT_TOLD
    verdict = verify.edit(source, result, asked)
    marks = f"SC {verdict.sc:.1f}, PQ {verdict.pq:.1f} of 10"
    return verdict.right, "; ".join((marks, *verdict.reasons[:2]))


def of_answer(picture: Image, answer: str) -> Told:
    scene = reading.scene_of(picture)
    if not scene.objects or not scene.background:
        return False, NOT_TOLD
    seen = caption(scene)
    return score(QA(QUESTION, seen, "caption"), answer) == 1, f"the verifier sees {seen}"


def mark(right: bool) -> str:
    return "right" if right else "wrong"


def card(pictures: tuple[Image, ...], said: str, verdict: Told) -> Card:
    right, told = verdict
    return Card(pictures, (((said, INK),), ((mark(right), GOOD if right else BAD), (told, FAINT))), 192)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
