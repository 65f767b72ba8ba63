"""What is said when the disk refuses, JSON that reads back as it was, and the lock of a run's folder."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unipic.errors import BadInput, UnipicError

LOCK = ".lock"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_CODE = re.compile(r"(?:os error |\[Errno )(\d+)")


class CannotSave(UnipicError):
    """The disk refused. What was saved before is intact, and the same command goes on from there."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again later


@contextmanager
def refusals(where: Path, last: Callable[[], str] | None = None) -> Iterator[None]:
    """Any OSError within is raised as CannotSave. last: says from which checkpoint the run can go on."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"the disk refuses: {error.strerror or error}"
        mend = f"{'free space' if full else 'mend that'} and run the same command again"
        if last:
            with suppress(OSError):
                mend += f"; {last()}"
        raise CannotSave(what, str(where), mend) from error


@contextmanager
def refusals_anywhere(where: Path, last: Callable[[], str]) -> Iterator[None]:
    """`refusals` for a whole run: a disk that is full or broken, also where others have put it into their own words."""
    try:
        yield
    except Exception as error:
        cause = _of_the_disk(error)
        if cause is None:
            raise
        place = error.where if isinstance(error, UnipicError) else cause.filename or where
        with refusals(Path(place), last):
            raise cause from error


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """What the system said, if an error comes from that: it is behind it or, of some libraries, within its text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        told = _CODE.search(str(error)) if isinstance(error, SafetensorError | shutil.Error) else None
        if told and int(told[1]) in _DISK:
            return OSError(int(told[1]), os.strerror(int(told[1])))
        error = error.__cause__ or error.__context__
    return None


def json_bytes(content: Mapping[str, Any], at: str, indent: int | None = None) -> bytes:
    """Strict JSON that reads back as it was, but for tuples, which become lists; raises BadInput naming the key."""
    content = dict(content)
    _check_json(content, at)
    return (json.dumps(content, indent=indent) + "\n").encode()


def _check_json(value: Any, at: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise BadInput("JSON has only texts as keys", f"{key!r} in {at}", "make it a text")
            _check_json(inner, f"{at}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_json(inner, f"{at}[{i}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadInput(f"JSON has no {value}", at, "store None, or find out where the number comes from")
    elif not isinstance(value, str | int | float | None):
        raise BadInput(f"JSON has no {type(value).__name__}", at, "store numbers, texts, lists and dicts")


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Be the only run in a folder, which is made if need be; raises BadInput if another run is at work there.

    The kernel drops the lock when the process ends, however it ends; the file stays and means nothing. Gives the
    handle: forked processes share it, and hold the lock with it until they close it.
    """
    handle = _take_lock(folder)
    try:
        yield handle
    finally:
        os.close(handle)


def _take_lock(folder: Path) -> int:
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
        except BlockingIOError:
            holder = os.pread(handle, 20, 0).decode(errors="replace")
            os.close(handle)
            mend = f"wait until process {holder} ends, or give another folder"
            raise BadInput("another run is at work in this folder", str(folder), mend) from None
        except OSError:
            os.close(handle)
            raise
    return handle
