"""Tables of the world's benchmark beside its control, in Markdown, from the folders of evaluations.

    unipic eval world --model tiny --run-dir runs/eval/tiny              and again with --control
    python scripts/scores.py runs/eval/tiny runs/eval/tiny-control [RUN CONTROL …]

A star stands at what is above its control beyond both intervals.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PARTS = ("geneval", "edit", "understanding")
WHOLE = {"geneval": "overall", "edit": "overall", "understanding": "accuracy"}
Scores = dict[str, Any]


def main(folders: list[Path]) -> None:
    runs = [json.loads((folder / "scores.json").read_text()) for folder in folders]
    pairs = list(zip(runs[::2], runs[1::2], strict=True))
    names = [f"`{folder.name}`" for folder in folders]
    first = runs[0]
    lines = [(part, group) for part in PARTS for group in first[part] or ()]
    head("", "", *names)
    for part, group in lines:
        row(part, group, *(one for pair in pairs for one in beside(*pair, part, group)))
    row("dense", "", *(one for pair in pairs for one in beside(*pair, "dense", "")))
    print("\nOrdinary and novel combinations:\n")
    head("", "", "ordinary", "novel")
    for name, own in zip(names[::2], runs[::2], strict=True):
        for part in PARTS:
            if own[part]:
                row(name, part, *(cell(own[kind], part, WHOLE[part]) for kind in ("ordinary", "novel")))


def beside(own: Scores, control: Scores, part: str, group: str) -> tuple[str, str]:
    """A score, with a star where it is above its control's, and the control's."""
    mine, its = interval(own, part, group), interval(control, part, group)
    star = " *" if mine and its and mine[0] > its[1] else ""
    return cell(own, part, group) + star, cell(control, part, group)


def value(scores: Scores, part: str, group: str) -> Any:
    """None where nothing of it was asked."""
    found = scores.get(part)
    return found.get(group) if group and found is not None else found


def interval(scores: Scores, part: str, group: str) -> tuple[float, float] | None:
    found: tuple[float, float] | None = value(scores["intervals"], part, group)
    return found


def cell(scores: Scores, part: str, group: str) -> str:
    found = value(scores, part, group)
    return "–" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(found, *(interval(scores, part, group) or ()))


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


def row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        sys.exit(__doc__)
    main([Path(folder) for folder in sys.argv[1:]])
