"""Edits with a judge's scores: a folder of pictures, and JSON lines that say what they are.

    {"source": "a.png", "instruction": "Make it blue", "result": "b.png",
     "scores": {"instruction_following": 8, "quality": 9.5, "overall": 8.7}}

Scores are 0 to 10; one that is missing is not learnt, but for `overall`, which is √(following · quality) where both
are there. `id` names an edit in messages, `made` says how its result came about, by which agreement is told apart;
other keys are left alone. `train.jsonl` is learnt from; `test.jsonl`, where there is one, is held out, and must not
hold an edit of a source that is learnt from by the same instruction.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unipic import pictures
from unipic.data.metadata import MAX_LINE, inside, upright_size
from unipic.errors import BadInput
from unipic.models.reward_model import FULL, OUTPUTS, Edited
from unipic.types import check_text

TRAIN, TEST = "train.jsonl", "test.jsonl"


@dataclass(frozen=True)
class ScoredEdit:
    """Names of pictures are relative to the folder. scores: of `OUTPUTS`, NaN where there is none."""

    folder: Path
    id: str
    source: str
    instruction: str
    result: str
    scores: tuple[float, ...]
    made: str = ""

    @property
    def group(self) -> tuple[str, str]:
        return self.source, self.instruction


def read_scored(folder: Path, held_out: float) -> tuple[list[ScoredEdit], list[ScoredEdit]]:
    """What is learnt from, and what is held out; edits of one source and instruction stand side by side.

    held_out: share of sources, by their names' hashes, where there is no test.jsonl. Raises BadInput, naming file and
    line, for the first line that is bad, and for files that share edits.
    """
    train = _grouped(_read(folder / TRAIN))
    if (folder / TEST).exists():
        test = _grouped(_read(folder / TEST))
        if both := {edit.group for edit in train} & {edit.group for edit in test}:
            source, instruction = min(both)
            what = f"{len(both)} edits are learnt from and held out, such as of {source}: {instruction}"
            raise BadInput(what, f"{folder / TRAIN} and {TEST}", f"take them out of {TEST}")
    else:
        test = [edit for edit in train if _share(edit.source) < held_out]
        train = [edit for edit in train if _share(edit.source) >= held_out]
    if not train:
        raise BadInput("there are no edits to learn from", str(folder / TRAIN), "add some lines")
    return train, test


def edited(edits: Sequence[ScoredEdit]) -> list[Edited]:
    """Their pictures, in their order; neighbours of one source and instruction as one group. Raises BadInput."""
    found: list[Edited] = []
    last: ScoredEdit | None = None
    for edit in edits:
        result = pictures.load(inside(edit.folder, edit.result))
        if last is not None and (last.folder, last.group) == (edit.folder, edit.group):
            found[-1] = replace(found[-1], results=(*found[-1].results, result))
        else:
            found.append(Edited(pictures.load(inside(edit.folder, edit.source)), edit.instruction, (result,)))
        last = edit
    return found


def _grouped(edits: Iterator[ScoredEdit]) -> list[ScoredEdit]:
    groups: dict[tuple[str, str], list[ScoredEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.group, []).append(edit)
    return [edit for group in groups.values() for edit in group]


def _share(source: str) -> float:
    """Between 0 and 1, as a source's name has it."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:6]) / 2**48


def _read(path: Path) -> Iterator[ScoredEdit]:
    lines_of_ids: dict[str, int] = {}
    known: set[str] = set()  # pictures that are there and whole as far as their headers say
    for number, raw in _lines(path):
        try:
            edit = _edit(path, number, raw, known)
            if (first := lines_of_ids.setdefault(edit.id, number)) != number:
                raise BadInput(f"the same id as line {first}", edit.id)
        except BadInput as error:
            said = error.what + (f": {error.where}" if error.where else "")
            raise BadInput(said, f"{path}, line {number}", "correct the line, or delete it") from None
        yield edit


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if raw.strip():
                    yield number, raw
    except OSError as error:
        mend = f"name a folder that holds a {path.name} ({error.strerror})"
        raise BadInput("the scored edits cannot be read", str(path), mend) from None


def _edit(path: Path, number: int, raw: bytes, known: set[str]) -> ScoredEdit:
    if len(raw) > MAX_LINE:
        raise BadInput(f"the line is longer than {MAX_LINE // 2**20} MiB")
    try:
        entry = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise BadInput("the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the line is no JSON: {error}") from None
    if not isinstance(entry, dict):
        raise BadInput("the line is no JSON object")
    if missing := [key for key in ("source", "instruction", "result", "scores") if key not in entry]:
        raise BadInput(f'"{missing[0]}" is missing')
    check_text("instruction", entry["instruction"])
    for key in ("source", "result"):
        name = entry[key]
        if not isinstance(name, str) or not name:
            raise BadInput(f'"{key}" must name a picture')
        if name not in known:
            upright_size(inside(path.parent, name))
            known.add(name)
    id, made = entry.get("id", str(number)), entry.get("made", "")
    check_text("id", id)
    if not isinstance(made, str):
        raise BadInput('"made" is not text')
    names = (entry["source"], entry["instruction"], entry["result"])
    return ScoredEdit(path.parent, id, *names, _scores(entry["scores"]), made)


def _scores(given: Any) -> tuple[float, ...]:
    if not isinstance(given, Mapping):
        raise BadInput('"scores" must be an object', f"it is {json.dumps(given)[:40]}")
    if stray := next((key for key in given if key not in OUTPUTS), None):
        raise BadInput(f"there is no score {stray!r}", f"known: {', '.join(OUTPUTS)}")
    for key, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= FULL:  # also NaN
            raise BadInput(f'the score "{key}" is {value!r}, no number from 0 to {FULL:g}')
    if not given:
        raise BadInput("there is no score")
    following, quality = given.get(OUTPUTS[0]), given.get(OUTPUTS[1])
    both = math.nan if following is None or quality is None else math.sqrt(following * quality)
    return tuple(float(given.get(name, both if name == "overall" else math.nan)) for name in OUTPUTS)
