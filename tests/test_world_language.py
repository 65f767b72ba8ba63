"""What is said of scenes is true of them, answers are right, and words are few and known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unipic.world import language, questions
from unipic.world.clauses import satisfied
from unipic.world.language import Dense, caption, dense, plural, prompt, prompts, some, vocabulary
from unipic.world.questions import KINDS, QA, box, mentions, normalised, score
from unipic.world.render import render
from unipic.world.scene import (
    COLORS,
    DIAMETERS,
    HELD_COUNTS,
    HELD_PAIRS,
    HELD_TRIPLES,
    LETTERS,
    NOVELTIES,
    SHAPES,
    SIZES,
    TEXTURES,
    Object,
    Scene,
    sample,
)

SCENES = [sample(seed, split, size=SIZES[seed % len(SIZES)]) for split in ("train", "test") for seed in range(150)]
NAMES = {*SHAPES, *(f"letter {letter}" for letter in LETTERS)}
scenes = st.builds(sample, st.integers(0, 10**6), st.sampled_from(["train", "test"]))
seeds = st.integers(0, 2**32 - 1)
ADJECTIVES = "|".join((*COLORS, *DIAMETERS, *TEXTURES))
NOUN = r"(?:letter [A-Z]|object|" + "|".join(SHAPES) + ")"
PLACE = r"(?: at the (?:(?:top|bottom)(?: left| right)?|left|right|center))?"
REFERENCE = re.compile(rf"the ((?:(?:{ADJECTIVES}) )*{NOUN}\b{PLACE})")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- GenEval's prompts ------------------------------------------------------------------------------------------------


def in_relation(a: Object, relation: str, b: Object) -> bool:
    """GenEval's rule for one pair, from FACTS.md."""
    offset = {"x": a.x - b.x, "y": a.y - b.y}
    length = math.hypot(*offset.values())
    axis, sign = {"left of": ("x", -1), "right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
    shrunk = max(0.0, abs(offset[axis]) - 0.1 * (DIAMETERS[a.size] + DIAMETERS[b.size]))
    return math.copysign(shrunk, offset[axis]) / length * sign > 0.5


def passes(metadata: dict[str, Any], scene: Scene) -> bool:
    """GenEval's verdict on a scene's true objects, whichever of one class the detector is surest of."""
    of_class = {entry["class"]: [o for o in scene.objects if o.name == entry["class"]] for entry in metadata["include"]}
    if any(sum(o.name == e["class"] for o in scene.objects) >= e["count"] for e in metadata.get("exclude", [])):
        return False
    choices = [list(combinations(of_class[entry["class"]], entry["count"])) for entry in metadata["include"]]
    if not all(choices):
        return False
    for taken in product(*choices):
        for entry, group in zip(metadata["include"], taken, strict=True):
            if "color" in entry and any(o.color != entry["color"] for o in group):
                return False
            if "position" in entry:
                relation, index = entry["position"]
                if not all(in_relation(a, relation, b) for a in group for b in taken[index]):
                    return False
    return True


@pytest.mark.parametrize("tag", language.TAGS)
def test_prompts_are_true_of_their_scene(tag: str) -> None:
    made = [(p, scene) for i, scene in enumerate(SCENES) if (p := prompt(scene, tag, generator(i)))]
    assert len(made) > 30
    assert all(passes(p.metadata(), scene) for p, scene in made)
    assert all(sum(o.name == g.name for o in scene.objects) == g.count for p, scene in made for g in p.include)
    assert all(p.tag == tag and len(p.text.split()) <= 14 for p, _ in made)
    elsewhere = [passes(p.metadata(), other) for (p, _), (_, other) in pairwise(made)]
    assert sum(elsewhere) < len(elsewhere) / 2


@given(scenes, seeds)
def test_any_prompt_is_true_and_in_the_format(scene: Scene, seed: int) -> None:
    p = prompts(scene, generator(seed))
    metadata = p.metadata()
    assert passes(metadata, scene)
    assert next(iter(metadata)) == "tag"
    assert list(metadata)[-1] == "prompt"
    assert set(metadata) <= {"tag", "include", "exclude", "prompt"}
    assert json.loads(json.dumps(metadata)) == metadata
    for entry in metadata["include"]:
        assert set(entry) <= {"class", "count", "color", "position"}
        assert entry["class"] in NAMES
        assert entry.get("color", "red") in COLORS
    if p.tag == "counting":
        (wanted,), (excluded,) = metadata["include"], metadata["exclude"]
        assert excluded == {"class": wanted["class"], "count": wanted["count"] + 1}


def test_prompts_say_what_their_metadata_say() -> None:
    for i, scene in enumerate(SCENES):
        p = prompts(scene, generator(i))
        for group in p.include:
            assert (plural(group.name) if group.count > 1 else group.name) in p.text
            assert group.color is None or group.color in p.text
            assert group.position is None or group.position[0] in p.text


def named(text: str) -> set[str]:
    """Kinds of held-out combinations that a prompt's words name."""
    numbers = {word: n for n, word in enumerate(language.NUMBERS)}
    found = set()
    for a, b in pairwise(re.findall(r"\w+", text)):
        if (b, a) in HELD_PAIRS:
            found.add("pair")
        if (b.removesuffix("es"), numbers.get(a)) in HELD_COUNTS or (b[:-1], numbers.get(a)) in HELD_COUNTS:
            found.add("count")
    if later := re.search(r"(\w+) that is (\w+)|(\w+) colored (\w+)", text):
        found |= {"pair"} if tuple(filter(None, later.groups())) in HELD_PAIRS else set()
    things = re.findall(rf"\b({'|'.join(SHAPES)})\b", text)
    if relation := re.search(r"left of|right of|above|below", text):
        first, second = things if text.endswith(things[1]) else things[::-1]  # "..., with a star above it"
        found |= {"triple"} if (first, relation[0], second) in HELD_TRIPLES else set()
    return found


def test_prompts_say_which_held_out_combination_they_name() -> None:
    drawn = [(s, prompts(s, generator(seed))) for seed in range(1000) for s in (sample(seed, "test"),)]
    for scene, p in drawn:
        if not (p.tag == "position" and "letter" in p.text):
            assert named(p.text) == {p.novelty} - {"ordinary"}, p
        assert set(p.held) <= {scene.novelty}
    share = {n: np.mean([p.novelty == n for s, p in drawn if s.novelty == n]) for n in NOVELTIES}
    assert share["count"] == share["ordinary"] == 1
    assert min(share["pair"], share["triple"]) > 0.75
    assert not any(prompts(s, generator(i)).held for i, s in enumerate(SCENES[:150]))  # of training


def test_a_prompt_may_leave_out_what_is_new() -> None:
    purple = Object("circle", "purple", "medium", "filled", 20, 20)
    scene = Scene(96, 64, "gray", "light", (purple, Object("heart", "red", "medium", "filled", 70, 20)))
    assert scene.novelty == dense(scene, generator()).novelty == "pair"
    for seed in range(20):
        silent, telling = (prompt(scene, tag, generator(seed)) for tag in ("single_object", "colors"))
        assert silent
        assert telling
        assert (silent.novelty, telling.novelty) == ("ordinary", "pair")
        assert telling.held == {"pair": "purple circle"}


def test_a_scene_without_anything_for_a_tag() -> None:
    circles = tuple(Object("circle", color, "small", "filled", 20, y) for color, y in (("red", 12), ("black", 40)))
    scene = Scene(64, 64, "beige", "light", circles)
    found = [tag for tag in language.TAGS if prompt(scene, tag, generator())]
    assert found == ["counting"]
    with pytest.raises(KeyError):
        prompt(scene, "shapes", generator())


def test_every_wording_is_used() -> None:
    """And there are at least four of each tag, GenEval's own first."""
    scene = next(s for s in SCENES if len(s.objects) == 4 and all(prompt(s, tag, generator()) for tag in language.TAGS))
    for tag, wordings in language.WORDINGS.items():
        starts = {re.split(r" ?\{", w)[0] for w in wordings}
        texts = [prompt(scene, tag, generator(i)) for i in range(200)]
        assert len(wordings) >= 4
        assert wordings[0].startswith("a photo of")
        assert all(any(p and p.text.startswith(start) for p in texts) for start in starts)


# --- grammar ----------------------------------------------------------------------------------------------------------


def test_articles_and_plurals() -> None:
    assert some("orange square") == "an orange square"
    assert some("star", 3) == "three stars"
    assert some("letter A", 2) == "two letters A"
    assert some("red cross", 4) == "four red crosses"
    assert plural("small red letter K") == "small red letters K"


def everything_said(scene: Scene, seed: int) -> list[str]:
    rng = generator(seed)
    description = dense(scene, rng)
    asked = questions.questions(scene, rng)
    texts = [prompts(scene, rng).text, description.text, caption(scene), *(q.text for q in description.questions)]
    return texts + [qa.question for qa in asked] + [qa.answer for qa in asked]


def test_what_is_said_is_grammatical_and_of_known_words() -> None:
    known = set(vocabulary())
    for i, scene in enumerate(SCENES):
        for text in everything_said(scene, i):
            assert set(re.findall(r"\w+", text)) <= known, text
            prose = re.sub(r"letters? [A-Z]\b", "letter", text)
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  |[{}]|None", prose) or text.startswith("[{"), text
            assert not re.search(rf"\b(two|three|four) (({ADJECTIVES}) )*{NOUN}(?!\w)", text), text
            assert not re.search(r"\bone \w+s\b", text), text


def test_same_seed_same_words() -> None:
    for i, scene in enumerate(SCENES[:50]):
        assert everything_said(scene, i) == everything_said(scene, i)
    assert len({tuple(everything_said(SCENES[0], i)) for i in range(10)}) > 5


# --- dense descriptions -----------------------------------------------------------------------------------------------


def share_true(description: Dense, scene: Scene) -> float:
    return float(np.mean([satisfied(q.wanted, scene) for q in description.questions]))


def test_dense_questions_are_true_of_their_scene_only() -> None:
    made = [dense(scene, generator(i)) for i, scene in enumerate(SCENES)]
    assert all(share_true(d, scene) == 1 for d, scene in zip(made, SCENES, strict=True))
    elsewhere = [share_true(d, other) for d, other in zip(made, [*SCENES[1:], SCENES[0]], strict=True)]
    assert np.mean(elsewhere) < 0.35
    assert np.mean([share == 1 for share in elsewhere]) < 0.02  # some scenes hold all that another one does


@given(scenes, seeds)
def test_dense_descriptions_say_everything_shortly(scene: Scene, seed: int) -> None:
    d = dense(scene, generator(seed))
    assert share_true(d, scene) == 1
    assert len(d.text.split()) <= 60
    assert language.tokens(d.text) <= language.MOST_TOKENS
    for word in (scene.background, scene.tone):
        assert word in d.text.lower()
    for o in scene.objects:
        assert f"{o.size} {o.texture} {o.color} {o.name}" in d.text
    for i, q in enumerate(d.questions, 1):
        assert q.id == i
        assert q.dependencies == (0,) or all(0 < parent < i for parent in q.dependencies)


def test_relations_are_described_in_all_sizes_of_scenes() -> None:
    for count in (2, 3, 4):
        some_scenes = [dense(s, generator(i)) for i, s in enumerate(SCENES) if len(s.objects) == count]
        assert np.mean([d.questions[-1].category == "relation - spatial" for d in some_scenes]) > 0.5


@pytest.mark.parametrize("attribute", ["color", "size", "texture", "place", "background", "tone", "count", "whole"])
def test_one_change_makes_a_question_false(attribute: str) -> None:
    """The scene that breaks a question of each category is found among the others."""
    asked = (q for i, s in enumerate(SCENES) for q in dense(s, generator(i)).questions)
    wanted = next(q.wanted for q in asked if q.category.endswith(attribute))
    assert 0 < np.mean([satisfied(wanted, s) for s in SCENES]) < 0.8


# --- questions --------------------------------------------------------------------------------------------------------


def wrong_answer(qa: QA) -> str:
    if qa.kind == "grounding":
        boxes = json.loads(qa.answer)
        return json.dumps([{"bbox_2d": [v + 40 for v in b["bbox_2d"]], "label": b["label"]} for b in boxes])
    if qa.kind == "caption":
        return "a mauve circle and a red sheep on a beige background"
    swaps = {"yes": "no", "no": "yes", "light": "dark", "dark": "light", "left of": "right of", "above": "below"}
    return swaps.get(qa.answer, "seven")


def test_answers_are_right_and_others_wrong() -> None:
    seen = set()
    for i, scene in enumerate(SCENES):
        for qa in questions.questions(scene, generator(i)):
            seen.add(qa.kind)
            assert score(qa, qa.answer) == 1.0, qa
            assert all(score(qa, answer) == 1.0 for answer in qa.accepted), qa
            assert score(qa, wrong_answer(qa)) < 1.0, qa
            assert score(qa, "") == 0.0, qa
    assert seen == set(KINDS)


def meant(phrase: str, scene: Scene) -> list[Object]:
    """The objects that all of a phrase's words fit."""
    thing, _, place = phrase.partition(" at the ")

    def fits(o: Object) -> bool:
        third = {
            "left": 3 * o.x < scene.width,
            "right": 3 * o.x >= 2 * scene.width,
            "top": 3 * o.y < scene.height,
            "bottom": 3 * o.y >= 2 * scene.height,
            "center": scene.width <= 3 * o.x < 2 * scene.width and scene.height <= 3 * o.y < 2 * scene.height,
        }
        words = {o.size, o.texture, o.color, "object", *o.name.split()}
        return set(thing.split()) <= words and all(third[word] for word in place.split())

    return [o for o in scene.objects if fits(o)]


def test_answers_are_true_of_the_scene() -> None:
    """Read again from the question's words alone; each phrase means exactly one object."""
    for i, scene in enumerate(SCENES):
        for qa in questions.questions(scene, generator(i)):
            named = [meant(phrase, scene) for phrase in REFERENCE.findall(qa.question)]
            assert all(len(found) == 1 for found in named), qa
            things = [found[0] for found in named]
            if qa.kind == "counting":
                letter = re.search(r"letters ([A-Z])", qa.question)
                asked = [o for o in scene.objects if plural(o.shape) in qa.question or "objects" in qa.question]
                asked = [o for o in scene.objects if o.shape == letter[1]] if letter else asked
                assert language.NUMBERS[len(asked)] == qa.answer
            elif qa.kind in ("color", "texture"):
                assert getattr(things[0], qa.kind) == qa.answer
            elif qa.kind == "reading":
                letters = [o for o in scene.objects if o.shape in LETTERS]
                assert [o.shape for o in letters if len(letters) == 1 or o.color in qa.question] == [qa.answer]
            elif qa.kind == "recognition" and qa.answer in ("yes", "no"):
                (name,) = re.findall(NOUN, qa.question)
                assert (name in {o.name for o in scene.objects}) == (qa.answer == "yes")
            elif qa.kind == "recognition":
                assert things[0].name == qa.answer
            elif qa.kind == "relation" and qa.answer in ("yes", "no"):
                (relation,) = re.findall(r"left of|right of|above|below", qa.question)
                assert in_relation(things[0], relation, things[1]) == (qa.answer == "yes")
            elif qa.kind == "relation":
                assert in_relation(things[0], qa.answer, things[1])
            elif qa.kind == "grounding":
                labels = sorted(entry["label"] for entry in json.loads(qa.answer))
                every = re.search(rf"every ({NOUN})", qa.question)
                wanted = [o for o in scene.objects if o.name == every[1]] if every else things
                assert labels == sorted(f"{o.color} {o.name}" for o in wanted)


def test_boxes_are_those_of_the_pixels() -> None:
    for scene in SCENES[:60]:
        picture = np.asarray(render(scene), int)
        for o in scene.objects:
            left, top, right, bottom = box(o)
            outer = picture[o.box[1] : o.box[3], o.box[0] : o.box[2]]
            drawn = np.abs(outer - picture[0, 0]).sum(-1) > 0.5 * np.abs(outer - picture[0, 0]).sum(-1).max()
            x, y = np.flatnonzero(drawn.any(0)), np.flatnonzero(drawn.any(1))
            found = (o.box[0] + x[0], o.box[1] + y[0], o.box[0] + x[-1] + 1, o.box[1] + y[-1] + 1)
            assert np.abs(np.subtract(found, (left, top, right, bottom))).max() <= 1


def asked_of(*objects: Object, background: str = "gray") -> list[QA]:
    """All that is asked, by many seeds."""
    scene = Scene(96, 64, background, "light", objects)
    return [qa for seed in range(200) for qa in questions.questions(scene, generator(seed))]


def test_what_is_denied_is_not_a_little_true() -> None:
    for i, scene in enumerate(SCENES):
        for qa in questions.questions(scene, generator(i)):
            if qa.kind == "relation" and qa.answer == "no":
                a, b = (meant(phrase, scene)[0] for phrase in REFERENCE.findall(qa.question))
                (relation,) = re.findall(r"left of|right of|above|below", qa.question)
                there = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
                assert there[relation] <= 1, qa
    star, heart = (Object(s, "red", "medium", "filled", *at) for s, at in (("star", (20, 20)), ("heart", (60, 26))))
    answers = {(qa.question, qa.answer) for qa in asked_of(star, heart) if qa.kind == "relation"}
    assert ("Is the star left of the heart?", "yes") in answers
    assert ("Is the star below the heart?", "no") in answers
    assert not any("above the heart?" in q for q, a in answers if a == "no")  # it is, by six pixels


def test_nobody_is_asked_whether_an_outlined_circle_is_a_ring() -> None:
    thin = Object("circle", "black", "large", "outlined", 20, 30)
    ring = Object("ring", "black", "large", "filled", 78, 30)
    beside_circle, both, filled = asked_of(thin), asked_of(thin, ring), asked_of(replace(thin, texture="filled"))
    assert not any("ring" in qa.question for qa in beside_circle)
    assert not any(qa.kind == "recognition" and "shape" in qa.question for qa in beside_circle)
    assert any("ring" in qa.question for qa in filled)
    assert any(qa.question == "Count the circles." for qa in beside_circle)
    assert not any(re.search("rings|circles|every (ring|circle)", qa.question) for qa in both)
    assert not any(re.search(r"the (black )?(ring|circle)\b(?! at)", qa.question) for qa in both)
    assert any("the large filled black ring at the right" in qa.question for qa in both)


def test_grounds_may_be_called_by_plain_names() -> None:
    plain = {
        "sky": "light blue",
        "mint": "Green",
        "rose": "pink background",
        "lavender": "light purple",
        "gray": "grey",
    }
    for ground, said in plain.items():
        qa = next(
            q
            for q in asked_of(Object("star", "black", "small", "filled", 20, 20), background=ground)
            if q.answer == ground
        )
        assert score(qa, said) == score(qa, f"The {ground} background.") == 1
        assert score(qa, "yellow") == 0


BOXES = [{"bbox_2d": [0, 0, 10, 10], "label": "red circle"}, {"bbox_2d": [30, 0, 40, 10], "label": "blue circle"}]
LOCATED = QA("Locate every circle in JSON.", json.dumps(BOXES), "grounding")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (json.dumps(BOXES[::-1]), 1.0),
        (f"```json\n{json.dumps(BOXES)}\n```", 1.0),
        (json.dumps([b | {"label": "circle"} for b in BOXES]), 1.0),
        (json.dumps(BOXES[:1]), 0.5),
        (json.dumps([*BOXES, BOXES[0]]), 2 / 3),
        (json.dumps([BOXES[0], {"bbox_2d": [30, 0, 40, 5], "label": "blue circle"}]), 0.75),
        (json.dumps([b | {"label": "star"} for b in BOXES]), 0.0),
        ("[]", 0.0),
        (json.dumps(BOXES[0]), 0.0),
        ("[" * 100_000, 0.0),
        ('[{"bbox_2d": [NaN, 0, 10, 10], "label": "red circle"}]', 0.0),
        ('[{"bbox_2d": [true, 0, 10, 10], "label": "red circle"}]', 0.0),
        ('[{"bbox_2d": [10, 10, 0, 0], "label": "red circle"}]', 0.0),
        ('[{"bbox_2d": [0, 0, 1e999, 10], "label": "red circle"}]', 0.0),
        ('[{"bbox_2d": [0, 0, 10], "label": "red circle"}]', 0.0),
        ('[{"bbox_2d": [0, 0, 10, 10], "label": 3}]', 0.0),
        ("the circles are at [0, 0, 10, 10]", 0.0),
    ],
)
def test_grounding_score(answer: str, wanted: float) -> None:
    assert score(LOCATED, answer) == pytest.approx(wanted)


@given(
    st.text(), st.recursive(st.none() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
)
def test_no_answer_breaks_the_score(text: str, tree: Any) -> None:
    for qa in (LOCATED, QA("Describe the picture.", "a red circle on a gray background", "caption")):
        assert 0 <= score(qa, text) <= 1
        assert 0 <= score(qa, json.dumps([{"bbox_2d": tree, "label": tree}, tree])) <= 1


def test_normalised() -> None:
    assert normalised("3") == normalised("Three.") == "three"
    assert normalised("A") == "a"
    assert normalised("the letter A") == "letter a"
    assert normalised(" A red circle! ") == "red circle"


def test_captions_score_the_things_they_mention() -> None:
    assert mentions("two red circles and a small striped blue letter A") == {
        ("red", "circle"): 2,
        ("blue", "letter A"): 1,
    }
    assert mentions("A red star. The star is above the cross.") == {("red", "star"): 1, (None, "cross"): 1}
    qa = QA("Describe the picture.", "two red circles and a blue star on a gray background", "caption")
    assert score(qa, "a blue star, and 2 large red circles") == 1.0
    assert score(qa, "a red circle and a blue star") == pytest.approx(0.8)
    assert score(qa, "two blue circles and a red star") == 0.0


@settings(max_examples=50)
@given(scenes, seeds)
def test_a_dense_description_is_a_full_caption(scene: Scene, seed: int) -> None:
    assert score(QA("Describe the picture.", caption(scene), "caption"), dense(scene, generator(seed)).text) > 0.6
