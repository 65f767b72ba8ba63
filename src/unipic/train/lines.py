"""A file of records, one JSON object a line, only ever appended to. A line counts once its newline is there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unipic.errors import UnipicError
from unipic.files import sync_folder, write_whole
from unipic.train.disk import json_bytes, refusals


def append_line(path: Path, record: Mapping[str, Any], sync: bool = False) -> None:
    """Add one line in one write, after cutting off what a crash left of an unfinished one.

    A killed process loses nothing that was appended; with `sync` nor does a machine that loses its power.
    A number that is NaN or infinite, which JSON has not, is written as null: such a step must not end its own log.
    Raises BadInput for what else JSON does not hold, CannotSave if the disk refuses.
    """
    line = json_bytes({key: _finite(value) for key, value in record.items()}, "record")
    with refusals(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                os.ftruncate(handle, path.read_bytes().rfind(b"\n") + 1)
            while line:  # once, unless the disk is filling up: then the second write says why
                line = line[os.write(handle, line) :]
            if sync:
                os.fsync(handle)
                sync_folder(path.parent)
        finally:
            os.close(handle)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file; an unfinished last line is dropped.

    Raises UnipicError if another line is not a JSON object.
    """
    return [record for _, record in _lines(path)]


def truncate_after(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which a resumed run takes anew; the file changes whole or not at all."""
    kept = b"".join(line for line, record in _lines(path) if not _is_after(record, step))
    if not path.exists() or kept == path.read_bytes():
        return
    with refusals(path):
        write_whole(path, kept)
        sync_folder(path.parent)


def _is_after(record: Mapping[str, Any], step: int) -> bool:
    at = record.get("step")
    return isinstance(at, int | float) and at > step


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.exists() else [], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UnipicError("a line of the log is no JSON object", f"{path}, line {number}", "delete that line")
        lines.append((line + b"\n", record))
    return lines
