"""Sheets of an evaluation's prompts and edits, drawn at random, with their verdicts; failures are left in.

    python scripts/sheets.py RUN FOLDER [NAME]         RUN: what `unipic eval world --run-dir RUN` left

Writes FOLDER/NAME-prompts.png and FOLDER/NAME-edits.png, 64 of each.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL.Image import Image

from unipic.config import read_recipe
from unipic.evals import world
from unipic.evals.items import Item
from unipic.evals.ledger import Ledger
from unipic.evals.run import CONFIG, RESULTS
from unipic.evals.score import result_of
from unipic.pictures import save_png
from unipic.rewards.world import Verdict
from unipic.world.layout import BAD, FAINT, GOOD, INK, Card, Line, page

COUNT, SEED = 64, 0
REASONS = 2  # shown of a verdict


def main(run: Path, folder: Path, name: str) -> None:
    config, _ = read_recipe(str(run / CONFIG))
    items = world.items(config["seed"], config["n"], ("geneval", "edit"))
    with Ledger(run / RESULTS) as ledger:
        for part, called in (("geneval", "prompts"), ("edit", "edits")):
            own = [item for item in items if item.part == part]
            drawn = random.Random(SEED).sample(own, min(COUNT, len(own)))
            results = [result_of(item, ledger) for item in drawn]
            judged = [world.judge(item, result) for item, result in zip(drawn, results, strict=True)]
            cards = [card(*each) for each in zip(drawn, results, judged, strict=True)]
            heading = f"{len(drawn)} test {called} drawn at random of {len(own)}: {sum(v.right for v in judged)} right"
            save_png(page([(heading, cards)]), folder / f"{name}-{called}.png")
            print(f"{folder / f'{name}-{called}.png'}  {heading}")


def card(item: Item, result: Image, verdict: Verdict) -> Card:
    pictures = (item.picture, result) if item.picture else (result,)
    new = ((f"new {item.novelty}", INK),) if item.novelty != "ordinary" else ()
    marks = " ".join(f"{mark.upper()} {value:.1f}" for mark, value in verdict.marks.items())
    told: Line = (("right", GOOD) if verdict.right else ("wrong", BAD), (marks, FAINT))
    reasons = "; ".join(verdict.reasons[:REASONS])
    return Card(pictures, (((item.text, INK),), ((item.group, FAINT), *new), told, ((reasons, FAINT),)), 200)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "tiny")
