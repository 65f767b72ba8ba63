"""A whole evaluation in a folder: config.yaml, pictures/ and results.jsonl, verdicts.jsonl, scores.json, report.html.

The same call again goes on where it stopped, and ends with the same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from unipic.config import Strict, check_same, save
from unipic.errors import BadInput, UnipicError
from unipic.evals import tables, world
from unipic.evals.generate import generate, requests_of
from unipic.evals.ledger import Ledger
from unipic.evals.score import result_of
from unipic.files import write_whole
from unipic.system import UniPic

CONFIG, RESULTS = "config.yaml", "results.jsonl"
NOT_SAMPLING = ("width", "height", "image_size")


class EvalConfig(Strict):
    """What a run's results depend on. weights, lora: SHA-256. generate, edit: the settings of their requests.

    understanding: whether the model can be asked. parts, groups: that were asked for.
    """

    benchmark: Literal["world"]
    split: Literal["test"]
    seed: int
    n: int
    control: bool
    model: str
    weights: str
    lora: str | None
    understanding: bool
    parts: tuple[str, ...] = world.PARTS
    groups: tuple[str, ...] = ()
    device: str
    dtype: str
    generate: dict[str, Any]
    edit: dict[str, Any]


def evaluate_world(
    system: UniPic,
    run: Path,
    *,
    n: int,
    seed: int = 0,
    control: bool = False,
    parts: Sequence[str] = world.PARTS,
    groups: Sequence[str] = (),
    on_start: Callable[[int], object] = lambda total: None,
    on_done: Callable[[int], object] = lambda count: None,
    **sampling: Any,
) -> tuple[dict[str, Any], str]:
    """Ask, judge and report; gives the scores, as scores.json has them and as a table.

    n: items of each part. control: see `generate`. parts: some of `world.PARTS`; a model that does not answer is not
    asked questions. groups: of the items those of these tags, types and kinds alone.
    sampling: steps, guidance_scale; None takes the model's own.
    on_start: is told how many items there are. on_done: of each batch, how many more are done.
    """
    world.check_groups(groups)
    given = {k: v for k, v in sampling.items() if v is not None}
    config = _config(system, given, seed, n, control, parts, groups)
    asked = [part for part in config.parts if config.understanding or part != "understanding"]
    items = [item for item in world.items(seed, n, asked) if not groups or item.group in groups]
    if not asked:
        raise BadInput("nothing is left to ask", f"{config.model} does not answer questions", "ask for other parts")
    if not items:
        where = f"groups {', '.join(groups)} of {', '.join(asked)}"
        raise BadInput("nothing is left to ask", where, "ask for other parts or groups, or for more items")
    requests = requests_of(system, items, {"generate": config.generate, "edit": config.edit}, control)
    on_start(len(items))
    _check_ours(run)
    with Ledger(run / RESULTS) as ledger:
        _take_up(run, config, ledger)
        generate(system, items, requests, ledger, control=control, on_done=on_done)
        results = [result_of(item, ledger) for item in items]
        judged = [(item, world.judge(item, result)) for item, result in zip(items, results, strict=True)]
        scores = tables.as_json(judged) | {"n": n, "seed": seed, "control": control}
        scores |= {"groups": list(groups)} if groups else {}  # what is overall is of these alone
        lines = [{"id": item.id, "group": item.group, "novelty": item.novelty, **vars(v)} for item, v in judged]
        title = f"The world's benchmark: {config.model}" + " (control)" * control
        try:
            write_whole(run / "verdicts.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
            write_whole(run / "scores.json", (json.dumps(scores, indent=2) + "\n").encode())
        except OSError as error:
            raise UnipicError("the scores cannot be written", f"{run}: {error.strerror}", "mend that") from None
        tables.page(title, judged, results, config.model_dump(mode="json")).write(run / "report.html")
    return scores, tables.table(judged)


def _config(
    system: UniPic,
    sampling: dict[str, Any],
    seed: int,
    n: int,
    control: bool,
    asked: Sequence[str],
    groups: Sequence[str],
) -> EvalConfig:
    parts, settings = system.parts, settings_of(system, sampling)
    return EvalConfig(
        benchmark="world",
        split="test",
        seed=seed,
        n=n,
        control=control,
        model=parts.folder.name,
        weights=parts.folder.weights_hash(parts.mllm_folder),
        lora=parts.lora_hash,
        understanding=parts.mllm_folder is not None,
        parts=tuple(asked),
        groups=tuple(groups),
        device=parts.placement.device.type,
        dtype=str(parts.placement.dtype).removeprefix("torch."),
        generate=settings["generate"],
        edit=settings["edit"],
    )


def settings_of(system: UniPic, sampling: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By task, what all its requests have in common: the model's own settings, and these in their place."""
    return {
        task: {k: v for k, v in (system.defaults[task] | sampling).items() if k not in NOT_SAMPLING}
        for task in ("generate", "edit")
    }


def _check_ours(run: Path) -> None:
    """Before anything in the folder is touched. Raises BadInput for one that holds what no evaluation left."""
    if run.exists() and not run.is_dir():
        raise BadInput("a run's folder is wanted", str(run), "give another --run-dir")
    if not run.exists() or (run / CONFIG).exists():
        return
    empty = (RESULTS,) if (run / RESULTS).exists() and not (run / RESULTS).stat().st_size else ()
    if any(path.name not in empty and path.name[0] != "." for path in run.iterdir()):
        raise BadInput("the folder holds something else", str(run), "give another --run-dir")


def _take_up(run: Path, config: EvalConfig, ledger: Ledger) -> None:
    """A run that was started as it goes on, or a new one in an empty folder. Raises BadInput."""
    if (run / CONFIG).exists():
        check_same(run / CONFIG, config, harmless=("model",))
        return
    save(config, run / CONFIG)
