"""The world's benchmark: what it asks, how it judges, and how sure its scores are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unipic import UniPic
from unipic.errors import BadInput
from unipic.evals import world
from unipic.evals.items import Item
from unipic.evals.run import evaluate_world
from unipic.evals.score import Z, estimate, wilson
from unipic.types import Request
from unipic.world.clauses import Exists
from unipic.world.language import TAGS, Dense
from unipic.world.render import render
from unipic.world.scene import SIZES, Scene, sample

N = 24


@pytest.fixture(scope="module")
def scenes() -> dict[tuple[str, tuple[int, int]], Scene]:
    """Of every description of `items`, by its text and size."""
    return {}


@pytest.fixture(scope="module")
def items(scenes: dict[tuple[str, tuple[int, int]], Scene]) -> Iterator[list[Item]]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("prompt", "dense"):
            said = getattr(world.language, name)

            def telling(scene: Scene, *more: Any, said: Any = said) -> Any:
                if found := said(scene, *more):
                    scenes[found.text, (scene.width, scene.height)] = scene
                return found

            patch.setattr(world.language, name, telling)
        yield world.items(3, N)


# --- items ------------------------------------------------------------------------------------------------------------


def test_an_item_is_a_function_of_its_seed_and_number(items: list[Item]) -> None:
    for number in (0, 7, 23):
        again = world.draw(3, "edit", number)
        (first,) = (item for item in items if item.id == again.id)
        assert (again.text, again.spec, again.seed) == (first.text, first.spec, first.seed)
        assert world.draw(4, "edit", number).spec != first.spec
    assert len({item.seed for item in items}) == len(items) == 4 * N
    assert len({item.id for item in items}) == len(items)


def test_groups_take_turns_and_half_of_each_is_novel() -> None:
    drawn = [world.draw(0, "geneval", number) for number in range(4 * len(TAGS))]
    assert Counter(item.group for item in drawn) == dict.fromkeys(TAGS, 4)
    kinds = {tag: Counter(item.novelty for item in drawn if item.group == tag) for tag in TAGS}
    half = {
        tag: {"ordinary": 2, kind: 2}
        for tag, kind in (("counting", "count"), ("colors", "pair"), ("position", "triple"), ("color_attr", "pair"))
    }
    assert kinds == half | {tag: {"ordinary": 4} for tag in world.NAMELESS}
    dense = [world.draw(0, "dense", number) for number in range(12)]
    assert Counter(item.novelty for item in dense) == {"ordinary": 6, "pair": 2, "triple": 2, "count": 2}


def test_the_novelty_of_an_item_is_that_of_what_it_asks(items: list[Item]) -> None:
    for item in items:
        if item.part != "understanding":
            assert item.novelty == item.spec.novelty
    assert Counter(item.novelty != "ordinary" for item in items if item.part == "edit") == {True: 12, False: 12}
    asked = [item for item in items if item.part == "understanding"]
    assert Counter(item.novelty != "ordinary" for item in asked) == {True: 9, False: 15}


def test_neighbours_share_a_size_so_that_batches_are_full(items: list[Item]) -> None:
    drawn = [item for item in items if item.part == "edit"]
    assert [len({item.size for item in drawn[i : i + 8]}) for i in range(0, N, 8)] == [1] * (N // 8)
    assert {item.size for item in drawn} == set(SIZES[: N // 8])
    for item in drawn:
        assert item.picture is not None
        assert item.picture.size == item.size


def test_a_part_alone_has_the_items_that_it_has_among_others() -> None:
    alone, among = world.items(0, 3, ("edit",)), world.items(0, 3)
    assert [(i.id, i.seed, i.text) for i in alone] == [(i.id, i.seed, i.text) for i in among if i.part == "edit"]
    with pytest.raises(BadInput, match="there is no part edits"):
        world.items(0, 3, ("edit", "edits"))


@pytest.mark.parametrize(("seed", "n"), [(-1, 1), (2**32, 1), (0.5, 1), (0, 0), (0, 10**9), (0, "3")])
def test_numbers_out_of_range_are_refused(seed: Any, n: Any) -> None:
    with pytest.raises(BadInput, match="out of range"):
        world.items(seed, n)


# --- judging ----------------------------------------------------------------------------------------------------------


def evaluated(
    folder: Path, items: list[Item], draw: Callable[[Item], Image.Image], tell: Callable[[Item], str]
) -> dict[str, Any]:
    """The scores of a model that draws and tells so."""
    by_seed, asked = {item.seed: item for item in items}, [item for item in items if item.task == "describe"]

    def run(_: UniPic, requests: list[Request], fast_batch: bool) -> list[Image.Image]:
        return [draw(by_seed[request.seed]) for request in requests]

    def describe(_: UniPic, picture: Image.Image, question: str, max_new_tokens: int) -> str:
        return tell(next(item for item in asked if item.text == question and item.picture == picture))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UniPic, "run", run)
        patch.setattr(UniPic, "describe", describe)
        patch.setattr(world, "items", lambda seed, n, parts: items)
        scores, _ = evaluate_world(UniPic.from_pretrained("tiny", device="cpu"), folder, seed=3, n=N)
    assert json.loads((folder / "scores.json").read_text()) == scores
    return scores


def leaves(tree: Any) -> list[float]:
    return [leaf for branch in tree.values() for leaf in leaves(branch)] if isinstance(tree, dict) else [tree]


def target(item: Item, scenes: dict[tuple[str, tuple[int, int]], Scene]) -> Image.Image:
    return render(item.spec.target if item.part == "edit" else scenes[item.text, item.size])


def test_a_perfect_model_has_all_points(tmp_path: Path, items: list[Item], scenes: Any) -> None:
    scores = evaluated(tmp_path, items, lambda item: target(item, scenes), lambda item: item.spec.answer)
    for own in (scores, scores["ordinary"], scores["novel"]):
        named = {part: [v for v in leaves(own[part]) if v is not None] for part in world.PARTS}
        assert {v for part in ("geneval", "understanding", "dense") for v in named[part]} == {1.0}
        assert set(named["edit"]) == {10.0}
    assert scores["geneval"].keys() == {"overall", *TAGS}
    assert scores["novel"]["geneval"]["single_object"] is None
    assert scores["intervals"]["geneval"]["overall"] == [round(v, 4) for v in wilson(1, N)]
    assert (scores["n"], scores["seed"], scores["control"]) == (N, 3, False)
    whole, parts = scores["counts"], [scores[kind]["counts"] for kind in ("ordinary", "novel")]
    for part in ("geneval", "edit", "understanding"):
        for name in world.GROUPS[part]:  # means over the same groups
            ordinary, novel = (own[part][name] for own in parts)
            assert (ordinary is None) == (novel is None)
            assert ordinary is None or ordinary + novel == whole[part][name]
    report = (tmp_path / "report.html").read_text()
    assert report.count('class="good"') > 3 * N / 2
    assert 'class="bad"' not in report


def test_a_blank_model_has_none(tmp_path: Path, items: list[Item]) -> None:
    scores = evaluated(tmp_path, items, lambda item: Image.new("RGB", item.size, "white"), lambda item: "")
    assert {v for part in world.PARTS for v in leaves(scores[part])} == {0.0}
    assert 'class="good"' not in (tmp_path / "report.html").read_text()


def test_a_model_that_leaves_every_source_as_it_is_has_no_points_for_it(items: list[Item]) -> None:
    copies = {item.group: world.judge(item, item.picture) for item in items if item.part == "edit" and item.picture}
    assert len(copies) == 12
    assert {verdict.score for verdict in copies.values()} == {0.0}
    assert {verdict.marks["pq"] for verdict in copies.values()} == {10.0}


def test_ordinary_and_novel_combinations_are_told_apart(tmp_path: Path, items: list[Item], scenes: Any) -> None:
    """A model that fails at what is new alone."""
    novel = {item.seed for item in items if item.novelty != "ordinary"}
    blank = Image.new("RGB", (64, 64), "white")
    scores = evaluated(
        tmp_path,
        items,
        lambda item: blank.resize(item.size) if item.seed in novel else target(item, scenes),
        lambda item: "" if item.seed in novel else item.spec.answer,
    )
    assert scores["ordinary"]["geneval"]["overall"] == scores["ordinary"]["understanding"]["accuracy"] == 1
    assert scores["novel"]["geneval"]["overall"] == scores["novel"]["understanding"]["accuracy"] == 0
    assert scores["ordinary"]["dense"] == 1
    assert scores["novel"]["dense"] == 0
    assert scores["dense"] == 0.5
    share = sum(item.novelty == "ordinary" for item in items if item.part == "edit") / N
    assert scores["edit"]["overall"] == pytest.approx(10 * share)
    assert scores["geneval"]["counting"] == 0.5
    assert scores["geneval"]["single_object"] == 1


def test_of_what_is_missing_nothing_is_asked_further() -> None:
    """As DPG-Bench counts: attributes and relations of an object that is not there are no."""
    scene = next(s for s in (sample(4 * i, "test") for i in range(50)) if len({o.shape for o in s.objects}) == 3)
    dense = world.language.dense(scene, np.random.default_rng(0))
    item = replace(world.draw(0, "dense", 0), spec=dense, size=(scene.width, scene.height))
    assert world.judge(item, render(scene)).score == 1
    lost = scene.objects[0]
    verdict = world.judge(item, render(replace(scene, objects=scene.objects[1:])))
    gone = {q.id for q in dense.questions if isinstance(q.wanted, Exists) and q.wanted.what.found(scene) == [lost]}
    gone |= {q.id for q in dense.questions if gone & set(q.dependencies)}
    assert verdict.score == pytest.approx(1 - len(gone) / len(dense.questions))
    assert not verdict.right
    assert len(verdict.reasons) == len(gone) > 1


def test_a_no_cascades_to_what_hangs_on_it() -> None:
    scene = sample(0, "test")
    dense = world.language.dense(scene, np.random.default_rng(0))
    first = dense.questions[0]
    chain = (
        replace(first, wanted=Exists(world.language.Description(name="letter Z", color="pink"))),
        replace(first, id=2, dependencies=(1,)),
        replace(first, id=3, dependencies=(2,)),
        replace(first, id=4),
    )
    item = replace(world.draw(0, "dense", 0), spec=Dense(dense.text, chain))
    assert world.judge(item, render(scene)).score == 0.25


def test_answers_are_right_or_wrong(items: list[Item]) -> None:
    asked = {item.group: item for item in items if item.task == "describe"}
    assert world.judge(asked["counting"], asked["counting"].spec.answer).score == 1
    assert world.judge(asked["counting"], "many").score == 0
    caption = asked["caption"]
    assert world.judge(caption, f"{caption.spec.answer}, and a heart").score == 0
    boxes = json.loads(asked["grounding"].spec.answer)
    left, top, right, bottom = boxes[0]["bbox_2d"]
    for shift, score in ((1, 1), (right - left, 0)):
        moved = json.dumps([boxes[0] | {"bbox_2d": [left + shift, top, right + shift, bottom]}, *boxes[1:]])
        assert len(boxes) > 1 or world.judge(asked["grounding"], moved).score == score


# --- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_newcombe_1998(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("count", [1, 72, 96, 288])
def test_nothing_and_everything_are_ends_exactly(count: int) -> None:
    assert (wilson(0, count)[0], wilson(1, count)[1]) == (0, 1)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("count", [1, 7, 720])
def test_at_the_ends_of_an_interval_the_share_is_z_deviations_off(share: float, count: int) -> None:
    for end in wilson(share, count):
        assert abs(share - end) == pytest.approx(Z * (end * (1 - end) / count) ** 0.5)


def test_the_interval_of_scores_between_covers_their_mean() -> None:
    rng = np.random.default_rng(0)
    for a, b in ((0.1, 0.1), (0.3, 1.0), (5.0, 2.0)):
        drawn = rng.beta(a, b, (2000, 40))
        found = [estimate([row.tolist()], 10) for row in drawn]
        covered = np.mean([e is not None and e.low <= 10 * a / (a + b) <= e.high for e in found])
        assert covered >= 0.94


def test_an_overall_is_the_unweighted_mean_over_groups() -> None:
    found = estimate([[1.0, 1.0, 1.0, 0.0], [0.0], []], 10)
    assert found is not None
    assert found.value == pytest.approx(3.75)
    assert found.count == 5
    assert (found.low, found.high) == pytest.approx(tuple(10 * v for v in wilson(0.375, 5)))
    assert estimate([[], []]) is None
