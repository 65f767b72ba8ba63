"""What is said of scenes is understood again from words alone: the same edit, the same metadata, the same clauses."""

from __future__ import annotations

import re
import time
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from unipic.world import language, reading, verify
from unipic.world import scene as scenes
from unipic.world.clauses import Count, Description, Exists, Ground, Related, satisfied
from unipic.world.edits import TYPES, Edit, sample
from unipic.world.instructions import THIRDS, WORDINGS, region_of
from unipic.world.render import render
from unipic.world.scene import Object, Scene, fits

SPLITS = ("train", "test")
EDITS = [sample(seed, split) for split in SPLITS for seed in range(1000)]
EDITS += [sample(seed, split, type) for type in TYPES for split in SPLITS for seed in range(10_000, 10_010)]
SCENES = [scenes.sample(seed, split) for split in SPLITS for seed in range(1200)]

CIRCLE = Object("circle", "red", "small", "filled", 12, 12)
STARS = (Object("star", "blue", "medium", "filled", 40, 14), Object("star", "blue", "medium", "filled", 80, 14))
SCENE = Scene(96, 64, "gray", "light", (CIRCLE, *STARS, Object("A", "black", "medium", "filled", 20, 45)))


def understood(text: str, source: Scene = SCENE) -> Edit:
    edit = reading.instruction(text, source)
    assert edit is not None, (text, source)
    return edit


def without_places(edit: Edit) -> list[Object]:
    """The target's objects, the free ones nowhere."""
    return [replace(o, x=0, y=0) if i in edit.free else o for i, o in enumerate(edit.target.objects)]


# --- instructions -----------------------------------------------------------------------------------------------------


def test_instructions_are_read_as_the_edits_that_they_were_made_from() -> None:
    assert {edit.type for edit in EDITS} == set(TYPES)
    for edit in EDITS:
        read = understood(edit.instruction, edit.source)
        assert (read.type, read.free, read.regions) == (edit.type, edit.free, edit.regions), edit
        assert (read.instruction, read.source) == (edit.instruction, edit.source)
        assert without_places(read) == without_places(edit), edit
        assert asdict(read.target) | {"objects": ()} == asdict(edit.target) | {"objects": ()}


def test_free_places_are_right_and_away_from_others() -> None:
    misplaced = 0
    for edit in (e for e in EDITS if e.free):
        read = understood(edit.instruction, edit.source)
        assert read == understood(edit.instruction, edit.source)
        for i, (left, top, right, bottom) in zip(read.free, read.regions, strict=True):
            o = read.target.objects[i]
            assert left <= o.x <= right, read
            assert top <= o.y <= bottom, read
            assert (o.x, o.y) not in {(before.x, before.y) for before in edit.source.objects}
        misplaced += not fits(read.target.objects, read.target.width, read.target.height)
    assert misplaced <= 2  # two that are free: the first may take the only place of the second


def test_every_wording_is_read_however_it_is_written() -> None:
    starts = {re.split(r"\{", w)[0] for name, wordings in WORDINGS.items() if name != "all" for w in wordings}
    assert all(any(edit.instruction.startswith(start) for edit in EDITS) for start in starts)
    for edit in EDITS[::7]:
        plain = understood(edit.instruction, edit.source)
        small = edit.instruction[0].lower() + edit.instruction[1:]
        for text in (small, edit.instruction + ".", f'  "{edit.instruction}."\n', f"“{small}”. "):
            assert understood(text, edit.source) == replace(plain, instruction=text)


def test_instructions_are_read_in_any_letters_and_with_courtesies() -> None:
    for edit in EDITS[::5]:
        plain = understood(edit.instruction, edit.source)
        small = edit.instruction[0].lower() + edit.instruction[1:]
        for text in (
            edit.instruction.upper(),
            edit.instruction.lower(),
            f"Please {small}!",
            f"PLEASE, {small.upper()}",
            f"Could you please {small}?",
            f"{edit.instruction}, please.",
            f"**{edit.instruction}**",
        ):
            assert understood(text, edit.source) == replace(plain, instruction=text)
    assert understood("CHANGE THE LETTER A TO B").target.objects[3].shape == "B"
    assert reading.dense("two RED circles on a Gray background") == reading.dense(
        "Two red circles on a gray background"
    )


def half_done(edit: Edit) -> list[Scene]:
    """With one of the changes left out, or gone; with the ground as it was; with something kept gone, or recoloured."""
    before, after = edit.source, edit.target
    standing = {(o.x, o.y): o for o in before.objects}
    changed = [o for o in after.objects if o not in before.objects][:1]
    kept = [o for o in after.objects if o in before.objects][:1]
    undone = tuple(standing.get((o.x, o.y), o) if o in changed else o for o in after.objects)
    scenes = [replace(after, background=before.background, tone=before.tone), replace(after, objects=undone)]
    scenes += [replace(after, objects=tuple(o for o in after.objects if o != gone)) for gone in (*changed, *kept)]
    first, *others = after.objects
    recolored = replace(first, color="white" if first.color == "black" else "black")
    return [*scenes, replace(after, objects=(recolored, *others))]


def test_verdicts_are_those_of_the_edit_that_was_meant() -> None:
    judged: list[float] = []
    for edit in EDITS[:2000:23] + EDITS[2000::10]:
        before = render(edit.source)
        read, seen = (understood(edit.instruction, s) for s in (edit.source, reading.scene_of(before)))
        for result in map(render, (edit.target, seen.target, edit.source, *half_done(edit))):
            wanted = verify.edit(before, result, edit).sc
            assert [verify.edit(before, result, e).sc for e in (read, seen)] == pytest.approx([wanted] * 2), edit
            judged.append(wanted)
    assert len(judged) > 700
    assert 0.2 < np.mean(np.array(judged) == 10) < 0.6
    assert len({round(sc, 2) for sc in judged}) > 4


def test_what_fills_the_slots_decides() -> None:
    texts = {
        "Make the red circle green": ("color_alter", {"color": "green"}),
        "Make the red circle outlined": ("material_alter", {"texture": "outlined"}),
        "Turn the red circle into an outlined one": ("material_alter", {"texture": "outlined"}),
        "Turn the circle into a heart": ("subject-replace", {"shape": "heart"}),
        "Make the circle a square": ("subject-replace", {"shape": "square"}),
    }
    for text, (type, change) in texts.items():
        read = understood(text)
        assert read.type == type
        assert read.target.objects == (replace(CIRCLE, **change), *SCENE.objects[1:])  # type: ignore[arg-type]
    assert understood("Change the letter A to B").target.objects[3].shape == "B"
    assert understood("Turn the letter A into the letter B").type == "text_change"
    assert understood("Make the background sky").target == replace(SCENE, background="sky")
    assert understood("Make the picture dark").target == replace(SCENE, tone="dark")


def test_references_may_say_more_than_needed_and_must_fit_one() -> None:
    for the in ("the circle", "the small circle", "the small filled red circle", "the leftmost small red circle"):
        assert understood(f"Remove {the}").target.objects == SCENE.objects[1:]
    assert understood("Remove the rightmost blue star").target.objects == (*SCENE.objects[:2], SCENE.objects[3])
    assert understood("Delete all stars").target.objects == understood("Delete every star").target.objects
    assert understood("Delete all blue stars").target.objects == (CIRCLE, SCENE.objects[3])
    for the in (
        "the star",
        "the topmost star",
        "the blue circle",
        "the large red circle",
        "the letter B",
        "all hearts",
    ):
        assert reading.instruction(f"Remove {the}", SCENE) is None, the


def test_an_added_object_is_medium_and_filled_unless_told() -> None:
    read = understood("Add a green diamond on the right side")
    new = read.target.objects[-1]
    assert (new.shape, new.color, new.size, new.texture) == ("diamond", "green", "medium", "filled")
    assert read.regions == (region_of(SCENE, "on the right side"),)
    new = understood("Add a small outlined green square").target.objects[-1]
    assert (new.shape, new.color, new.size, new.texture) == ("square", "green", "small", "outlined")


def test_a_place_where_nothing_fits_is_still_what_was_asked() -> None:
    wall = tuple(Object("square", "red", "large", "filled", 20, y) for y in (16, 48, 80))
    source = Scene(64, 96, "gray", "light", wall)
    read = understood("Add a large blue heart in the center", source)
    left, top, right, bottom = region_of(source, "in the center")
    assert read.regions == ((left, top, right, bottom),)
    assert read.target.objects[-1] == Object(
        "heart", "blue", "large", "filled", (left + right) // 2, (top + bottom) // 2
    )


def test_the_first_place_that_fits_is_found_at_once() -> None:
    """Row by row, at any size of picture."""
    crowd = tuple(Object("square", "red", "large", "filled", 20 + 32 * (i % 4), 20 + 32 * (i // 4)) for i in range(8))
    source = Scene(512, 512, "gray", "light", crowd)
    start = time.perf_counter()
    read = understood("Add a large blue heart", source)
    assert time.perf_counter() - start < 0.5
    assert read.target.objects[-1] == Object("heart", "blue", "large", "filled", 148, 16)
    for edit in (e for e in EDITS[:600] if e.type == "subject-add"):
        new = understood(edit.instruction, edit.source).target.objects[-1]
        (left, top, right, _) = edit.regions[0]
        earlier = [(x, y) for y in range(top, new.y + 1) for x in range(left, right + 1) if (y, x) < (new.y, new.x)]
        spots = (replace(new, x=x, y=y) for x, y in earlier)
        assert not any(fits((*edit.source.objects, spot), edit.source.width, edit.source.height) for spot in spots)


def test_what_is_already_where_it_should_be_may_be_anywhere_there() -> None:
    source = replace(SCENE, objects=(replace(CIRCLE, x=9, y=9), *STARS))
    read = understood("Move the circle to the top left corner", source)
    assert read.target.objects[0] not in source.objects
    for result in (source, read.target, replace(source, objects=(replace(CIRCLE, x=18, y=16), *STARS))):
        assert verify.edit(render(source), render(result), read).sc == 10


def test_changes_of_two_things_and_never_two_of_one() -> None:
    read = understood("First paint the circle green, then remove the letter A")
    assert read.type == "compose"
    assert read.target.objects == (replace(CIRCLE, color="green"), *STARS)
    for text in (
        "Paint the circle green and remove the circle",
        "Make the background sky and make the background mint",
        "Paint the circle green and do something else",
        "Make it day and make it night",
    ):
        assert reading.instruction(text, SCENE) is None, text


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_scene_is_seen_as_it_was_drawn() -> None:
    for scene in SCENES[::20]:
        seen = reading.scene_of(render(scene))
        assert replace(seen, objects=()) == replace(scene, objects=())
        nearest = [min(seen.objects, key=lambda s, o=o: abs(s.x - o.x) + abs(s.y - o.y)) for o in scene.objects]
        assert len(set(nearest)) == len(seen.objects) == len(scene.objects)
        for o, s in zip(scene.objects, nearest, strict=True):
            assert abs(o.x - s.x) <= 1
            assert abs(o.y - s.y) <= 1
            assert replace(s, x=o.x, y=o.y) == o


def test_instructions_are_read_alike_of_the_picture() -> None:
    """Kinds of objects after the edit, whatever their order; regions to the pixel."""
    for edit in EDITS[::9]:
        read = understood(edit.instruction, reading.scene_of(render(edit.source)))
        assert (read.type, len(read.free)) == (edit.type, len(edit.free))
        kinds = [Counter(replace(o, x=0, y=0) for o in e.target.objects) for e in (read, edit)]
        assert kinds[0] == kinds[1], edit
        assert (read.target.background, read.target.tone) == (edit.target.background, edit.target.tone)
        assert np.abs(np.array(read.regions) - np.array(edit.regions)).max(initial=0) <= 1


def test_a_picture_of_nothing_known_has_no_ground_and_no_objects() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    seen = reading.scene_of(Image.fromarray(noise))
    assert seen == Scene(96, 64, "", "", ())
    assert not satisfied(Ground(background="gray"), seen)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_read_as_the_metadata_that_they_were_made_from() -> None:
    tags: Counter[str] = Counter()
    for i, scene in enumerate(SCENES):
        for tag in language.TAGS:
            if asked := language.prompt(scene, tag, np.random.default_rng(i)):
                tags[tag] += 1
                assert reading.prompt(asked.text) == asked.metadata(), asked
                said = asked.text[0].upper() + asked.text[1:] + "."
                assert reading.prompt(said) == asked.metadata() | {"prompt": said}
    assert min(tags[tag] for tag in language.TAGS) > 300


# --- descriptions -----------------------------------------------------------------------------------------------------


def test_dense_descriptions_state_what_their_questions_ask() -> None:
    for i, scene in enumerate(SCENES[::4]):
        made = language.dense(scene, np.random.default_rng(i))
        clauses = reading.dense(made.text)
        assert clauses is not None, made.text
        assert all(satisfied(clause, scene) for clause in clauses)
        asked = {q.wanted for q in made.questions if isinstance(q.wanted, Ground | Count | Related)}
        assert {clause for clause in clauses if not isinstance(clause, Exists)} == asked
        assert sum(isinstance(clause, Exists) for clause in clauses) == len(scene.objects)
        for gone in scene.objects:
            fewer = replace(scene, objects=tuple(o for o in scene.objects if o != gone))
            assert not all(satisfied(clause, fewer) for clause in clauses), made.text
        for other in (replace(scene, tone="dark" if scene.tone == "light" else "light"), replace(scene, background="")):
            assert not all(satisfied(clause, other) for clause in clauses)


def test_captions_count_their_things() -> None:
    assert reading.dense("Two red circles and a blue letter A on a beige background.") == (
        Ground(background="beige"),
        Count(Description("circle", "red"), 2),
        Count(Description("letter A", "blue"), 1),
    )
    for scene in SCENES[::4]:
        clauses = reading.dense(language.caption(scene))
        assert clauses is not None
        assert all(satisfied(clause, scene) for clause in clauses)
        for gone in scene.objects:
            fewer = replace(scene, objects=tuple(o for o in scene.objects if o != gone))
            assert not all(satisfied(clause, fewer) for clause in clauses)


# --- what is not understood -------------------------------------------------------------------------------------------

NONSENSE = [
    "",
    "   ",
    ".",
    '""',
    "\ud800",
    "Make",
    "Paint the sheep green",
    "Remove the object",
    "Add a circle",
    "Move all stars to the center",
    "a photo of a mauve circle",
    "a photo of a circle and a circle",
    "a photo of three circle",
    "Light tone, gray background. And a sheep.",
    "There is a star.",
    "Make the red circle green; also",
    "and and and",
    "First , then ",
    "{the} {a}",
]


@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_not_understood(text: str) -> None:
    assert reading.instruction(text, SCENE) is None
    assert reading.prompt(text) is None
    assert reading.dense(text) is None


@pytest.mark.parametrize(
    "piece", ["a", " ", "Remove the ", "a red circle and ", "Light tone, gray background. ", "then "]
)
def test_long_texts_are_refused_quickly(piece: str) -> None:
    start = time.perf_counter()
    for size in (1_990, 1_000_000):
        text = piece * (size // len(piece)) + "&"
        assert reading.instruction(text, SCENE) is None
        assert reading.prompt(text) is None
        assert reading.dense(text) is None
    assert time.perf_counter() - start < 1


def test_every_third_of_a_picture_can_be_named() -> None:
    for at in THIRDS:
        place = at.partition(" ")[2]
        regions = [understood(said).regions for said in (f"Put the circle {at}", f"Bring the circle to {place}")]
        assert regions[0] == regions[1] == (region_of(SCENE, at),)
