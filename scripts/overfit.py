"""`make overfit`: each tiny stage learns 64 samples by heart, until the verifier finds what it makes of them right.

    python scripts/overfit.py [FOLDER] [STAGE …]        resumable; reports are FOLDER/STAGE/report.html

The stages are chained as the real ones are: the autoencoder's pictures, the encoders' texts and the language model's
states are what the DiT and the connector learn on. Prints the share of right ones for each stage; the bar is 0.95.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from unipic.models import tiny
from unipic.train.loop import train
from unipic.train.stages import read, stage_of

BAR = 0.95
STARTS = {  # what each stage starts from, as settings of its recipe
    "vae": {"model": "blank/tiny-kontext"},
    "text": {"model": "vae/model"},
    "mllm": {"model": "blank/tiny"},
    "kontext-t2i": {"model": "text/model"},
    "kontext": {"model": "kontext-t2i/model"},
    "align": {"model": "kontext-t2i/model", "mllm": "mllm/model"},
    "joint": {"model": "align/model", "transformer": "kontext/model"},
}


def main(folder: Path, stages: list[str]) -> int:
    if not (folder / "blank").exists():
        tiny.main([str(folder / "blank"), "--to-train"])
    short = 0
    for name in stages:
        start = time.time()
        sets = [f"{key}={folder / value}" for key, value in STARTS[name].items()]
        train(stage_of(read(f"proof/{name}", sets)), folder / name)
        lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        right = next(line["right"] for line in reversed(lines) if "right" in line)
        short += right < BAR
        print(f"{name:12} {right:.3f} right {'' if right >= BAR else 'SHORT OF THE BAR '}({time.time() - start:.0f} s)")
    return short


if __name__ == "__main__":
    arguments = sys.argv[1:] or ["runs/overfit"]
    sys.exit(main(Path(arguments[0]), arguments[1:] or list(STARTS)))
