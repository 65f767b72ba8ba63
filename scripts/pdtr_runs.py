"""What a finished run of PDTR says of itself, read from its folder alone, for results.py and table4.py."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from unipic.config import read_recipe
from unipic.errors import BadInput
from unipic.evals.run import CONFIG, RESULTS
from unipic.evals.score import Estimate, Z
from unipic.report import from_log
from unipic.report.curves import Points
from unipic.train.lines import read_lines

Task = Literal["generate", "edit"]
# the part of the world's benchmark that is a task's
BENCHMARK: Mapping[Task, str] = {"generate": "geneval", "edit": "edit"}
POINTS = {"geneval": 1, "dense": 1, "edit": 10}  # of the best item
NAMES = {"generate": "text-to-image", "edit": "edits"}
STRICT, STRICT_BEST, EDIT = 0.10, 0.92, 0.5  # the goals: a rise of text-to-image or a height of it, a rise of editing


@dataclass(frozen=True)
class Evaluation:
    """Of one model on the world's benchmark. name: when. scores, config: what its files say."""

    name: str
    folder: Path
    scores: Mapping[str, Any]
    config: Mapping[str, Any]

    def of(self, part: str, name: str = "overall", half: str | None = None) -> Estimate | None:
        """A score; None where nothing of the kind was asked. half: "ordinary" or "novel" combinations alone."""
        scores = self.scores if half is None else self.scores[half]
        found = [scores[part], scores["intervals"][part], scores["counts"][part]]
        if part != "dense":
            found = [each and each[name] for each in found]
        value, interval, count = found
        return None if value is None else Estimate(value, *interval, count)

    def of_each(self, part: str) -> dict[str, dict[str, float]]:
        """Scores of a part's items by their ids, in points like `of`; by group, which all weigh the same."""
        found: dict[str, dict[str, float]] = {}
        for line in read_lines(self.folder / "verdicts.jsonl"):
            if line["id"].startswith(f"{part}-"):
                found.setdefault(line["group"], {})[line["id"]] = POINTS[part] * line["score"]
        return found

    def minutes(self) -> float:
        """From its first picture to its last answer, by the files' times, pauses included; NaN without pictures."""
        first = min((path.stat().st_mtime for path in (self.folder / "pictures").glob("*.png")), default=math.nan)
        return ((self.folder / RESULTS).stat().st_mtime - first) / 60


@dataclass(frozen=True)
class Part:
    """One of a run's parts. number: from 1, as the evaluation after it has it."""

    number: int
    folder: Path
    tasks: tuple[Task, ...]
    config: Mapping[str, Any]

    @property
    def records(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "log.jsonl")

    def curves(self) -> dict[str, Points]:
        return dict(from_log(self.records))

    def minutes(self) -> float:
        """What its log adds up to: steps between two lines, at the speed that the second one gives."""
        seconds, before = 0.0, 0
        for line in self.records:
            if line.get("samples_per_s"):
                seconds += (line["step"] - before) * self.config["batch"] / line["samples_per_s"]
                before = line["step"]
        return seconds / 60


@dataclass(frozen=True)
class Run:
    """evaluations: before all parts, and after each."""

    folder: Path
    config: Mapping[str, Any]
    parts: tuple[Part, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Those whose part of the benchmark was asked."""
        return tuple(task for task, part in BENCHMARK.items() if self.evaluations[0].of(part) is not None)

    def finished(self) -> date:
        """When its last picture was judged; reading it, or running the same command again, does not change that."""
        last = max((each.folder / RESULTS).stat().st_mtime for each in self.evaluations)
        return datetime.fromtimestamp(last, UTC).date()


@dataclass(frozen=True)
class Effect:
    """What one part did to one task. own: whether the part trained it.

    change: of the same items, drawn from the same noise. What was and stays easy or hard drops out, so that its
    interval is mostly narrower than those of the two scores.
    """

    part: Part
    task: Task
    own: bool
    before: Estimate
    after: Estimate
    change: Estimate

    @property
    def asked(self) -> float:
        """The least, or where it is its own task the score to be passed: an end of the interval before."""
        return self.before.high if self.own else self.before.low

    @property
    def holds(self) -> bool:
        """Its own task rises beyond its 95 % interval, the other falls by no more than its own."""
        return self.after.value > self.asked if self.own else self.after.value >= self.asked


def effects(run: Run) -> list[Effect]:
    """Of every part on both tasks."""
    found = []
    for part, before, after in zip(run.parts, run.evaluations, run.evaluations[1:], strict=False):
        for task in BENCHMARK:
            ends = [each.of(BENCHMARK[task]) for each in (before, after)]
            if ends[0] is not None and ends[1] is not None:
                changed = change(*(each.of_each(BENCHMARK[task]) for each in (before, after)))
                found.append(Effect(part, task, task in part.tasks, *ends, changed))
    return found


def change(before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]) -> Estimate:
    """Mean over groups of their items' mean change, with its normal 95 % interval: z times the standard error.

    Ends are NaN where a group has one item alone: how far its items differ is not known.
    """
    rises = [[after[group][id] - score for id, score in items.items()] for group, items in before.items()]
    value = statistics.fmean(map(statistics.fmean, rises))
    variances = (statistics.variance(own) / len(own) if len(own) > 1 else math.nan for own in rises)
    margin = Z * math.sqrt(sum(variances)) / len(rises)
    return Estimate(value, value - margin, value + margin, sum(map(len, rises)))


def opened(folder: Path) -> Run:
    """Raises BadInput for what is no finished run of PDTR that was evaluated."""
    if not folder.is_dir():
        raise BadInput("there is no such folder", str(folder), "give a run's folder, such as runs/tiny/pdtr")
    _present(folder, CONFIG)
    config, _ = read_recipe(str(folder / CONFIG))
    if config.get("stage") != "pdtr":
        where = f"{folder / CONFIG}: stage: {config.get('stage')}"
        raise BadInput("this is no run of PDTR", where, "give the folder of a run whose recipe says `stage: pdtr`")
    if config["evaluate"] is None:
        where = f"{folder / CONFIG}: evaluate: null"
        raise BadInput("this run was not evaluated", where, "there is nothing to make tables of")
    parts = []
    for number, part in enumerate(config["parts"] * config["rounds"], 1):
        name = f"{number}-{'-'.join(dict.fromkeys(part['tasks']))}"
        for needed in (CONFIG, "log.jsonl", "model"):
            _present(folder, f"{name}/{needed}")
        own, _ = read_recipe(str(folder / name / CONFIG))
        parts.append(Part(number, folder / name, tuple(dict.fromkeys(part["tasks"])), own))
    _present(folder, "model")
    names = ["before", *(f"after {part.folder.name}" for part in parts)]
    evaluations = [_evaluation(name, folder, f"eval-{number}") for number, name in enumerate(names)]
    return Run(folder, config, tuple(parts), tuple(evaluations))


def _evaluation(name: str, run: Path, place: str) -> Evaluation:
    for needed in ("scores.json", "verdicts.jsonl", CONFIG, RESULTS):
        _present(run, f"{place}/{needed}")
    try:
        scores = json.loads((run / place / "scores.json").read_text())
    except ValueError:
        mend = "run the command that made the run again: it writes this file anew"
        raise BadInput("the scores are no JSON", str(run / place / "scores.json"), mend) from None
    config, _ = read_recipe(str(run / place / CONFIG))
    return Evaluation(name, run / place, scores, config)


def _present(run: Path, name: str) -> None:
    if not (run / name).exists():
        mend = "`unipic train` with its recipe and --run-dir goes on to the end; then come again"
        raise BadInput("this is no finished run of PDTR", f"{run}: there is no {name}", mend)


def same_start(runs: list[Run]) -> None:
    """Raises BadInput for runs that did not begin with the same model, judged in the same way."""
    first = runs[0].evaluations[0]
    for run in runs[1:]:
        own = run.evaluations[0]
        differ = [key for key in first.config if own.config.get(key) != first.config[key] and key != "model"]
        if differ:
            where = f"{first.folder} and {own.folder}: {', '.join(differ)}"
            raise BadInput("these runs cannot be compared", where, "give runs from one model, evaluated alike")


def cell(score: Estimate | None) -> str:
    """A score with its interval."""
    return f"{score.value:.3g} [{score.low:.3g}, {score.high:.3g}]" if score else "–"


def change_cell(change: Estimate) -> str:
    """A change with its interval, where that is known."""
    ends = "" if math.isnan(change.low) else f" [{change.low:+.3g}, {change.high:+.3g}]"
    return f"{change.value:+.3g}{ends}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """As Markdown, without a line break at its end."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
