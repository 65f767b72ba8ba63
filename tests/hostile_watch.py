"""Uses every folder of `hostile.py` under an audit hook, and prints what happened that must not: {case: events}.

Under "control" stand the forbidden things themselves, done on purpose: the hook must have seen them. What compiled
libraries open raises no event, so the age of last access tells whether a file outside was read.

    python -m tests.hostile_watch
"""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from contextlib import chdir, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import unipic
from tests.hostile import (
    ACCEPTED,
    ASSETS,
    HARMLESS,
    KONTEXT,
    REFUSED,
    TINY,
    Case,
    outside,
    pickle_of,
    stage,
    use,
)

FORBIDDEN = ("socket.", "pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "shutil.unpack")
LIBRARIES = (*sysconfig.get_paths().values(), sys.base_prefix, str(Path(unipic.__file__).parent))
DEVICES = ("/proc/", "/sys/", "/dev/")

seen: list[str] = []
place = ""  # of the case under watch; empty: nothing is watched


def hook(event: str, args: tuple[Any, ...]) -> None:
    """With the libraries loaded, no Python may be compiled or run but theirs, and no file opened but the case's."""
    if not place:
        return
    if event.startswith(FORBIDDEN):
        seen.append(event)
    elif event == "open" and isinstance(args[0], str | bytes):
        path = os.path.realpath(os.fsdecode(args[0]))
        inside = path.startswith(place) and not path.startswith((f"{place}/outside", f"{place}/canary"))
        if not inside and not path.startswith((*LIBRARIES, *DEVICES)):
            seen.append(f"open {path}")
    elif event in ("exec", "compile", "import"):
        origin = args[0].co_filename if event == "exec" else args[1]
        if origin and not str(origin).startswith((*LIBRARIES, "<frozen ")):
            seen.append(f"{event} {origin}")


def watch(case: Case, act: Callable[[Path], None]) -> list[str]:
    """What is seen of an act on a fresh copy of a case's folder."""
    global place
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        model = stage(case, Path())
        secrets = [path for path in Path("outside").resolve().rglob("*") if path.is_file()]
        for path in secrets:
            os.utime(path, (0, 0))
        os.environ["XDG_CACHE_HOME"] = str(Path("cache").resolve())
        seen.clear()
        place = os.path.realpath(folder)
        with suppress(BaseException):  # also TooLong, and panics in a library's Rust
            act(model)
        place = ""
        read = [f"read {path}" for path in secrets if path.stat().st_atime > 0]
        return [*seen, *read, *(["canary"] if Path("canary").exists() else [])]


def do_everything_forbidden(model: Path) -> None:
    (outside(model) / "secret").read_bytes()
    import_module("pickle").loads(pickle_of(model))
    runpy.run_path(str(model / "modeling_evil.py"))
    subprocess.run([sys.executable, "-c", ""], check=True)
    os.system("true")
    with suppress(OSError):
        socket.create_connection(("localhost", 9), timeout=1)


def plant_a_secret(model: Path) -> None:
    (outside(model) / "secret").write_text("secret")


def main() -> None:
    sys.addaudithook(hook)
    for model, job in ((TINY, "edit"), (TINY, "describe"), (KONTEXT, "edit")):
        use(ASSETS / model, job)  # loads what the libraries load late
    report = {case.name: watch(case, partial(use, job=case.job)) for case in (*ACCEPTED, *HARMLESS, *REFUSED)}
    report["control"] = watch(Case("control", TINY, "", plant_a_secret), do_everything_forbidden)
    print(json.dumps({name: events for name, events in report.items() if events}))  # noqa: T201


if __name__ == "__main__":
    main()
