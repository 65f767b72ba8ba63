"""The benchmark of the embedded world's test split, in four parts of equal length.

    geneval         prompts of GenEval's six tags: is everything right, and the picture clean?
    edit            GEdit's and ImgEdit's types: SC and PQ, 0 to 10, as √(SC·PQ)
    dense           descriptions: how many of the questions about each are answered with yes, as in DPG-Bench
    understanding   questions of nine kinds: is the answer right? A box overlaps by more than half, a caption names
                    all things with their colours and no more

Within a part, tags, types and kinds take turns; every second item of each is of a held-out combination where its words
can name one, of the three kinds in turn, the others of none. Eight neighbours share one of the world's sizes. Item i is
a function of (seed, part, i).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from unipic.errors import BadInput, UnipicError
from unipic.evals.items import Item, Size
from unipic.pipeline import FAST_BATCH
from unipic.rewards.world import Verdict
from unipic.rewards.world import judge as judge_picture
from unipic.types import check_whole
from unipic.world import edits, language
from unipic.world import scene as scenes
from unipic.world.language import pick
from unipic.world.questions import KINDS, QA, questions
from unipic.world.questions import score as answer_score
from unipic.world.render import render
from unipic.world.scene import NOVELTIES, SIZES, SPLITS

SPLIT = "test"
GROUPS = {"geneval": language.TAGS, "edit": edits.TYPES, "dense": ("dense",), "understanding": KINDS}
PARTS = tuple(GROUPS)
NAMELESS = ("single_object", "two_object")  # tags whose words cannot name a held-out combination
MOST_ITEMS, MOST_TRIES = 10_000, 1_000
OVERLAP = 0.5  # of a right box

Found = tuple[str, str, Any, Image | None]  # text, novelty, spec, picture that is given


def items(seed: int, n: int, parts: Sequence[str] = PARTS) -> list[Item]:
    """n items of each of these parts, the same whatever other parts are asked. Raises BadInput for no such part."""
    check_whole("seed", seed, 0, 2**32 - 1)
    check_whole("number of items", n, 1, MOST_ITEMS)
    if unknown := [part for part in parts if part not in PARTS]:
        raise BadInput(f"there is no part {unknown[0]}", "parts of the benchmark", f"give some of {', '.join(PARTS)}")
    return [draw(seed, part, number) for part in parts for number in range(n)]


def check_groups(groups: Sequence[str]) -> None:
    """Raises BadInput for what is no tag, type or kind."""
    known = list(dict.fromkeys(group for own in GROUPS.values() for group in own))
    if unknown := [group for group in groups if group not in known]:
        what = f"there is no group {unknown[0]}"
        raise BadInput(what, "groups of the benchmark", f"give some of {', '.join(known)}")


def draw(seed: int, part: str, number: int) -> Item:
    """An item of a part."""
    groups = GROUPS[part]
    group, turn = groups[number % len(groups)], number // len(groups)
    size = SIZES[number // FAST_BATCH % len(SIZES)]
    novel = turn % 2 == 1 and group not in NAMELESS
    place = (seed * len(PARTS) + PARTS.index(part)) * MOST_ITEMS + number
    for attempt in range(MOST_TRIES):
        kind = 1 + (turn // 2 + attempt) % 3 if novel else 0
        drawn = len(NOVELTIES) * (place * MOST_TRIES + attempt) + kind  # the last digit picks a scene's novelty
        found = _DRAWN[part](drawn, group, size)
        if found and (found[1] != "ordinary") == novel:
            text, novelty, spec, picture = found
            return Item(f"{part}-{number:04}", _TASKS[part], part, group, novelty, text, size, place, spec, picture)
    raise UnipicError(f"no {group} for seed {seed}", f"{part}, item {number}", "take another seed")


def _prompt(seed: int, tag: str, size: Size) -> Found | None:
    found = language.prompt(scenes.sample(seed, SPLIT, size=size), tag, _random(seed))
    return (found.text, found.novelty, found, None) if found else None


def _edit(seed: int, type: str, size: Size) -> Found:
    edit = edits.sample(seed, SPLIT, type, size=size)
    return edit.instruction, edit.novelty, edit, render(edit.source)


def _dense(seed: int, _: str, size: Size) -> Found:
    dense = language.dense(scenes.sample(seed, SPLIT, size=size), _random(seed))
    return dense.text, dense.novelty, dense, None


def _question(seed: int, kind: str, size: Size) -> Found | None:
    scene, rng = scenes.sample(seed, SPLIT, size=size), _random(seed)
    asked = [qa for qa in questions(scene, rng) if qa.kind == kind]
    if not asked:
        return None
    qa = pick(rng, asked)
    return qa.question, scene.novelty, qa, render(scene)


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng([SPLITS.index(SPLIT), seed, len(PARTS)])


_DRAWN: dict[str, Callable[[int, str, Size], Found | None]] = {
    "geneval": _prompt,
    "edit": _edit,
    "dense": _dense,
    "understanding": _question,
}
_TASKS: dict[str, Any] = {"geneval": "generate", "edit": "edit", "dense": "generate", "understanding": "describe"}


# --- verdicts ---------------------------------------------------------------------------------------------------------


def judge(item: Item, result: Image | str) -> Verdict:
    """The verdict on a picture, or on an answer."""
    if isinstance(result, str):
        return _answered(item.spec, result)
    verdict = judge_picture(item.spec, result)
    if verdict is None:
        raise AssertionError(f"{item.id} is of no known kind")
    return verdict


def _answered(qa: QA, answer: str) -> Verdict:
    score = answer_score(qa, answer)
    right = score > OVERLAP if qa.kind == "grounding" else score == 1
    return Verdict(float(right), right, () if right else (f"expected {qa.answer}",))
