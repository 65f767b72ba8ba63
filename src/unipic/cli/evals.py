"""`unipic eval world`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer

from unipic.cli.options import Json, option
from unipic.cli.pictures import Device, DType, GuidanceScale, Lora, Mllm, Model, Steps
from unipic.errors import PromptCut


def world(
    model: Model = "tiny",
    mllm: Mllm = None,
    lora: Lora = None,
    n: Annotated[int, option("items of each part")] = 432,  # whole turns of tags, types, kinds and batches
    seed: Annotated[int, option("of the items and of the noise")] = 0,
    part: Annotated[
        list[str] | None, option("geneval, edit, dense or understanding; may be repeated  [default: all]")
    ] = None,
    group: Annotated[
        list[str] | None, option("a tag, type or kind, such as counting, in any part; may be repeated  [default: all]")
    ] = None,
    control: Annotated[
        bool, option("ask without the prompt, the picture to edit, the picture to look at", "--control")
    ] = False,
    steps: Steps = None,
    guidance_scale: GuidanceScale = None,
    device: Device = "auto",
    dtype: DType = "auto",
    run_dir: Annotated[
        Path | None, option("the run's folder; the same command again goes on  [default: runs/eval-world/MODEL]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a model on the embedded world's test split: prompts, edits, descriptions and questions."""
    from tqdm import tqdm

    from unipic.evals.run import evaluate_world
    from unipic.evals.world import PARTS
    from unipic.system import UniPic

    warnings.simplefilter("ignore", PromptCut)  # a line for each of hundreds of texts
    system = UniPic.from_pretrained(model, mllm=mllm, lora=lora, device=device, dtype=dtype)
    folder = run_dir or Path("runs/eval-world") / (_name(model) + "-lora" * bool(lora) + "-control" * control)
    with tqdm(disable=None, unit="item", leave=False) as bar:
        scores, table = evaluate_world(
            system,
            folder,
            seed=seed,
            n=n,
            control=control,
            steps=steps,
            guidance_scale=guidance_scale,
            parts=tuple(dict.fromkeys(part or PARTS)),
            groups=tuple(dict.fromkeys(group or ())),
            on_start=bar.reset,
            on_done=bar.update,
        )
    typer.echo(json.dumps(scores) if as_json else f"{table}\n{folder / 'report.html'}")


def _name(model: str) -> str:
    """Of a model among others: a trained one lies in its run's folder, as `model`."""
    path = Path(model)
    return f"{path.parent.name}-{path.name}" if path.name == "model" else path.name
