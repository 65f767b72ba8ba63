"""`make tiny`: the tiny models, trained from nothing by every stage in turn, each by its recipe `tiny/STAGE`.

    python scripts/tiny.py [STAGE …] [--set KEY=VALUE …]        resumable; reports are runs/tiny/STAGE/report.html
    python scripts/tiny.py ship                                 what was trained becomes the embedded models, in fp16

A stage starts from the folders of those before it, as its recipe says. On a CPU the longer ones take hours: the same
command again goes on. `--set device=cuda` trains them on a GPU.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from unipic.models import tiny
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.find import find_mllm, find_model
from unipic.models.folder import LAYOUTS, ModelFolder
from unipic.train.loop import train
from unipic.train.stages import read, stage_of

RUNS = Path("runs/tiny")
STAGES = ("vae", "text", "mllm", "mllm-where", "kontext-t2i", "kontext", "kontext-dense", "align", "joint")
SHIPPED = {"tiny-kontext": "kontext-dense", "tiny": "joint"}
# The best of benchmarks/sampling.py that cost at most 2 s a picture; answers are at most a caption long.
SAMPLING = {"steps": 20, "guidance_scale": 2.0}
ANSWERS = {"max_new_tokens": 192}


def main(stages: list[str], sets: list[str]) -> None:
    if not (RUNS / "blank").exists():
        tiny.main([str(RUNS / "blank"), "--to-train"])
    for name in stages:
        start = time.time()
        train(stage_of(read(f"tiny/{name}", sets)), RUNS / name)
        lines = [json.loads(line) for line in (RUNS / name / "log.jsonl").read_text().splitlines()]
        right = next((f"{line['right']:.3f} right" for line in reversed(lines) if "right" in line), "")
        print(f"{name:12} {right} ({time.time() - start:.0f} s)", flush=True)


def ship(assets: Path) -> None:
    """The trained models in the embedded ones' place, all their weights in fp16."""
    for name, stage in SHIPPED.items():
        model = find_model(str(RUNS / stage / "model"))
        components, language = components_of(model), find_mllm(model, None)
        for component in components:
            if LAYOUTS[component].weights:
                folder = language if component == "mllm" and language else model
                components[component] = Changed.over(folder, component, {}, torch.float16)
        new = assets / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        assemble(new, components, defaults_of(model))
        shutil.rmtree(assets / name, ignore_errors=True)
        new.rename(assets / name)
        print(
            f"{assets / name}: {sum(p.stat().st_size for p in (assets / name).rglob('*') if p.is_file()) / 1e6:.1f} MB"
        )


def defaults_of(model: ModelFolder) -> dict[str, dict[str, Any]]:
    changes = {"generate": SAMPLING, "edit": SAMPLING, "describe": ANSWERS}
    return {task: {**defaults, **changes[task]} for task, defaults in model.defaults.items()}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sets = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    asked = [word for i, word in enumerate(arguments) if word != "--set" and (not i or arguments[i - 1] != "--set")]
    if asked == ["ship"]:
        ship(Path(tiny.__file__).parent.parent / "assets")
    else:
        main(asked or list(STAGES), sets)
