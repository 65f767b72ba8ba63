"""From `unipic generate …` to the picture on disk, in fresh processes, and where the time goes.

    python benchmarks/startup.py [MODEL] [TASK]         TASK: generate, edit or describe

Medians of five runs of the whole command, and of five more under `python -X importtime`, which says what each module
took: they are summed by package, and what is left of the process's time is not imports.
"""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

from PIL import Image

ROUNDS = 5
PACKAGES = 6  # named one by one, the slowest
COMMANDS = {
    "generate": ["generate", "a red circle", "--output", "made.png"],
    "edit": ["edit", "given.png", "Make it blue", "--output", "made.png"],
    "describe": ["describe", "given.png", "What is in the picture?"],
}
IMPORTED = re.compile(r"import time: +(\d+) \| +\d+ \| +(\w+)")  # microseconds of the module alone, its package


def main(model: str, task: str) -> None:
    command = ["-m", "unipic.cli", *COMMANDS[task], "--model", model]
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (64, 64), "gray").save(Path(folder, "given.png"))
        plain = [run(command, folder)[0] for _ in range(ROUNDS)]
        timed = [run(["-X", "importtime", *command], folder) for _ in range(ROUNDS)]
    print(f"{task}, {model}, CPU, {platform.machine()}, {date.today()}")
    print(f"{statistics.median(plain):6.2f} s  the command, {min(plain):.2f} to {max(plain):.2f}")
    imports = [by_package(said) for _, said in timed]
    rest = [whole - sum(packages.values()) for (whole, _), packages in zip(timed, imports, strict=True)]
    print(f"{statistics.median(whole for whole, _ in timed):6.2f} s  under importtime; of this:")
    print(f"{statistics.median(rest):6.2f} s  not imports")
    medians = Counter({name: statistics.median(packages[name] for packages in imports) for name in imports[0]})
    for name, seconds in medians.most_common(PACKAGES):
        print(f"{seconds:6.2f} s  import {name}")
    print(f"{sum(medians.values()) - sum(s for _, s in medians.most_common(PACKAGES)):6.2f} s  import the others")


def run(arguments: list[str], folder: str) -> tuple[float, str]:
    """Seconds of a process, and what it said on stderr."""
    Path(folder, "made.png").unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stderr


def by_package(said: str) -> Counter[str]:
    """Seconds of a process's imports."""
    found: Counter[str] = Counter()
    for microseconds, package in IMPORTED.findall(said):
        found[package] += int(microseconds) / 1e6
    return found


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["tiny", "generate"][len(sys.argv) - 1 :]
    main(arguments[0], arguments[1])
