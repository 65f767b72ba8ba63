"""From `unipic generate …` to the picture on disk, in fresh processes, and where the time goes.

    python benchmarks/startup.py [MODEL] [TASK]         TASK: generate, edit or describe

Medians of five runs. The command's time is the whole process's; the parts are those of the same calls in a process that
looks at its clock between them, so that their sum is about that time without the interpreter's own.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from PIL import Image

ROUNDS = 5
COMMANDS = {
    "generate": ["generate", "a red circle", "--output", "made.png"],
    "edit": ["edit", "given.png", "Make it blue", "--output", "made.png"],
    "describe": ["describe", "given.png", "What is in the picture?"],
}
CALLS = {
    "generate": "picture = system.generate('a red circle')[0]",
    "edit": "picture = system.edit('given.png', 'Make it blue')[0]",
    "describe": "picture = None; system.describe('given.png', 'What is in the picture?')",
}
CHILD = """
import json, sys, time
clock = {{}}
def lap(name, start=[time.perf_counter()]):
    now = time.perf_counter(); clock[name] = now - start[0]; start[0] = now
import torch; lap("import torch")
import transformers, transformers.modeling_utils; lap("import transformers")
import diffusers, diffusers.models.modeling_utils; lap("import diffusers")
import unipic.cli, unipic.parts, unipic.system; lap("import the rest")
system = unipic.system.UniPic.from_pretrained({model!r}); lap("find the model")
{call}; lap("load it and run, first time")
if picture is not None:
    from unipic.pictures import save_png
    save_png(picture, "made.png")
lap("write")
print(json.dumps(clock))
"""


def main(model: str, task: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (64, 64), "gray").save(Path(folder, "given.png"))
        child = CHILD.format(model=model, call=CALLS[task])
        whole, parts = [], []
        for _ in range(ROUNDS):
            Path(folder, "made.png").unlink(missing_ok=True)
            whole.append(seconds([sys.executable, "-m", "unipic.cli", *COMMANDS[task], "--model", model], folder)[0])
            Path(folder, "made.png").unlink(missing_ok=True)
            parts.append(json.loads(seconds([sys.executable, "-c", child], folder)[1]))
    print(f"{task}, {model}, CPU, {platform.machine()}, {date.today()}")
    print(f"{statistics.median(whole):6.2f} s  the command, {min(whole):.2f} to {max(whole):.2f}")
    for name in parts[0]:
        print(f"{statistics.median(part[name] for part in parts):6.2f} s  {name}")


def seconds(command: list[str], folder: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["tiny", "generate"][len(sys.argv) - 1 :]
    main(arguments[0], arguments[1])
