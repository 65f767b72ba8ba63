"""`unipic data check`: everything that is wrong with a folder of training data, not only the first of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from unipic import pictures
from unipic.data import buckets, metadata
from unipic.data.metadata import Problem, Sample
from unipic.errors import BadInput, one_line

LEAST_KEPT = 0.5  # of a picture's area, when it is cut to its bucket


@dataclass(frozen=True)
class Report:
    """counts: sound samples by task and aspect. problems: training refuses them. warnings: it does not."""

    counts: dict[str, dict[str, int]]
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]


def check_folder(folder: str | Path, resolution: int | None = None) -> Report:
    """Read all of a folder's lines, and decode every picture once.

    resolution: what it will be trained at; pictures of less than half of it are then warned of. Raises BadInput where
    there is no metadata.jsonl to read.
    """
    folder = Path(folder)
    samples, problems = metadata.read(folder)
    faults: dict[str, str | None] = {}  # by path; None: it decodes
    counts: dict[str, Counter[str]] = {}
    warnings: list[Problem] = []
    for sample in samples:
        broken = False
        for name in sample.pictures:
            if name not in faults:
                faults[name] = _fault(folder, name)
            if fault := faults[name]:
                problems.append(Problem(sample.line, sample.id, one_line(f"{name}: {fault}")))
                broken = True
        if not broken:
            counts.setdefault(sample.task, Counter())[sample.bucket[0]] += 1
            warnings += [Problem(sample.line, sample.id, one_line(what)) for what in _doubts(sample, resolution)]
    problems.sort(key=lambda problem: problem.line)
    ordered = {task: {a: counts[task][a] for a in buckets.ASPECTS if counts[task][a]} for task in sorted(counts)}
    return Report(ordered, tuple(problems), tuple(warnings))


def _fault(folder: Path, name: str) -> str | None:
    """What keeps a picture from being decoded."""
    try:
        pictures.load(metadata.inside(folder, name))
    except BadInput as error:
        why = error.where.partition(": ")[2]  # Pillow's reason, where there is one
        return f"{error.what}{f': {why}' if why else ''}"
    return None


def _doubts(sample: Sample, resolution: int | None) -> list[str]:
    """What training would do to a sample's pictures that nobody may want."""
    aspect, _ = sample.bucket
    target = buckets.size_for(aspect, resolution or 16 * buckets.MULTIPLE)
    doubts = []
    for name, size in zip(sample.pictures, sample.sizes, strict=True):
        share = buckets.kept(size, target)
        if share < LEAST_KEPT:
            doubts.append(f"{name}: {share:.0%} of it is left when it is cut to {aspect}")
        if resolution and (size[0] < target[0] / 2 or size[1] < target[1] / 2):
            doubts.append(f"{name}: {size[0]}x{size[1]} pixels will be scaled up to {target[0]}x{target[1]}")
    return doubts
