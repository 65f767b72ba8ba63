"""`unipic train` and `unipic data check`."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from unipic.cli.options import Json, option
from unipic.errors import PromptCut


def train(
    recipe: Annotated[str, typer.Argument(help="a packaged recipe, such as tiny/kontext, or a .yaml file")],
    sets: Annotated[
        list[str] | None, option("change a setting of the recipe (repeatable)", "--set", metavar="KEY=VALUE")
    ] = None,
    run_dir: Annotated[Path | None, option("the run's folder  [default: runs/RECIPE]")] = None,
) -> None:
    """Train as a recipe says; the same command again goes on where it stopped."""
    from unipic.train.stages import read, run_recipe

    warnings.simplefilter("ignore", PromptCut)  # a line for each of thousands of texts
    config = read(recipe, sets or [])
    folder = run_dir or Path("runs") / recipe.removesuffix(".yaml").lstrip("./")
    model = run_recipe(config, folder)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several of us
        typer.echo(str(model))


def check(
    folder: Annotated[Path, typer.Argument(help="pictures, with a metadata.jsonl that says what they are")],
    resolution: Annotated[int | None, option("that it will be trained at, to be warned of small pictures")] = None,
    as_json: Json = False,
) -> None:
    """Name everything that is wrong with a folder of training data."""
    from unipic.data.checking import check_folder

    report = check_folder(folder, resolution)
    if as_json:
        problems = [{"line": p.line, "id": p.id, "what": p.what} for p in report.problems]
        warnings = [{"line": p.line, "id": p.id, "what": p.what} for p in report.warnings]
        typer.echo(json.dumps({"counts": report.counts, "problems": problems, "warnings": warnings}))
    else:
        for problem in report.problems:
            typer.echo(f"broken: {problem}")
        for problem in report.warnings:
            typer.echo(f"doubtful: {problem}")
        for task, counts in report.counts.items():
            sizes = ", ".join(f"{aspect} {count}" for aspect, count in counts.items())
            typer.echo(f"{task}: {sum(counts.values())} sound samples ({sizes})")
    if report.problems:
        raise typer.Exit(1)
