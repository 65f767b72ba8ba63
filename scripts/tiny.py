"""`make tiny`: the tiny models, trained from nothing by every stage in turn, each by its recipe `tiny/STAGE`.

    python scripts/tiny.py [STAGE …] [--set KEY=VALUE …]        resumable; reports are runs/tiny/STAGE/report.html
    python scripts/tiny.py ship [reinforced]                    what was trained becomes the embedded models, in fp16
    python scripts/tiny.py ship edit-reward                     and so does EditReward, by itself
    python scripts/tiny.py minutes                              what each stage took, by its log, in Markdown

A stage starts from the folders of those before it, as its recipe says. On a CPU the longer ones take hours: the same
command again goes on. `--set device=cuda` trains them on a GPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from unipic.errors import BadInput
from unipic.models import tiny
from unipic.models.assembly import Changed, assemble, components_of
from unipic.models.checkpoint import read_component, write_manifest
from unipic.models.find import find_mllm, find_model
from unipic.models.folder import LAYOUTS, ModelFolder
from unipic.models.weights import write_tensors
from unipic.train.lines import read_lines
from unipic.train.lora import JOINT_ATTENTION
from unipic.train.stages import read, run_recipe

RUNS = Path("runs/tiny")
FOUNDATIONS = ("vae", "text", "mllm", "mllm-where", "mllm-slots", "kontext-t2i")
KONTEXT = tuple(
    f"kontext{part}"
    for part in ("", "-dense", "-plain", "-sizes", "-binding", "-shapes", "-edits", "-details", "-levels")
)
METAQUERY = ("align", "joint", "joint-edits", "joint-details", "joint-levels", "joint-binding", "joint-last")
REWARD = ("edit-scores", "edit-reward")
EDIT_REWARD = "tiny-edit-reward"
SHIPPED = {"tiny-kontext": KONTEXT[-1], "tiny": METAQUERY[-1]}
REINFORCED = {"tiny-kontext": "pdtr", "tiny": "pdtr-metaquery"}
ADAPTED = tuple(f".{name}.weight" for name in JOINT_ATTENTION)  # a reinforced model's differ from its base's
SHARD = "diffusion_pytorch_model-{}-of-00002.safetensors"
# The best of benchmarks/sampling.py that cost at most 2 s a picture; answers are at most a caption long.
SAMPLING = {"steps": 20, "guidance_scale": 2.0}
ANSWERS = {"max_new_tokens": 192}


def main(stages: list[str], sets: list[str]) -> None:
    if not (RUNS / "blank").exists():
        tiny.main([str(RUNS / "blank"), "--to-train"])
    for name, config in [(name, read(f"tiny/{name}", sets)) for name in stages]:  # all are read before one begins
        start = time.time()
        run_recipe(config, RUNS / name)
        lines = read_lines(RUNS / name / "log.jsonl")
        right = next((f"{line['right']:.3f} right" for line in reversed(lines) if "right" in line), "")
        print(f"{name:12} {right} ({time.time() - start:.0f} s)", flush=True)


def minutes() -> None:
    """Samples over the rate of the log's lines; of steps that were repeated after a stop, their last."""
    print("| recipe | updates × samples (× noises) | minutes |\n|---|---|---|")
    for name in (*FOUNDATIONS, *KONTEXT, *METAQUERY, REWARD[-1]):
        if not (RUNS / name / "log.jsonl").exists():
            continue
        config = yaml.safe_load((RUNS / name / "config.yaml").read_text())
        lines = read_lines(RUNS / name / "log.jsonl")
        rates = {line["step"]: line["samples_per_s"] for line in lines if "samples_per_s" in line}
        steps = sorted(rates)
        seconds = sum((b - a) * config["batch"] / rates[b] for a, b in pairwise([0, *steps]))
        noises = f" × {config['noises']}" if config.get("noises", 1) > 1 else ""
        print(f"| `tiny/{name}` | {steps[-1]:,} × {config['batch']}{noises} | {seconds / 60:.0f} |")


def ship(assets: Path, reinforced: bool) -> None:
    """The trained models in the embedded ones' place, in fp16; where writing them fails, nothing changes. What has
    not been trained here stays as it was.

    reinforced: as `unipic train tiny/pdtr…` left those that it was run on. Beside them is then what they were, as
    NAME-base: the shard that differs.
    """
    names = [f"{name}{suffix}" for name in SHIPPED for suffix in ("", "-base")]
    with replacing(assets, names) as new:
        for name, stage in SHIPPED.items():
            trained, learnt = RUNS / stage / "model", RUNS / REINFORCED[name] / "model"
            base = find_model(str(trained) if trained.exists() else f"{name}-base")
            changed = reinforced and learnt.exists()
            model = find_model(str(learnt)) if changed else base
            assemble(new / name, in_half(model), defaults_of(model))
            split(new / name)
            write_manifest(new / name, defaults_of(model))
            if changed:
                set_apart(new / name, base, new / f"{name}-base")


def ship_reward(assets: Path) -> None:
    """EditReward as it was trained here, in fp16."""
    with replacing(assets, [EDIT_REWARD]) as new:
        assemble(new / EDIT_REWARD, in_half(find_model(str(RUNS / REWARD[-1] / "model"))), {})


@contextmanager
def replacing(assets: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder for what comes in the place of those names, some of which may be left out; moved there at the end."""
    assets.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=assets.parent, prefix=f".{assets.name}.") as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        yield new
        old.mkdir()
        for name in names:
            for here, there in ((assets, old), (new, assets)):
                if (here / name).exists():
                    (here / name).rename(there / name)
    print(f"{assets}: {sum(p.stat().st_size for p in assets.rglob('*') if p.is_file()) / 1e6:.1f} MB")


def in_half(model: ModelFolder) -> dict[str, ModelFolder | Changed]:
    """All that a model's folder holds, in fp16."""
    components, language = components_of(model), find_mllm(model, None)
    for component in components:
        if LAYOUTS[component].weights:
            folder = language if component == "mllm" and language else model
            components[component] = Changed.over(folder, component, {}, torch.float16)
    return components


def split(folder: Path) -> None:
    """The transformer's file as two shards: what adapters leave as it is, and the weights that they are merged into.

    Always, reinforced or not: the same weights are the same files, and have the same hash.
    """
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    names = {key: SHARD.format("00002" if key.endswith(ADAPTED) else "00001") for key in tensors}
    for name in sorted(set(names.values())):
        write_tensors(whole.with_name(name), {key: tensors[key] for key in tensors if names[key] == name})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": names}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    whole.unlink()


def set_apart(folder: Path, base: ModelFolder, target: Path) -> None:
    """Beside a reinforced model's folder the one shard that its base does not share with it."""
    before = read_component(base, "transformer", torch.float16)
    common = load_file(folder / "transformer" / SHARD.format("00001"))
    differ = [key for key, tensor in common.items() if not torch.equal(tensor, before[key])]
    if differ:
        mend = "reinforce the model that is shipped, with adapters at the usual places"
        raise BadInput(f"{differ[0]} differs, which adapters do not change", f"{folder.name} and {base.root}", mend)
    (target / "transformer").mkdir(parents=True)
    own = {key: tensor for key, tensor in before.items() if key.endswith(ADAPTED)}
    write_tensors(target / "transformer" / SHARD.format("00002"), own)
    write_manifest(target, defaults_of(ModelFolder(folder, folder.name)))


def defaults_of(model: ModelFolder) -> dict[str, dict[str, Any]]:
    changes = {"generate": SAMPLING, "edit": SAMPLING} | ({"describe": ANSWERS} if model.has("mllm") else {})
    return {task: {**model.defaults.get(task, {}), **new} for task, new in changes.items()}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", default=[*FOUNDATIONS, *KONTEXT, *METAQUERY, *REWARD])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    embedded = Path(tiny.__file__).parent.parent / "assets"
    if asked.stages in (["ship"], ["ship", "reinforced"]):
        ship(embedded, reinforced="reinforced" in asked.stages)
    elif asked.stages == ["ship", "edit-reward"]:
        ship_reward(embedded)
    elif asked.stages == ["minutes"]:
        minutes()
    else:
        main(asked.stages, asked.set)
