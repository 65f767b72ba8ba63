"""Writing files that a crash, a full disk or a power cut does not leave in halves."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Make or replace a file, and the folders above it; it appears whole or not at all. Raises OSError.

    It is written aside, forced to the disk, and only then gets its name; `sync_folder` makes the name last, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Each writer has its own; the name is cut, since a file system takes 255 bytes, and a letter may need four.
    aside = path.parent / f".{path.name[:40]}.{secrets.token_hex(8)}"
    try:
        write_file(aside, [content])
        os.replace(aside, path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """A new file, on the disk when this returns; gives its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """A file's name reaches the disk with its folder, not with the file."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
