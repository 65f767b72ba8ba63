"""Sources of training examples: pure, homogeneous, in their proportions."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unipic.data.buckets import ASPECTS, fit, kept, nearest, size_for
from unipic.data.mixture import Mixture
from unipic.data.questions import QuestionSource
from unipic.data.source import TASKS, Draw, Example, Source, Task
from unipic.data.world import COPIES, OF_SEVERAL, WorldSource
from unipic.errors import BadInput
from unipic.world import edits, instructions, language, verify
from unipic.world.scene import LETTERS, NOVELTIES, SIZES, Scene, held_out


def all_of(source: Source, draw: Draw) -> list[Example]:
    return [source.load(draw, i) for i in range(len(draw.keys))]


def contents(example: Example) -> tuple[object, ...]:
    pictures = (example.picture, *example.references)
    return (example.id, example.task, example.text, example.spec, *((p.size, p.tobytes()) for p in pictures))


def as_expected(found: Counter[str], shares: dict[str, float], deviations: float = 4.5) -> bool:
    """Whether counts are within so many standard deviations of their binomial means, and there are no others."""
    n = found.total()
    near = [abs(found[k] - n * p) <= deviations * np.sqrt(n * p * (1 - p)) + 1e-9 for k, p in shares.items()]
    return all(near) and set(found) <= set(shares)


# --- the world --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_the_world_is_a_function_of_seed_task_and_turn(task: Task) -> None:
    first = WorldSource(3, copy_share=0.2)
    draws = [first.draw(task, turn, 4, 128) for turn in range(6)]
    examples = [[contents(e) for e in all_of(first, draw)] for draw in draws]
    again = WorldSource(3, copy_share=0.2)
    for turn in (5, 0, 3, 2, 4, 1):
        assert again.draw(task, turn, 4, 128) == draws[turn]
        assert [contents(again.load(draws[turn], i)) for i in (3, 1, 0, 2)] == [examples[turn][i] for i in (3, 1, 0, 2)]
    assert WorldSource(4).draw(task, 0, 4, 128) != draws[0]
    assert len({tuple(map(str, e)) for e in examples}) == 6


def fingerprints() -> list[str]:
    """Of some batches, by way of their pixels."""
    source = Mixture([(WorldSource(7), 1), (WorldSource(8), 2)], seed=1)
    examples = [e for task in TASKS for turn in (11, 12) for e in all_of(source, source.draw(task, turn, 3, 128))]
    return [f"{e.id} {e.text} {hashlib.sha256(repr(contents(e)).encode()).hexdigest()}" for e in examples]


def test_batches_are_the_same_in_another_process() -> None:
    code = "from tests.test_data import fingerprints\nprint(*fingerprints(), sep=chr(10))"
    root = Path(__file__).parents[1]
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, cwd=root)
    assert other.stdout.splitlines() == fingerprints()
    assert len(set(fingerprints())) == 12


def test_no_scene_seed_comes_twice() -> None:
    """Over turns, tasks, seeds, and sizes of batches that change on the way."""
    keys: list[int] = []
    for seed in (0, 1):
        source = WorldSource(seed)
        for task in TASKS:
            for turn in range(500):
                keys += source.draw(task, turn, (4, 16, 7)[turn % 3], 128).keys
    assert len(keys) > 10_000
    assert len(set(keys)) == len(keys)


def test_seeds_stay_apart_at_the_ends_of_their_ranges() -> None:
    last, whole = 2**45 - 1, 2**16
    sources = [WorldSource(seed) for seed in (0, 2**32 - 1)]
    keys = [
        source.draw(task, turn, whole, 128).keys[place]
        for source in sources
        for task in TASKS
        for turn in (0, last)
        for place in (0, whole - 1)
    ]
    assert len(set(keys)) == 16
    assert sources[1].load(Draw("generate", (64, 64), keys[-1:]), 0).picture.size == (64, 64)


def test_batches_of_the_world_are_of_one_size_within_the_resolution() -> None:
    source, sizes = WorldSource(1), Counter()
    for turn in range(1500):
        draw = source.draw("generate", turn, 1, 128)
        sizes[str(draw.size)] += 1
        assert source.draw("edit", turn, 2, 80).size in [(64, 64), (96, 64), (64, 96)]
        assert source.draw("edit", turn, 2, 64).size == (64, 64)
    assert as_expected(sizes, {str(size): 0.2 for size in SIZES})
    for task in TASKS:
        for turn in range(5):
            draw = source.draw(task, turn, 3, 128)
            for example in all_of(source, draw):
                assert {p.size for p in (example.picture, *example.references)} == {draw.size}
                assert len(example.references) == (task == "edit")
                assert example.task == task
    weighted = WorldSource(1, sizes={(64, 64): 3, (96, 64): 1})
    found = Counter(str(weighted.draw("edit", turn, 1, 128).size) for turn in range(1000))
    assert as_expected(found, {"(64, 64)": 0.75, "(96, 64)": 0.25})


def kind_of(example: Example) -> str:
    if isinstance(example.spec, edits.Edit):
        return example.spec.type
    return {language.Prompt: "prompt", language.Dense: "dense", Scene: "caption"}[type(example.spec)]


def kinds(source: WorldSource, task: Task, turns: int) -> Counter[str]:
    return Counter(kind_of(e) for turn in range(turns) for e in all_of(source, source.draw(task, turn, 50, 64)))


def test_texts_and_types_come_in_their_shares() -> None:
    assert as_expected(kinds(WorldSource(0), "generate", 12), {"prompt": 0.5, "dense": 0.35, "caption": 0.15})
    assert as_expected(kinds(WorldSource(0, texts={"dense": 2}), "generate", 1), {"dense": 1.0})
    assert as_expected(kinds(WorldSource(0), "edit", 12), dict.fromkeys(edits.TYPES, 1 / 12))
    some = WorldSource(0, types={"extract": 1, "compose": 3}, copy_share=0.2)
    assert as_expected(kinds(some, "edit", 12), {"extract": 0.2, "compose": 0.6, "copy": 0.2})


def test_tags_come_by_their_weights() -> None:
    def tags(weights: dict[str, float] | None) -> Counter[str]:
        source = WorldSource(0, texts={"prompt": 1}, tags=weights)
        specs = [e.spec for turn in range(8) for e in all_of(source, source.draw("generate", turn, 50, 64))]
        return Counter(spec.tag for spec in specs if isinstance(spec, language.Prompt))

    assert set(tags(None)) == set(language.TAGS)
    some = tags({"single_object": 1, "colors": 3})  # scenes that have something for one have it for both
    assert as_expected(
        Counter({tag: some[tag] for tag in ("single_object", "colors")}), {"single_object": 0.25, "colors": 0.75}
    )
    assert set(tags({"counting": 1})) > {"counting"}  # where there is nothing to count, any other


def test_what_the_world_says_is_true_of_its_pictures() -> None:
    source = WorldSource(5)
    for task in TASKS:
        for example in all_of(source, source.draw(task, 0, 16, 128)):
            if isinstance(example.spec, language.Prompt):
                assert example.text == example.spec.text
                assert verify.prompt(example.picture, example.spec.metadata()).correct
            if isinstance(example.spec, edits.Edit):
                assert example.text == example.spec.instruction
                assert verify.edit(example.references[0], example.picture, example.spec).sc > 9.5
            if isinstance(example.spec, Scene):
                assert example.text == language.caption(example.spec)


def test_copies_ask_for_the_source_itself() -> None:
    source = WorldSource(0, copy_share=1.0)
    examples = all_of(source, source.draw("edit", 0, 60, 64))
    assert {e.text for e in examples} == set(COPIES)
    assert all(e.picture.tobytes() == e.references[0].tobytes() for e in examples)
    assert len({e.picture.tobytes() for e in examples}) > 50
    assert {w for text in COPIES for w in re.findall(r"\w+", text)} <= {
        *instructions.vocabulary(),
        *language.vocabulary(),
    }


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_curriculum_bounds_the_objects(most: int) -> None:
    source = WorldSource(0, max_objects=most)
    scenes = [source._scene(i, (64, 64), np.random.default_rng(i)) for i in range(60)]
    assert {len(scene.objects) for scene in scenes} == set(range(1, most + 1))
    found = [e.spec for e in all_of(source, source.draw("edit", 0, 100, 128))]
    assert {len(edit.source.objects) for edit in found} == set(range(1, most + 1))
    assert {edit.type for edit in found} == set(edits.TYPES) - set(OF_SEVERAL if most == 1 else ())


@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_test_split_holds_every_novelty_in_equal_parts(count: int) -> None:
    source = WorldSource(0, "test", texts={"caption": 1})
    found = [e.spec for turn in range(120 // count) for e in all_of(source, source.draw("generate", turn, count, 128))]
    assert Counter(scene.novelty for scene in found) == dict.fromkeys(NOVELTIES, 30)
    assert all(held_out(scene.objects) == {scene.novelty} - {"ordinary"} for scene in found)


@pytest.mark.parametrize(("limit", "count"), [(1, 4), (3, 2), (12, 5), (40, 4)])
def test_a_limit_draws_the_same_samples_again_and_again(limit: int, count: int) -> None:
    source = WorldSource(0, limit=limit)
    draws = [source.draw("generate", turn, count, 128) for turn in range(60 * limit)]
    members: dict[tuple[int, int], set[int]] = {}
    for draw in draws:
        members.setdefault(draw.size, set()).update(draw.keys)
    assert sum(map(len, members.values())) == limit
    assert max(map(len, members.values())) == -(-limit // len(members))  # shared out evenly
    for draw in draws:
        assert len(draw.keys) == count
        assert len(set(draw.keys)) == min(count, len(members[draw.size]))  # repeats only where there are too few


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"split": "validation"},
        {"texts": {"poem": 1}},
        {"texts": {"dense": 0}},
        {"texts": {}},
        {"tags": {"colours": 1}},
        {"types": {"extract": -1}},
        {"types": {"extract": float("nan")}},
        {"types": {"extract": 1}, "max_objects": 1},
        {"sizes": {(65, 64): 1}},
        {"copy_share": 1.5},
        {"plain": -0.1},
        {"plain_sources": 1.1},
        {"max_objects": 0},
        {"max_objects": 5},
        {"limit": 0},
    ],
    ids=str,
)
def test_bad_options_of_the_world(options: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        WorldSource(**options)  # type: ignore[arg-type]
    assert len(str(caught.value).splitlines()) <= 3


def test_bad_draws_of_the_world() -> None:
    for turn, count, resolution in [(-1, 1, 64), (2**45, 1, 64), (0, 0, 64), (0, 2**16 + 1, 64), (0, 1, 63)]:
        with pytest.raises(BadInput):
            WorldSource(0).draw("edit", turn, count, resolution)
    with pytest.raises(BadInput, match="so small"):
        WorldSource(0, sizes={(128, 96): 1}).draw("edit", 0, 1, 64)


def test_sizes_of_edits_are_as_asked_and_nothing_else_changed() -> None:
    for seed in range(40):
        free = edits.sample(seed, "train", "extract")
        assert free == edits.sample(seed, "train", "extract", size=None, most=None)
        fixed = edits.sample(seed, "train", "extract", size=(96, 64), most=3)
        assert (fixed.source.width, fixed.source.height) == (fixed.target.width, fixed.target.height) == (96, 64)
        assert len(fixed.source.objects) <= 3


# --- mixtures ---------------------------------------------------------------------------------------------------------


class Counting:
    """A source that tells which turns it was asked for."""

    def __init__(self, tasks: Sequence[Task] = TASKS) -> None:
        self.tasks = tuple(tasks)

    def draw(self, task: Task, turn: int, count: int, resolution: int) -> Draw:
        return Draw(task, (resolution, resolution), tuple((turn, i) for i in range(count)))

    def load(self, draw: Draw, index: int) -> Example:
        return Example(str(draw.keys[index]), draw.task, "x", Image.new("RGB", draw.size))


@given(
    st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=6).filter(lambda w: sum(w) > 1e-3),
    st.integers(0, 2**32),
    st.sampled_from(TASKS),
    st.integers(0, 10**12),
)
def test_each_source_is_asked_for_its_own_turns_in_order(
    weights: list[float], seed: int, task: Task, start: int
) -> None:
    """Anywhere in a run, and nearly in proportion: off by one batch for each split that a source goes through."""
    mixture = Mixture([(Counting(), weight) for weight in weights], seed)
    places = [mixture.place(task, turn) for turn in range(start, start + 60)]
    for which in {which for which, _ in places}:
        own = [turn for i, turn in places if i == which]
        assert own == list(range(own[0], own[0] + len(own)))
        assert abs(own[0] - start * weights[which] / sum(weights)) <= len(weights) + 1e-3 * (start > 1e9)
    if start == 0:
        assert all(own == 0 for own in dict(reversed(places)).values())


def test_mixtures_keep_their_proportions_and_their_sources_samples() -> None:
    sources = [(WorldSource(0), 0.5), (WorldSource(1), 0.2), (WorldSource(2), 0.3)]
    mixture = Mixture(sources, seed=9)
    places = [mixture.place("edit", turn) for turn in range(1000)]
    found = Counter(which for which, _ in places)
    assert all(abs(found[i] - 1000 * weight) <= 1 for i, (_, weight) in enumerate(sources))
    for turn in (0, 1, 17, 999):
        which, own = places[turn]
        direct = sources[which][0].draw("edit", own, 2, 128)
        mixed = mixture.draw("edit", turn, 2, 128)
        assert mixed.size == direct.size
        assert [contents(e) for e in all_of(mixture, mixed)] == [contents(e) for e in all_of(sources[which][0], direct)]
    other = Mixture(sources, seed=10)
    assert [other.place("edit", turn) for turn in range(30)] != places[:30]


def test_a_task_comes_from_the_sources_that_have_it() -> None:
    mixture = Mixture([(Counting(["edit"]), 1), (Counting(["generate"]), 1), (Counting(), 2), (Counting(), 0)])
    assert {mixture.place("edit", turn)[0] for turn in range(50)} == {0, 2}
    assert {mixture.place("generate", turn)[0] for turn in range(50)} == {1, 2}
    assert mixture.tasks == TASKS
    nested = Mixture([(Mixture([(Counting(["edit"]), 1)]), 1)])
    assert nested.tasks == ("edit",)
    assert nested.load(nested.draw("edit", 3, 2, 8), 1).id == "(3, 1)"
    with pytest.raises(BadInput, match="no source has samples to generate"):
        nested.draw("generate", 0, 1, 8)
    for weights in ([], [0.0], [-1.0], [float("inf")]):
        with pytest.raises(BadInput):
            Mixture([(Counting(), weight) for weight in weights])


# --- buckets ----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(list(ASPECTS)), st.integers(8, 2048), st.sampled_from([8, 16, 32, 64]))
def test_buckets_are_multiples_within_the_area(aspect: str, resolution: int, multiple: int) -> None:
    if resolution < multiple:
        with pytest.raises(BadInput, match="too low"):
            size_for(aspect, resolution, multiple)
        return
    width, height = size_for(aspect, resolution, multiple)
    assert width % multiple == height % multiple == 0
    assert 0 < width * height <= resolution**2
    turned = ":".join(reversed(aspect.split(":")))
    assert size_for(turned, resolution, multiple) == (height, width)
    if resolution >= 12 * multiple:  # where there is room for it
        assert width * height >= 0.8 * resolution**2
        assert width / height == pytest.approx(ASPECTS[aspect], rel=0.1)
        assert nearest(width, height) == aspect


def test_buckets_as_they_are_used() -> None:
    assert {a: size_for(a, 512) for a in ("1:1", "4:3", "3:2", "16:9", "9:16")} == {
        "1:1": (512, 512),
        "4:3": (576, 448),
        "3:2": (608, 416),
        "16:9": (672, 384),
        "9:16": (384, 672),
    }
    assert all(size_for("1:1", r) == (r, r) for r in (64, 256, 384, 1024))


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_nearest_aspect_loses_least(width: int, height: int) -> None:
    chosen = nearest(width, height)
    losses = {name: 1 - kept((width, height), (int(ratio * 144), 144)) for name, ratio in ASPECTS.items()}
    assert losses[chosen] <= min(losses.values()) + 1e-9


def test_fit_keeps_the_middle() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    middle = np.asarray(fit(picture, (64, 64))).astype(int)
    assert np.abs(middle - (0, 0, 255)).max() < 16  # the filter looks a little beyond the edge
    assert (middle[:, 4:-4] == (0, 0, 255)).all()
    assert fit(picture, (300, 100)) is picture
    assert fit(picture, (600, 200)).size == (600, 200)
    assert kept(picture.size, (64, 64)) == pytest.approx(1 / 3)


def test_questions_are_of_the_kinds_that_are_weighed() -> None:
    source = QuestionSource(5, foresee=0.0, kinds={"caption": 3, "texture": 1})
    kinds = Counter(source.load(i).qa.kind for i in range(800))
    assert kinds.keys() == {"caption", "texture"}
    assert 0.7 < kinds["caption"] / 800 < 0.85  # some scenes have no texture to ask about
    reading = [QuestionSource(5, foresee=0.0, kinds={"caption": 1, "reading": 50}).load(i) for i in range(100)]
    for asked in reading:  # a kind that the scene has nothing for leaves its share to the rest
        assert asked.scene is not None
        letters = [o for o in asked.scene.objects if o.shape in LETTERS]
        assert asked.qa.kind != "reading" or letters
    assert {a.qa.kind for a in reading} == {"caption", "reading"}


@pytest.mark.parametrize(("kinds", "said"), [({"reading": 1}, "nothing to ask"), ({"captain": 1}, "captain")])
def test_kinds_that_cannot_be_asked_are_refused(kinds: dict[str, float], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        QuestionSource(kinds=kinds)
