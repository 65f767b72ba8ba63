"""`make tiny`: the tiny models, trained from nothing by every stage in turn, each by its recipe `tiny/STAGE`.

    python scripts/tiny.py [STAGE …] [--set KEY=VALUE …]        resumable; reports are runs/tiny/STAGE/report.html
    python scripts/tiny.py ship [reinforced]                    what was trained becomes the embedded models, in fp16

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
from safetensors.torch import load_file

from unipic.models import tiny
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.checkpoint import read_component, write_manifest
from unipic.models.find import find_mllm, find_model
from unipic.models.folder import LAYOUTS, ModelFolder
from unipic.models.weights import write_tensors
from unipic.train.loop import train
from unipic.train.stages import read, stage_of

RUNS = Path("runs/tiny")
STAGES = (
    *("vae", "text", "mllm", "mllm-where", "kontext-t2i", "kontext", "kontext-dense", "kontext-plain"),
    "kontext-sizes",
    *("align", "joint", "joint-plain", "joint-last", "joint-sizes"),
)
SHIPPED = {"tiny-kontext": "kontext-sizes", "tiny": "joint-sizes"}
REINFORCED = {"tiny-kontext": "pdtr", "tiny": "pdtr-metaquery"}
SHARD = "diffusion_pytorch_model-{}-of-00002.safetensors"
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


def ship(assets: Path, reinforced: bool) -> None:
    """The trained models in the embedded ones' place, all their weights in fp16.

    reinforced: as `unipic train tiny/pdtr…` left those that it was run on. Beside them is then what they were, as
    NAME-base: the tensors that differ.
    """
    for name, stage in SHIPPED.items():
        base, learnt = RUNS / stage / "model", RUNS / REINFORCED[name] / "model"
        changed = reinforced and learnt.exists()
        model = find_model(str(learnt if changed else base))
        components, language = components_of(model), find_mllm(model, None)
        for component in components:
            if LAYOUTS[component].weights:
                folder = language if component == "mllm" and language else model
                components[component] = Changed.over(folder, component, {}, torch.float16)
        new = assets / f"{name}.new"
        shutil.rmtree(new, ignore_errors=True)
        assemble(new, components, defaults_of(model))
        shutil.rmtree(assets / f"{name}-base", ignore_errors=True)
        if changed:
            set_apart(new, find_model(str(base)), assets / f"{name}-base")
        shutil.rmtree(assets / name, ignore_errors=True)
        new.rename(assets / name)
    print(f"{assets}: {sum(p.stat().st_size for p in assets.rglob('*') if p.is_file()) / 1e6:.1f} MB")


def set_apart(folder: Path, base: ModelFolder, target: Path) -> None:
    """Two shards instead of a transformer's file: what both have in common, and what differs; and the base's own."""
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, before = load_file(whole), read_component(base, "transformer", torch.float16)
    changed = {key for key, tensor in tensors.items() if not torch.equal(tensor, before[key])}
    names = {key: SHARD.format("00002" if key in changed else "00001") for key in tensors}
    for name in set(names.values()):
        write_tensors(whole.with_name(name), {key: tensors[key] for key in tensors if names[key] == name})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": names}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    whole.unlink()
    write_manifest(folder, defaults_of(ModelFolder(folder, folder.name)))
    (target / "transformer").mkdir(parents=True)
    write_tensors(target / "transformer" / SHARD.format("00002"), {key: before[key] for key in changed})


def defaults_of(model: ModelFolder) -> dict[str, dict[str, Any]]:
    changes = {"generate": SAMPLING, "edit": SAMPLING, "describe": ANSWERS}
    return {task: {**defaults, **changes[task]} for task, defaults in model.defaults.items()}


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sets = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    asked = [word for i, word in enumerate(arguments) if word != "--set" and (not i or arguments[i - 1] != "--set")]
    if asked in (["ship"], ["ship", "reinforced"]):
        ship(Path(tiny.__file__).parent.parent / "assets", reinforced="reinforced" in asked)
    else:
        main(asked or list(STAGES), sets)
