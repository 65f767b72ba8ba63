"""How far a reward model agrees with the judge of scored edits that are held out, as tables in Markdown.

    python scripts/agreement.py [MODEL] [DATA]         tiny-edit-reward, runs/tiny/edit-scores/data

DATA: a folder as `edit-scores` makes it. The first table is of each score, the second of the last one by how results
were made. `…_as_reward` is the score without ends, as reinforcement has it.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np

from unipic.data.scored import edited, read_scored
from unipic.models.find import find_model
from unipic.models.placement import Placement
from unipic.models.reward_model import load_reward_model
from unipic.train.reward import Examination


def main(name: str = "tiny-edit-reward", data: str = "runs/tiny/edit-scores/data") -> None:
    place = Placement.choose()
    model = load_reward_model(find_model(name), place.dtype, place.device)
    _, edits = read_scored(Path(data), 0.05)
    unbounded = model.score(edited(edits), 32, bounded=False).double().numpy()
    seen = Examination(edits, unbounded, np.array([edit.scores for edit in edits]))
    print(f"{name}, {len(edits)} results of {data}; {platform.machine()}, {place.device.type}, {date.today()}")
    for table in (seen.figures(), seen.by_making()):
        print()
        print("\n".join(markdown(table)))


def markdown(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    columns = tuple(dict.fromkeys(name for own in rows.values() for name in own))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for row, own in rows.items():
        cells = [f"{own[name]:.3g}" if name in own else "–" for name in columns]
        lines.append(f"| `{row}` | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:])
