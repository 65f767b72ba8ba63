"""A folder's `metadata.jsonl`: one sample a line, and whatever is wrong with it.

    {"image": "a.png", "text": "a red circle"}                                   to generate; also "file_name"
    {"source": "a.png", "instruction": "Make it blue", "target": "b.png"}        to edit; also several sources

"id" names a sample, its line does otherwise. "geneval", on a line of the first kind, is GenEval's metadata of its text,
by which pictures for it can be judged. Other keys are left alone. Paths are relative and stay in the folder. Of
pictures only headers are read here, so that a large folder opens quickly; `checking` decodes them.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from unipic.data import buckets
from unipic.data.source import Size, Task
from unipic.errors import BadInput, one_line
from unipic.pictures import FORMATS, MAX_BYTES, MAX_PIXELS, MIN_SIDE, checked_path
from unipic.rewards.geneval import check_metadata
from unipic.types import check_text

NAME = "metadata.jsonl"
MAX_LINE = 2**20  # bytes
MAX_REFERENCES = 16
MAX_STRETCH = 1.25  # between the aspects of source and target; both are cut to the same one
_TURNED = (5, 6, 7, 8)  # EXIF's orientations that swap the sides


@dataclass(frozen=True)
class Sample:
    """picture: the image or target. references: sources. Paths are as written; sizes are those of upright pictures."""

    line: int
    id: str
    task: Task
    text: str
    picture: str
    references: tuple[str, ...]
    sizes: tuple[Size, ...]
    """Of the picture, then of the references."""
    geneval: dict[str, Any] | None = None

    @property
    def pictures(self) -> tuple[str, ...]:
        return (self.picture, *self.references)

    @property
    def bucket(self) -> tuple[str, int]:
        """Aspect, and how many references: what the samples of a batch share."""
        return buckets.nearest(*self.sizes[0]), len(self.references)


@dataclass(frozen=True)
class Problem:
    """line: from 1 in metadata.jsonl, 0 where it is about the whole. id: "" where none could be read."""

    line: int
    id: str
    what: str

    def __str__(self) -> str:
        return f"line {self.line}{f' ({self.id})' if self.id not in ('', str(self.line)) else ''}: {self.what}"


def read(folder: Path) -> tuple[list[Sample], list[Problem]]:
    """The sound samples, and all problems of the others. Raises BadInput where there is no metadata.jsonl to read."""
    samples: list[Sample] = []
    problems: list[Problem] = []
    lines_of_ids: dict[str, int] = {}
    sizes: dict[str, Size | str] = {}
    for number, entry in _lines(folder):
        id = str(number)
        wrong = [entry] if isinstance(entry, str) else []
        if isinstance(entry, dict):
            try:
                id = _id(entry, number)
            except BadInput as error:
                wrong.append(_said(error))
            first = lines_of_ids.setdefault(id, number)
            if first != number:
                wrong.append(f"the same id as line {first}")
            sample, more = _sample(folder, number, id, entry, sizes)
            wrong += more
            if sample and not wrong:
                samples.append(sample)
        problems += [Problem(number, id, one_line(what)) for what in wrong]
    if not samples and not problems:
        problems.append(Problem(0, "", "there are no samples"))
    return samples, problems


def inside(folder: Path, name: str) -> Path:
    """The file of a path in the metadata. Raises BadInput if it leads out of the folder, also by a link."""
    mend = "give paths relative to the folder, without .."
    for path in (Path(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts:
            raise BadInput("the path leads out of the folder", name, mend)
    try:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise BadInput("the link leads out of the folder", name, "copy the picture into the folder")
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL in it, links in a circle
        raise BadInput("this is no path of a picture", name, f"check the path ({error})") from None
    return folder / name


def upright_size(path: Path) -> Size:
    """Width and height of a picture as it will be loaded, from its header alone. Raises BadInput."""
    checked_path(path)
    try:
        if not 0 < path.stat().st_size <= MAX_BYTES:
            raise BadInput(f"the picture is empty or larger than {MAX_BYTES // 2**20} MiB", str(path), "replace it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own caps are stricter than Pillow's warnings
            with Image.open(path, formats=FORMATS) as picture:
                # A PNG's own method would decode all of it, to look for EXIF behind the pixels.
                turned = Image.Image.getexif(picture).get(0x0112) in _TURNED
                width, height = picture.size[::-1] if turned else picture.size
    except BadInput:
        raise
    except UnidentifiedImageError:
        raise BadInput("the file is not a PNG, JPEG or WebP picture", str(path), "convert it to one of these") from None
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    except Exception as error:  # Pillow's readers raise many kinds for broken files
        raise BadInput(f"the picture is broken: {error}", str(path), "save it anew from its source") from None
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if min(width, height) < MIN_SIDE:
        what = f"the picture is too small: {width}x{height} pixels"
        raise BadInput(what, str(path), f"each side needs at least {MIN_SIDE} pixels")
    return width, height


def _too_large(path: Path) -> BadInput:
    return BadInput("the picture is too large", str(path), f"scale it down to {MAX_PIXELS // 10**6} million pixels")


def _lines(folder: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Numbered objects, or what is wrong with the line; blank lines are left out."""
    path = folder / NAME
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE:
                    yield number, f"the line is longer than {MAX_LINE // 2**20} MiB"
                    while not raw.endswith(b"\n") and (raw := file.readline(MAX_LINE)):
                        pass
                elif raw.strip():
                    yield number, _parsed(raw, "utf-8-sig" if number == 1 else "utf-8")
    except OSError as error:
        mend = f"name a folder that holds a {NAME} ({error.strerror})"
        raise BadInput("the metadata of the training data cannot be read", str(path), mend) from None


def _parsed(raw: bytes, encoding: str) -> dict[str, Any] | str:
    try:
        entry = json.loads(raw.decode(encoding))
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except (ValueError, RecursionError) as error:
        return f"the line is no JSON: {error}"
    return entry if isinstance(entry, dict) else "the line is no JSON object"


def _id(entry: dict[str, Any], number: int) -> str:
    id = entry.get("id", number)
    if isinstance(id, int) and not isinstance(id, bool):
        return str(id)
    check_text("id", id)
    return str(id)


def _sample(
    folder: Path, number: int, id: str, entry: dict[str, Any], known: dict[str, Size | str]
) -> tuple[Sample | None, list[str]]:
    """The sample of a line, and its problems. known: sizes of pictures met before, or what is wrong with them."""
    task: Task = "edit"
    said, drawn, given = "instruction", "target", ["source"]
    if "image" in entry or "file_name" in entry:
        task, said, drawn, given = "generate", "text", "image" if "image" in entry else "file_name", []
    elif not entry.keys() & {"source", "instruction", "target"}:
        return None, ['neither "image" and "text" nor "source", "instruction" and "target" are given']
    if missing := [key for key in (said, drawn, *given) if key not in entry]:
        return None, [f'"{key}" is missing' for key in missing]
    wrong: list[str] = []
    try:
        check_text(said, entry[said])
    except BadInput as error:
        wrong.append(_said(error))
    spec = entry.get("geneval") if task == "generate" else None
    try:
        if spec is not None:
            check_metadata(spec)
    except BadInput as error:
        wrong.append(_said(error))
    sources = entry["source"] if given else []
    names = [entry[drawn], *(sources if isinstance(sources, list) else [sources])]
    if given and not 1 < len(names) <= 1 + MAX_REFERENCES:
        wrong.append(f'"source" holds {len(names) - 1} pictures; give 1 to {MAX_REFERENCES}')
    if any(not isinstance(name, str) or not name for name in names):
        return None, [*wrong, " and ".join(f'"{key}"' for key in (drawn, *given)) + " must name pictures"]
    sizes, more = _sizes(folder, names, known)
    wrong += more
    if not wrong and given and _stretch(*sizes[:2]) > MAX_STRETCH:
        target, source = ("x".join(map(str, size)) for size in sizes[:2])
        wrong.append(f"source and target differ in aspect: {source} and {target} pixels")
    if wrong:
        return None, wrong
    return Sample(number, id, task, entry[said], names[0], tuple(names[1:]), tuple(sizes), spec), []


def _sizes(folder: Path, names: list[str], known: dict[str, Size | str]) -> tuple[list[Size], list[str]]:
    """Of pictures that have one, and what is wrong with the others."""
    for name in names:
        if name not in known:
            try:
                known[name] = upright_size(inside(folder, name))
            except BadInput as error:
                known[name] = error.what
    found = [(name, known[name]) for name in names]
    wrong = [f"{name}: {size}" for name, size in found if isinstance(size, str)]
    return [size for _, size in found if not isinstance(size, str)], wrong


def _stretch(a: Size, b: Size) -> float:
    return math.exp(abs(math.log(a[0] / a[1] * b[1] / b[0])))


def _said(error: BadInput) -> str:
    return f"{error.what}: {error.where}"
