"""Asking a model for what the items of a benchmark want: pictures/ID.png and a line of results.jsonl for each.

Called again, it goes on with what is missing. Which items share a forward depends on the list of items alone, so that
an interrupted run ends with the same bytes as one that was not.

The control asks without what a task needs: generation without its prompt, editing without the picture, a question
about a grey picture. What it scores is what can be had by guessing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from unipic.errors import BadInput
from unipic.evals.items import Item
from unipic.evals.ledger import Ledger
from unipic.pictures import save_png
from unipic.pipeline import FAST_BATCH
from unipic.system import UniPic
from unipic.types import Request

ANSWER_TOKENS = 192  # as many as the tiny models' own default
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Unprompted(Request):
    """A request whose prompt may be empty, as a user's may not."""

    def __post_init__(self) -> None:
        Request(**(vars(self) | {"prompt": self.prompt or "nothing"}))


def requests_of(
    system: UniPic, items: Sequence[Item], sampling: Mapping[str, Mapping[str, Any]], control: bool
) -> dict[str, Request]:
    """By id, what the items to be drawn ask of the pipeline. sampling: by task, the settings of its requests.

    Raises BadInput for what the model cannot draw.
    """
    requests = {item.id: _request(item, sampling, control) for item in items if item.task != "describe"}
    for request in requests.values():
        system.parts.spec.check_request(request)
    return requests


def _request(item: Item, sampling: Mapping[str, Mapping[str, Any]], control: bool) -> Request:
    settings = {**sampling[item.task], "seed": item.seed}
    if item.task == "edit":
        references = (item.picture,) if item.picture and not control else ()
        return Request(item.text, *item.size, references=references, **settings)
    return Unprompted("" if control else item.text, *item.size, **settings)


def generate(
    system: UniPic,
    items: Sequence[Item],
    requests: Mapping[str, Request],
    ledger: Ledger,
    *,
    control: bool = False,
    on_done: Callable[[int], object] = lambda count: None,
) -> None:
    """Ask for every item that is not done yet. on_done: is told after each batch how many more items are.

    Raises BadInput if the ledger holds results of other items.
    """
    for item in items:
        _check_same(item, ledger)
    for batch in batches(items):
        if missing := [item for item in batch if not _is_done(item, ledger)]:
            if batch[0].task == "describe":
                lines = [{"answer": answer(system, item, control)} for item in batch]
            else:  # all of a batch, also where only some are missing: company may change last bits
                pictures = system.run([requests[item.id] for item in batch], fast_batch=True)
                for item, picture in zip(batch, pictures, strict=True):
                    if item in missing:
                        save_png(picture, picture_path(item, ledger))
                lines = [{"picture": f"pictures/{item.id}.png"} for item in batch]
            told = [_described(item) | line for item, line in zip(batch, lines, strict=True)]
            ledger.add([line for line in told if line["id"] not in ledger.records])
        on_done(len(batch))


def batches(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Neighbours of one task and size, as many as share a forward; questions by themselves."""
    for (task, _), group in groupby(items, key=lambda item: (item.task, item.size)):
        members, length = list(group), 1 if task == "describe" else FAST_BATCH
        yield from (members[i : i + length] for i in range(0, len(members), length))


def answer(system: UniPic, item: Item, control: bool) -> str:
    shown = Image.new("RGB", item.size, GREY) if control or item.picture is None else item.picture
    return system.describe(shown, item.text, max_new_tokens=ANSWER_TOKENS)


def picture_path(item: Item, ledger: Ledger) -> Path:
    return ledger.path.parent / "pictures" / f"{item.id}.png"


def _is_done(item: Item, ledger: Ledger) -> bool:
    return item.id in ledger.records and (item.task == "describe" or picture_path(item, ledger).exists())


def _described(item: Item) -> dict[str, Any]:
    return {"id": item.id, "group": item.group, "novelty": item.novelty, "text": item.text}


def _check_same(item: Item, ledger: Ledger) -> None:
    if item.id in ledger.records and ledger.records[item.id]["text"] != item.text:
        where = f"{ledger.path}: {item.id}"
        raise BadInput("the results are of another version of the benchmark", where, "give another --run-dir")
