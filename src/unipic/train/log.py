"""What a run leaves to be read: log.jsonl, grids of fixed prompts, report.html, a progress bar; trackers if asked."""

from __future__ import annotations

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from unipic.errors import BadInput, UnipicError
from unipic.files import write_whole
from unipic.pictures import SETTINGS_KEY, load, save_png
from unipic.report import Page, Picture
from unipic.train.lines import append_line, read_lines, truncate_after
from unipic.train.watch import Watch

SMOOTH = 0.98  # of the bar's loss, that a step keeps
SETTLED = 50  # losses, before there is a usual one
SMOOTHED = ("loss", "grad_norm")  # curves that are drawn smoothed over themselves
GRIDS = f"step_{'[0-9]' * 8}.png"
ALARM = (
    "Alarm: the reward that is trained on rises while the one that is held out falls. The model has found a way to "
    "please the reward that was not meant; look at the pictures, and stop here or before."
)
GAP = 4  # pixels between the pictures of a grid


@dataclass(frozen=True)
class Shown:
    """Pictures of a fixed prompt (the references of an edit first), and whether they are right, where that is known."""

    caption: str
    pictures: tuple[Image.Image, ...]
    right: bool | None = None


class RunLog:
    """Written by the first process alone; the others know the usual loss. start: steps that were done before.

    tell: adds a stage's own sections to the report.
    """

    def __init__(
        self, run: Path, config: Any, start: int, first: bool, tell: Callable[[Page], None] | None = None
    ) -> None:
        self.run, self.config, self.first, self.tell = run, config, first, tell
        self.path = run / "log.jsonl"
        if first:
            last = start or -1  # what was said before the first step is said again
            truncate_after(self.path, last)
            for path in (run / "samples").glob(GRIDS):
                if int(path.stem.removeprefix("step_")) > last:  # of steps that are done again, or of another recipe
                    path.unlink()
            if not start:
                (run / "wandb_id.txt").unlink(missing_ok=True)
        self.watches: dict[str, Watch] = {}  # by the step's task: rewards of one are no measure of another's
        self.alarmed: set[str] = set()  # tasks, since the run was taken up
        for line in read_lines(self.path) if first else ():
            self._alarming(line)
        self.trackers = [_TRACKERS[name](run, config, start) for name in config.track] if first else []
        self.bar = tqdm(total=config.steps, initial=start, disable=None if first else True, unit="step", leave=False)
        self.loss: float | None = None
        self.seen = 0
        self.step, self.since = start, time.perf_counter()

    @property
    def usual(self) -> float:
        """The loss of the last steps, once there are enough of them."""
        return math.inf if self.loss is None or self.seen < SETTLED else self.loss

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()
        with suppress(*([UnipicError, OSError] if kind else [])):  # why the run ended is more than a page that failed
            self.report()

    def add(self, record: dict[str, Any]) -> None:
        """What one step says: every so many steps to the file, and always what was skipped or a spike.

        And always what alarms depend on: after a stop it is known from the file alone.
        """
        loss, step = record["loss"], record["step"]
        if self._alarming(record):
            record = record | {"alarm": True}
        if math.isfinite(loss):
            self.loss = loss if self.loss is None else SMOOTH * self.loss + (1 - SMOOTH) * loss
            self.seen += 1
        if not self.first:
            return
        if step % self.config.log_every == 0 or step == self.config.steps or {"samples", "held_out"} & record.keys():
            now = time.perf_counter()
            speed = (step - self.step) * self.config.batch / (now - self.since)
            self.step, self.since = step, now
            line = {**record, "samples_per_s": round(speed, 2)}
            append_line(self.path, line)
            if "alarm" in record and (task := record.get("task", "")) not in self.alarmed:
                self.alarmed.add(task)
                self.bar.write(f"{self.run}, step {step}, {task}: {ALARM}", file=sys.stderr)
                self.report()
            for tracker in self.trackers:
                tracker.add(step, {k: v for k, v in line.items() if isinstance(v, float)})
            self.bar.set_postfix(loss=f"{self.loss or loss:.4f}", samples=f"{speed:.1f}/s", refresh=False)
        self.bar.update()

    def _alarming(self, record: dict[str, Any]) -> bool:
        """Of reinforcement with a reward that is only watched (see `Watch`)."""
        if "held_out" not in record or "reward" not in record:
            return False
        return self.watches.setdefault(record.get("task", ""), Watch()).add(record["reward"], record["held_out"])

    def show(self, shown: Sequence[Shown], step: int, figures: Mapping[str, float] | None = None) -> None:
        """A grid of pictures as samples/step_*.png, with its captions beside it. figures: what else they say."""
        if not self.first or not shown:
            return
        if figures:
            append_line(self.path, {"step": step, **figures})
        grid = contact(shown)
        captions = [{"caption": s.caption, "right": s.right} for s in shown]
        grid.info[SETTINGS_KEY] = json.dumps({"task": "samples", "step": step, "samples": captions})
        save_png(grid, self.run / "samples" / f"step_{step:08d}.png")
        known = [s.right for s in shown if s.right is not None]
        if known:
            append_line(self.path, {"step": step, "right": sum(known) / len(known)})
        for tracker in self.trackers:
            tracker.picture(step, grid)
            tracker.add(step, dict(figures or {}))
            if known:
                tracker.add(step, {"right": sum(known) / len(known)})
        self.report()

    def report(self) -> None:
        """report.html, from what the run has written."""
        if not self.first:
            return
        lines = [line for line in read_lines(self.path) if isinstance(line.get("step"), int)]
        page = Page(f"{self.config.stage}: {self.run.name}")
        if alarms := [line for line in lines if line.get("alarm")]:
            page.text(ALARM)
            figures = ("reward", "held_out")
            seen = [(line["step"], line.get("task"), *(f"{line[name]:.4g}" for name in figures)) for line in alarms]
            page.table("Alarms", ("step", "task", "reward", "held out"), seen)
        names = dict.fromkeys(key for line in lines for key, value in line.items() if isinstance(value, float))
        for name in names:
            points = [(line["step"], line[name]) for line in lines if name in line]
            page.curves(name, {name: points}, smooth=name in SMOOTHED)
        titles = {"skipped": "Steps without a finite gradient", "spike": "Steps of a loss far above the usual"}
        for kind, title in titles.items():
            if rows := [(line["step"], ", ".join(line["samples"][:8])) for line in lines if line.get(kind)]:
                page.table(title, ("step", "samples"), rows)
        if grids := ends_of_grids(self.run):
            page.pictures("Fixed samples", [(path.stem, [Picture(load(path))]) for path in grids])
        if self.tell is not None:
            self.tell(page)
        page.settings(self.config.model_dump(mode="json"))
        page.write(self.run / "report.html")


def ends_of_grids(run: Path) -> list[Path]:
    """The first grid of fixed samples and the last, as far as there are any."""
    grids = sorted((run / "samples").glob(GRIDS))
    return list(dict.fromkeys((grids[0], grids[-1]))) if grids else []


def contact(shown: Sequence[Shown], columns: int = 8) -> Image.Image:
    """Pictures in rows; those known to be right or wrong framed in green or red."""
    cells = []
    for one in shown:
        width = sum(p.width + GAP for p in one.pictures) + GAP
        cell = Image.new("RGB", (width, max(p.height for p in one.pictures) + 2 * GAP), _FRAMES[one.right])
        left = GAP
        for picture in one.pictures:
            cell.paste(picture, (left, GAP))
            left += picture.width + GAP
        cells.append(cell)
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    columns = min(columns, len(cells))
    page = Image.new("RGB", ((width + GAP) * columns, (height + GAP) * -(-len(cells) // columns)), "white")
    for i, cell in enumerate(cells):
        page.paste(cell, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return page


_FRAMES = {None: "#b0b0b0", True: "#2e9e4f", False: "#d0382b"}


class _TensorBoard:
    def __init__(self, run: Path, config: Any, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self.writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        import numpy as np

        self.writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, run: Path, config: Any, start: int) -> None:
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self.wandb = wandb
        named = run / "wandb_id.txt"  # a run that goes on is the same run there
        if not named.exists():
            write_whole(named, secrets.token_hex(8).encode())
        settings: dict[str, Any] = {"project": "unipic", "name": run.name, "id": named.read_text(), "resume": "allow"}
        self.run = wandb.init(dir=str(run), config=config.model_dump(), **settings)

    def add(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, picture: Image.Image) -> None:
        self.run.log({"samples": self.wandb.Image(picture)}, step=step)

    def close(self) -> None:
        self.run.finish()


def _missing(name: str) -> BadInput:
    return BadInput(f"{name} is not installed", f"track: {name}", f"pip install {name}, or take it out of track")


_TRACKERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _WandB}
