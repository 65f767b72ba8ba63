"""docs/results/NAME.md from finished runs of PDTR: every number, curve and picture is from their folders.

    python scripts/results.py pdtr runs/tiny/pdtr [runs/tiny/pdtr-reversed …] docs/results [--machine TEXT]

The first run, whose folder is NAME, is told in full, with pictures; the others, in other orders, with tables and
curves. A run's files say its device and when it ended, but not whose machine it was: --machine does. Pictures go to the
folder `images` beside that of the results.
"""

from __future__ import annotations

import argparse
import random
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curve_sheet import Panel, sheet
from pdtr_runs import (
    BENCHMARK,
    EDIT,
    NAMES,
    STRICT,
    STRICT_BEST,
    Evaluation,
    Run,
    Task,
    cell,
    change,
    change_cell,
    effects,
    opened,
    same_start,
    table,
)
from PIL.Image import Dither, Image

from unipic.errors import BadInput, UnipicError
from unipic.evals import world
from unipic.evals.items import Item
from unipic.evals.run import RESULTS
from unipic.files import write_whole
from unipic.pictures import load, save_png
from unipic.train.lines import read_lines
from unipic.world.layout import BAD, FAINT, GOOD, INK, Card, page

HALVES = (None, "ordinary", "novel")
CURVES = {
    "rewards": ("reward", "held_out"),
    "KL to the model before": ("kl",),
    "diversity within groups": ("diversity",),
    "shares of groups dropped": ("groups_alike", "groups_too_few"),
}
TOLD = ("reward", "held_out", "kl", "velocity_drift", "diversity", "groups_alike", "edges", "colors", "dark")
ITEMS = {"generate": "prompts", "edit": "edits"}
SHOWN = {"generate": 12, "edit": 8}  # items on a sheet
SEED = 0  # of which they are


def main(folders: Sequence[Path], results: Path, machine: str) -> None:
    runs = [opened(folder) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        where = ", ".join(str(run.folder) for run in runs)
        raise BadInput("two runs have the same name", where, "give each once, in folders of different names")
    same_start(runs)
    images = results.parent / "images"
    sections = [heading(runs[0], machine)]
    if len(runs) > 1:
        sections.append("## The orders\n\n" + orders(runs))
    for run in runs:
        save_png(curves(run), images / f"{run.name}-curves.png")
        sections.append(section(run, images.name, first=run is runs[0]))
    for task in runs[0].tasks:
        save_png(small(pictures(runs[0], task)), images / f"{runs[0].name}-{task}.png")
    words = ["python", "scripts/results.py", "pdtr", *map(str, folders), str(results)]
    command = shlex.join(words + ["--machine", machine] * bool(machine))
    sections.append(f"Made from the runs' own files by `{command}`.")
    write_whole(results / f"{runs[0].name}.md", ("\n\n".join(sections) + "\n").encode())


# --- the words --------------------------------------------------------------------------------------------------------


def heading(run: Run, machine: str) -> str:
    """What was done, how it was judged, and what came of it."""
    grpo, judged = run.config["grpo"], run.evaluations[0].config
    done = effects(run)
    asked = [part for part in run.parts if any(e.own for e in done if e.part is part)]
    held = sum(all(e.holds for e in done if e.part is part) for part in asked)
    items = " and ".join(f"{judged['n']} {ITEMS[task]}" for task in run.tasks) or "questions"
    came = [
        f"{NAMES[task]} {'reached' if it else 'missed'}" for task, (*_, it) in zip(run.tasks, goals(run), strict=True)
    ]
    return "\n\n".join(
        [
            "# PDTR in the embedded world",
            f"Progressive dual-task reinforcement (paper §3.2) of `{grpo['model']}`: {order(run)}, each part from the "
            "model that the one before it made ([how](../reinforcement.md)). Before, between and after, the world's "
            f"benchmark asks the same {items} of its test split, from the same noise "
            "([what it asks](../evals.md)). In brackets: 95 % intervals. Novel items hold a combination that "
            "training leaves out; they and the ordinary ones are of the tags and types that have both.",
            f"**In short**: {held} of {len(asked)} parts do what is asked of each; "
            f"of the goals, {' and '.join(came) or 'none was asked'}.",
            f"{ended(run)}{f' {machine}.' if machine else ''}",
        ]
    )


def order(run: Run) -> str:
    words = [" and ".join(NAMES[task] for task in part.tasks) for part in run.parts]
    return f"{METHODS[run.config['grpo']['stage']]} on " + ", then on ".join(words)


def ended(run: Run) -> str:
    """The line of device and date."""
    judged = run.evaluations[0].config
    trained, asked = (" + ".join(f"{each.minutes():.0f}" for each in of) for of in (run.parts, run.evaluations))
    count = f"{trained} minutes of training by the parts' logs"
    if "nan" not in asked:
        count += f", {asked} of evaluation from first picture to last answer"
    return f"Ended {run.finished()}, on {judged['device']} in {judged['dtype']}; {count}."


def section(run: Run, images: str, *, first: bool) -> str:
    by_group = f"### By tag and type\n\n{groups(run)}"
    sheets = [f"![{NAMES[task]}](../{images}/{run.name}-{task}.png)" for task in run.tasks]
    drawn = "The same items by every model, drawn at random; failures are left in."
    shown = [by_group, f"### Pictures\n\n{drawn}", *sheets] if first else []
    told = [
        f"## `{run.name}`: {order(run)}",
        *([] if first else [ended(run)]),
        scores(run),
        "### What is asked of each part",
        "Its own task rises beyond the interval that it had before; another falls by no more than that interval. The "
        "same items from the same noise were asked each time: the last column is the mean change of an item, whose "
        "interval is mostly narrower.",
        floors(run),
        "### Goals",
        table(
            ["goal", "before", "after all parts", "", "change of the same items"],
            [[*row, "reached" if there else "missed", moved] for *row, moved, there in goals(run)],
        ),
        "### While it learnt",
        learning(run),
        f"![curves of {run.name}](../{images}/{run.name}-curves.png)",
        *shown,
    ]
    return "\n\n".join(told)


# --- tables -----------------------------------------------------------------------------------------------------------


def columns(evaluation: Evaluation) -> list[str]:
    return [cell(evaluation.of(part, half=half)) for part in BENCHMARK.values() for half in HALVES]


METHODS = {"grpo": "Flow-GRPO", "nft": "DiffusionNFT"}
HEAD = ["text-to-image, strict", "ordinary", "novel", "edits, of 10", "ordinary", "novel"]


def scores(run: Run) -> str:
    return table(["", *HEAD], [[each.name, *columns(each)] for each in run.evaluations])


def orders(runs: Sequence[Run]) -> str:
    rows = [["before", *columns(runs[0].evaluations[0])]]
    rows += [[f"`{run.name}`: {order(run)}", *columns(run.evaluations[-1])] for run in runs]
    return table(["after", *HEAD], rows)


def floors(run: Run) -> str:
    rows = []
    for each in effects(run):
        asked = f"{'above' if each.own else 'at least'} {each.asked:.3g}"
        own = "its own" if each.own else "the other"
        task = f"{NAMES[each.task]} ({own})"
        holds = "holds" if each.holds else "**fails**"
        ends = [asked, cell(each.after), holds, change_cell(each.change)]
        rows.append([each.part.folder.name, task, cell(each.before), *ends])
    return table(["part", "task", "before", "asked", "after", "", "change of the same items"], rows)


def goals(run: Run) -> list[tuple[str, str, str, str, bool]]:
    """Each with the score before and after all parts, what that changed, and whether it is reached."""
    found = []
    asked: tuple[tuple[Task, str, float, float], ...] = (
        ("generate", f"text-to-image, strict: {STRICT:+.2f}, or {STRICT_BEST} at least", STRICT_BEST, STRICT),
        ("edit", f"edits: {EDIT:+.1f} of 10", float("inf"), EDIT),
    )
    for task, said, best, rise in (one for one in asked if one[0] in run.tasks):
        before, after = (run.evaluations[i].of(BENCHMARK[task]) for i in (0, -1))
        there = before and after and (after.value >= best or round(after.value - before.value, 4) >= rise)
        each = [run.evaluations[i].of_each(BENCHMARK[task]) for i in (0, -1)]
        moved = change_cell(change(*each)) if before and after else "–"
        found.append((said, cell(before), cell(after), moved, bool(there)))
    return found


def learning(run: Run) -> str:
    """What was logged at the beginning and at the end of each part."""
    rows = []
    for part in run.parts:
        lines = [line for line in part.records if "reward" in line]
        alarms = sum("alarm" in line for line in lines)
        rows.append([part.folder.name, str(part.config["steps"]), *(ends(lines, name) for name in TOLD), str(alarms)])
    every = "A mean over the first quarter of the steps that were logged → one over the last quarter."
    return every + "\n\n" + table(["part", "steps", *(f"`{name}`" for name in TOLD), "alarms"], rows)


def ends(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [line[name] for line in lines if line.get(name) is not None]
    count = -(-len(values) // 4)
    return " → ".join(f"{statistics.fmean(end):.3g}" for end in (values[:count], values[-count:])) if values else "–"


def groups(run: Run) -> str:
    """Of every tag of prompts, and every type of edits."""
    rows = []
    for part in BENCHMARK.values():
        for group in world.GROUPS[part]:
            rows.append([part, group, *(cell(each.of(part, group)) for each in run.evaluations)])
    for part, name in (("dense", "overall"), ("understanding", "accuracy")):
        if run.evaluations[0].scores[part] is not None:
            rows.append([part, name, *(cell(each.of(part, name)) for each in run.evaluations)])
    return table(["", "", *(each.name for each in run.evaluations)], rows)


# --- pictures ---------------------------------------------------------------------------------------------------------


def curves(run: Run) -> Image:
    rows = []
    for part in run.parts:
        logged = part.curves()
        panels = [Panel(title, {n: logged[n] for n in names if n in logged}) for title, names in CURVES.items()]
        rows.append((f"{part.folder.name}, by step", panels))
    return sheet(rows)


def pictures(run: Run, task: Task) -> Image:
    """Items drawn at random, with what the model made of each before, between and after."""
    judged = run.evaluations[0].config
    own = world.items(judged["seed"], judged["n"], (BENCHMARK[task],))
    drawn = random.Random(SEED).sample(own, min(SHOWN[task], len(own)))
    shown = run.evaluations if len(run.evaluations) <= 3 else (run.evaluations[0], run.evaluations[-1])
    verdicts = [{line["id"]: line for line in read_lines(each.folder / "verdicts.jsonl")} for each in shown]
    for item in drawn:
        _check_same(item, run)
    names, asked = [each.name for each in shown], ITEMS[task]
    cards = [card(item, names, [e.folder for e in shown], [v[item.id] for v in verdicts]) for item in drawn]
    first = "the source, then " if task == "edit" else ""
    return page([(f"{len(drawn)} test {asked}, drawn at random of {len(own)}: {first}{', '.join(names)}", cards)])


def card(item: Item, names: Sequence[str], folders: Sequence[Path], verdicts: Sequence[Mapping[str, Any]]) -> Card:
    made = [load(folder / "pictures" / f"{item.id}.png") for folder in folders]
    told = [
        piece
        for name, verdict in zip(names, verdicts, strict=True)
        for piece in ((name, FAINT), (_said(verdict), GOOD if verdict["right"] else BAD))
    ]
    new = ((f"(new {item.novelty})", FAINT),) if item.novelty != "ordinary" else ()
    given, width = ((item.picture,), ROW) if item.picture else ((), 0)
    return Card((*given, *made), (((item.text, INK), *new), tuple(told)), width)


ROW = 1240  # pixels, with which a card has a row of its own


def _said(verdict: Mapping[str, Any]) -> str:
    marks = " ".join(f"{name.upper()} {value:.1f}" for name, value in verdict["marks"].items())
    return f"{'right' if verdict['right'] else 'wrong'}{f' ({marks})' if marks else ''}  "


def _check_same(item: Item, run: Run) -> None:
    """The pictures belong to what was asked then; a source is drawn anew by the world of today."""
    for each in run.evaluations:
        asked = next((line["text"] for line in read_lines(each.folder / RESULTS) if line["id"] == item.id), None)
        if asked != item.text:
            where = f"{each.folder / RESULTS}: {item.id}: {asked!r}, now {item.text!r}"
            raise BadInput("the world asks otherwise now", where, "take the version that made the run")


def small(picture: Image) -> Image:
    return picture.quantize(256, dither=Dither.NONE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pages of results, from the folders of finished runs.")
    parser.add_argument("what", choices=("pdtr",))
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("results", type=Path, help="the folder of the page, such as docs/results")
    parser.add_argument("--machine", default="", help="what it ran on, in words")
    given = parser.parse_args()
    try:
        main(given.runs, given.results, given.machine)
    except UnipicError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(given.results / f"{given.runs[0].resolve().name}.md")
