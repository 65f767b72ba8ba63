"""`unipic world show`, `export` and `judge`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unipic.cli.options import Json, option
from unipic.errors import BadInput

Split = Annotated[
    str, option("train, or test: in equal parts ordinary and held-out combinations", metavar="train|test")
]


def show(
    seed: Annotated[int, option("of the first scene")] = 0,
    split: Split = "test",
    output: Annotated[Path, option("PNG to write")] = Path("world.png"),
) -> None:
    """Draw a labelled contact sheet of scenes, questions and edits."""
    from unipic.pictures import check_replaceable, save_png
    from unipic.world.sheet import sheet

    _check(seed, split)
    if output.suffix.lower() != ".png":
        raise BadInput("pictures are written as PNG", f"--output {output}", "give a file name that ends in .png")
    check_replaceable(output, [])
    picture = sheet(seed, split)
    picture.info["unipic"] = json.dumps({"task": "world show", "seed": seed, "split": split})
    save_png(picture, output)
    typer.echo(str(output))


def export(
    folder: Annotated[Path, typer.Argument(help="a folder to make")],
    count: Annotated[int, option("samples, half of them edits")] = 1000,
    seed: Annotated[int, option("of the first scene")] = 0,
    split: Split = "train",
    shard_size: Annotated[int, option("samples in each WebDataset tar; 0 makes none")] = 1000,
    as_json: Json = False,
) -> None:
    """Write pictures with all that is said of them, as files and as WebDataset tars."""
    from unipic.types import check_whole
    from unipic.world import exporting

    _check(seed, split)
    check_whole("number of samples", count, 1, 10_000_000)
    check_whole("size of a shard", shard_size, 0, 1_000_000)
    written = exporting.export(folder, count, seed=seed, split=split, shard_size=shard_size)
    typer.echo(
        json.dumps(written) if as_json else f"{folder}: {', '.join(f'{n} {what}' for what, n in written.items())}"
    )


def judge(
    host: Annotated[str, option("address to listen at")] = "127.0.0.1",
    port: Annotated[int, option("0 takes a free one")] = 8001,
    api_key: Annotated[str | None, option("clients must bring it", envvar="UNIPIC_JUDGE_KEY")] = None,
    faults: Annotated[float, option("share of the answers that are spoilt, in 14 ways")] = 0.0,
    fault_seed: Annotated[int, option("of which call meets which fault")] = 0,
    ledger: Annotated[Path | None, option("JSON lines: what was judged, and what was spoilt")] = None,
) -> None:
    """Serve the verifier as a judge, behind an OpenAI-compatible chat endpoint."""
    from unipic.serve.faults import Faults
    from unipic.serve.judge import serve_judge
    from unipic.types import check_number, check_whole

    check_whole("port", port, 0, 65_535)
    check_number("share of faults", faults, 0, 1)
    serve_judge(host, port, api_key=api_key, faults=Faults(faults, fault_seed) if faults else None, ledger=ledger)


def _check(seed: int, split: str) -> None:
    from unipic.types import check_whole
    from unipic.world.scene import SPLITS

    check_whole("seed", seed, 0, 2**32)
    if split not in SPLITS:
        raise BadInput(f"there is no split {split}", "--split", f"give one of {', '.join(SPLITS)}")
