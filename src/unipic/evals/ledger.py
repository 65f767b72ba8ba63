"""Which items of a run are done: a JSON line each, only ever appended to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from unipic.errors import BadInput, UnipicError


class Ledger:
    """The lines of a file, by the `id` of their items, for one process at a time.

    A half line, which a crash may leave at the end, is cut off. The folder is made if need be. Raises BadInput if
    another process has the file open, UnipicError for a broken line or if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self.records = self._read()
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)  # and the lock with it

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append lines, in one write; a process that is killed afterwards loses none."""
        content = "".join(json.dumps(record) + "\n" for record in records).encode()
        with _refusals(self.path):
            while content:
                content = content[os.write(self._handle, content) :]
        self.records.update((record["id"], dict(record)) for record in records)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "wait until it ends, or give another --run-dir"
            raise BadInput("another evaluation is at work in this folder", str(self.path.parent), mend) from None
        with _refusals(self.path):
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.ftruncate(self._handle, whole)
        lines = content[:whole].split(b"\n")[:-1]
        return dict(self._record(line, number) for number, line in enumerate(lines, 1))

    def _record(self, line: bytes, number: int) -> tuple[str, dict[str, Any]]:
        try:
            record = json.loads(line)
            if isinstance(record["id"], str) and isinstance(record["text"], str):
                return record["id"], record
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise UnipicError("a line of the results is broken", f"{self.path}, line {number}", "delete that line")


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        mend = "mend that, and run the same command again"
        raise UnipicError(f"the disk refuses: {error.strerror}", str(path), mend) from None
