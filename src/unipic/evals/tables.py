"""Scores of the world's benchmark: by part and group, as JSON, as a table, as a page with the pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL.Image import Image

from unipic.evals.items import Item
from unipic.evals.score import Estimate, estimate
from unipic.evals.world import GROUPS
from unipic.report import Page, Picture
from unipic.rewards.world import Verdict

Judged = Sequence[tuple[Item, Verdict]]
Scores = dict[str, dict[str, Estimate | None]]
"""By part, then by "overall" (of questions "accuracy", of edits also "sc" and "pq") and group; None: no such items"""

SHOWN = 12  # pictures of a group in the report, the first
NOVEL = {"ordinary": ("ordinary",), "novel": ("pair", "triple", "count")}
MEANINGS = (
    "geneval: share that is strictly right; overall is the mean over tags. edit: SC and PQ, 0 to 10, and the mean of "
    "√(SC·PQ). dense: mean share of a description's questions that hold. understanding: share of right answers; "
    "accuracy is the mean over kinds. In brackets: 95 % intervals, Wilson's of the mean as a share of the most "
    "possible, which for scores between is rather too wide.\n\n"
    "Ordinary: holds no combination that training leaves out. Novel: holds one, a shape in a new colour, a new "
    "arrangement, or a new count. Both are of the tags, types and kinds that have both."
)


def tally(judged: Judged) -> Scores:
    """The scores of every part that something was asked of."""
    found: Scores = {}
    for part in dict.fromkeys(item.part for item, _ in judged):
        mine = [(item, verdict) for item, verdict in judged if item.part == part]
        groups: dict[str, list[float]] = {group: [] for group in GROUPS[part]}
        for item, verdict in mine:
            groups[item.group].append(verdict.score)
        if part == "edit":
            marks = {mark: estimate([[v.marks[mark] / 10 for _, v in mine]], 10) for mark in ("sc", "pq")}
            overall = estimate([[v.score for _, v in mine]], 10)
            found[part] = {**marks, "overall": overall, **{g: estimate([own], 10) for g, own in groups.items()}}
        elif part == "dense":
            found[part] = {"overall": estimate(list(groups.values()))}
        else:
            name = "accuracy" if part == "understanding" else "overall"
            found[part] = {name: estimate(list(groups.values())), **{g: estimate([own]) for g, own in groups.items()}}
    return found


def of_novelty(judged: Judged, kind: str) -> Judged:
    """kind: "ordinary" or "novel". Of groups that have both, so that the two are means over the same groups."""
    seen = {(item.part, item.group, item.novelty in NOVEL["novel"]) for item, _ in judged}
    both = {(part, group) for part, group, novel in seen if (part, group, not novel) in seen}
    return [(i, verdict) for i, verdict in judged if i.novelty in NOVEL[kind] and (i.part, i.group) in both]


def as_json(judged: Judged) -> dict[str, Any]:
    """Values, and in the same shape their intervals and how many items they are of; then again by novelty."""
    split = {kind: _shaped(tally(of_novelty(judged, kind))) for kind in NOVEL}
    return _shaped(tally(judged)) | split


def _shaped(scores: Scores) -> dict[str, Any]:
    def each(take: Callable[[Estimate], object]) -> dict[str, Any]:
        parts = {part: {name: e and take(e) for name, e in own.items()} for part, own in scores.items()}
        return {part: parts.get(part) for part in GROUPS} | {"dense": parts.get("dense", {}).get("overall")}

    return each(lambda e: round(e.value, 4)) | {
        "intervals": each(lambda e: [round(e.low, 4), round(e.high, 4)]),
        "counts": each(lambda e: e.count),
    }


def rows(judged: Judged) -> list[tuple[str, str, int, str, str, str]]:
    """Part, name, items, score with its interval, and the same of ordinary and novel combinations."""
    whole, ordinary, novel = tally(judged), *(tally(of_novelty(judged, kind)) for kind in NOVEL)
    found = []
    for part, own in whole.items():
        for name, score in own.items():
            old, new = (cell(half.get(part, {}).get(name)) for half in (ordinary, novel))
            found.append((part, name, score.count if score else 0, cell(score), old, new))
    return found


COLUMNS = ("part", "of", "items", "score", "ordinary", "novel")


def cell(score: Estimate | None) -> str:
    """A score with its interval, in words."""
    return f"{score.value:.3g} [{score.low:.3g}, {score.high:.3g}]" if score else "–"


def table(judged: Judged) -> str:
    """For a terminal."""
    lines = [COLUMNS, *((p, n, str(c), *more) for p, n, c, *more in rows(judged))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def page(title: str, judged: Judged, results: Sequence[Image | str], settings: Mapping[str, Any]) -> Page:
    """The scores, and the first results of every group with their verdicts, failures left in."""
    made = Page(title).text(MEANINGS).table("Scores", COLUMNS, rows(judged))
    shown: dict[str, dict[str, list[list[Picture]]]] = defaultdict(lambda: defaultdict(list))
    for (item, verdict), result in zip(judged, results, strict=True):
        group = shown[item.part][item.group]
        if len(group) < SHOWN:
            group.append(_pictures(item, verdict, result))
    for part, groups in shown.items():
        lines = [(f"{name}, the first {len(own)}", [p for one in own for p in one]) for name, own in groups.items()]
        made.pictures(part, lines)
    return made.settings(settings)


def _pictures(item: Item, verdict: Verdict, result: Image | str) -> list[Picture]:
    said = item.text if item.novelty == "ordinary" else f"{item.text} [new {item.novelty}]"
    marks = " ".join(f"{name.upper()} {value:.1f}" for name, value in verdict.marks.items())
    told = " ".join(filter(None, [marks, "; ".join(verdict.reasons[:2])]))
    if isinstance(result, str):
        return [Picture(item.picture, f"{said} {result} {told}", verdict.right)] if item.picture else []
    if item.picture:
        return [Picture(item.picture, said), Picture(result, told, verdict.right)]
    return [Picture(result, f"{said}. {told}" if told else said, verdict.right)]
