"""What is said of scenes: GenEval's six kinds of prompts, dense descriptions with DPG-like questions, captions.

All of it is true of the scene that it is made from, with no more objects of a class than it says, and stays true when
objects are drawn two pixels off. Texts are short, since the tiny text encoders read about 48 tokens.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from unipic.world.clauses import (
    PLACES,
    Clause,
    Count,
    Description,
    Exists,
    Ground,
    Related,
    described,
    place_of,
    reference,
    sure,
)
from unipic.world.scene import (
    BACKGROUNDS,
    COLORS,
    DIAMETERS,
    HELD_COUNTS,
    HELD_PAIRS,
    HELD_TRIPLES,
    LETTERS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    TONES,
    Object,
    Scene,
    novelty_of,
)

T = TypeVar("T")

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
WORDINGS = {  # a, b: things with their articles; first of each: GenEval's
    "single_object": ("a photo of {a}", "a picture of {a}", "{a}", "an image with {a}", "a drawing of {a}"),
    "two_object": ("a photo of {a} and {b}", "a picture of {a} and {b}", "{a} with {b}", "an image with {a} and {b}"),
    "counting": ("a photo of {a}", "a picture with {a}", "exactly {a}", "{a}", "an image of {a}"),
    "colors": ("a photo of {a}", "a picture of {a}", "{a}", "{thing} that is {color}", "{thing} colored {color}"),
    "position": (
        "a photo of {b} {relation} {a}",
        "{b} {relation} {a}",
        "{b} is {relation} {a}",
        "{a}, with {b} {relation} it",
    ),
    "color_attr": ("a photo of {a} and {b}", "a picture of {a} and {b}", "{a} with {b}", "an image with {a} and {b}"),
}
FORMAL = {r: "to the " + r if " of" in r else r for r in RELATIONS}
GROUNDS = (
    "A {tone} picture on a {background} background.",
    "The background is {background}, the tone is {tone}.",
    "This {tone} picture has a {background} background.",
    "{tone} tone, {background} background.",
)
THINGS = ("There is {a} at the {place}.", "{a} is at the {place}.", "At the {place} is {a}.", "{place}: {thing}.")
TREE = {  # the questions about a dense description
    "background": "Is the background {value}?",
    "tone": "Is the tone {value}?",
    "entity": "Is there {value}?",
    "attribute": "Is {the} {value}?",
    "count": "Are there exactly {value}?",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MOST_TOKENS = 46  # words and punctuation of a dense description; with begin and end 48
MOST_RELATIONS = 2  # in a dense description


# --- grammar ----------------------------------------------------------------------------------------------------------


def plural(thing: str) -> str:
    """Of a class, with or without adjectives: "crosses", "red letters A"."""
    if "letter " in thing:
        return thing.replace("letter ", "letters ")
    return thing + ("es" if thing.endswith("s") else "s")


def some(thing: str, count: int = 1) -> str:
    """With its article or number: "an orange square", "three stars"."""
    if count == 1:
        return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    return f"{NUMBERS[count]} {plural(thing)}"


def tokens(text: str) -> int:
    """Words and punctuation marks."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


# --- GenEval's prompts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """What is asked of one class. position: this group is in the relation to the group at that index."""

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def metadata(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"class": self.name, "count": self.count}
        if self.color is not None:
            entry["color"] = self.color
        if self.position is not None:
            entry["position"] = list(self.position)
        return entry

    def __str__(self) -> str:
        return some(f"{self.color} {self.name}" if self.color else self.name, self.count)


@dataclass(frozen=True)
class Prompt:
    """tag: one of TAGS."""

    text: str
    tag: str
    include: tuple[Group, ...]
    exclude: tuple[Group, ...] = ()

    @property
    def held(self) -> dict[str, str]:
        """The held-out combinations that it names, by their kinds: {"pair": "purple circle"}."""
        return _held(self.include)

    @property
    def novelty(self) -> str:
        """Which held-out combination it names: one of NOVELTIES. Its scene may hold one that it does not name."""
        return novelty_of(self.held)

    def metadata(self) -> dict[str, Any]:
        """As a line of GenEval's metadata file."""
        entry: dict[str, Any] = {"tag": self.tag, "include": [g.metadata() for g in self.include]}
        if self.exclude:
            entry["exclude"] = [g.metadata() for g in self.exclude]
        return entry | {"prompt": self.text}


def _held(groups: Sequence[Group]) -> dict[str, str]:
    found = {}
    for group in groups:
        if (group.name, group.color) in HELD_PAIRS:
            found["pair"] = f"{group.color} {group.name}"
        if (group.name, group.count) in HELD_COUNTS:
            found["count"] = some(group.name, group.count)
        if group.position:
            relation, other = group.position[0], groups[group.position[1]].name
            if (group.name, relation, other) in HELD_TRIPLES:
                found["triple"] = f"{group.name} {relation} {other}"
    return found


def prompts(scene: Scene, rng: np.random.Generator, weights: Mapping[str, float] = MappingProxyType({})) -> Prompt:
    """A prompt of a random one of the tags that the scene has something for.

    It names the scene's held-out combination, where prompts can. weights: of tags, above 0; all are equally likely
    where it has nothing for those that are named.
    """
    candidates = _candidates(scene)
    novel = {tag: [groups for groups in candidates[tag] if _held(groups)] for tag in TAGS}
    candidates = novel if any(novel.values()) else candidates
    tags = [tag for tag in TAGS if candidates[tag]]
    if named := {tag: weights[tag] for tag in tags if tag in weights}:
        shares = np.array(list(named.values()))
        tag = list(named)[rng.choice(len(named), p=shares / shares.sum())]
    else:
        tag = pick(rng, tags)
    return _worded(tag, pick(rng, candidates[tag]), rng)


def prompt(scene: Scene, tag: str, rng: np.random.Generator) -> Prompt | None:
    """A prompt that the scene satisfies, and that names its novelty if the tag has one that does.

    None where the scene has nothing for the tag. Raises KeyError for other tags.
    """
    candidates = _candidates(scene)[tag]
    candidates = [groups for groups in candidates if _held(groups)] or candidates
    return _worded(tag, pick(rng, candidates), rng) if candidates else None


def _worded(tag: str, include: tuple[Group, ...], rng: np.random.Generator) -> Prompt:
    first, last = include[0], include[-1]
    relation = last.position[0] if last.position else ""
    said = pick(rng, (relation, FORMAL.get(relation, "")))
    wording = pick(rng, WORDINGS[tag])
    text = wording.format(a=first, b=last, thing=some(first.name), color=first.color, relation=said)
    exclude = (replace(first, count=first.count + 1),) if tag == "counting" else ()
    return Prompt(text, tag, include, exclude)


def _candidates(scene: Scene) -> dict[str, list[tuple[Group, ...]]]:
    """By tag, all that may be asked: "a star" only where there is exactly one, since GenEval's soft score counts."""
    counts = Counter(o.name for o in scene.objects)
    single = [o for o in scene.objects if counts[o.name] == 1]
    pairs = list(permutations(single, 2))
    return {
        "single_object": [(Group(o.name),) for o in single],
        "two_object": [(Group(a.name), Group(b.name)) for a, b in pairs],
        "counting": [(Group(name, count),) for name, count in counts.items() if count > 1],
        "colors": [(Group(o.name, color=o.color),) for o in single],
        "position": [
            (Group(a.name), Group(b.name, position=(relation, 0))) for a, b in pairs for relation in sorted(sure(b, a))
        ],
        "color_attr": [(Group(a.name, color=a.color), Group(b.name, color=b.color)) for a, b in pairs],
    }


# --- dense descriptions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """id: from 1. dependencies: ids of the questions without which it makes no sense, (0,) for none."""

    id: int
    text: str
    dependencies: tuple[int, ...]
    category: str
    wanted: Clause


@dataclass(frozen=True)
class Dense:
    """A description of a whole scene, and what to ask of a picture of it, in DPG-Bench's manner.

    novelty: of the scene; since it tells all things and their places, a description names what is new in any case.
    """

    text: str
    questions: tuple[Question, ...]
    novelty: str = "ordinary"


def dense(scene: Scene, rng: np.random.Generator) -> Dense:
    """Ground, every object, and what relations there is room for; its questions ask all that it says."""
    objects = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    terse = len(objects) > pick(rng, (2, 3))
    sentences = [_sentence(pick(rng, GROUNDS[-1:] if terse else GROUNDS), tone=scene.tone, background=scene.background)]
    for o in objects:
        thing, wording = str(replace(described(o, scene), place=None)), pick(rng, THINGS[-1:] if terse else THINGS)
        sentences.append(_sentence(wording, a=some(thing), thing=thing, place=place_of(o, scene)))

    asked: list[Question] = []

    def ask(text: str, category: str, wanted: Clause, dependencies: Iterable[int] = (0,)) -> int:
        asked.append(Question(len(asked) + 1, text, tuple(dependencies), category, wanted))
        return len(asked)

    ask(TREE["background"].format(value=scene.background), "global - background", Ground(background=scene.background))
    ask(TREE["tone"].format(value=scene.tone), "global - tone", Ground(tone=scene.tone))
    entity: dict[Object, int] = {}
    for o in objects:
        full = described(o, scene)
        known = reference(o, scene) or full
        entity[o] = ask(TREE["entity"].format(value=some(str(known))), "entity - whole", Exists(known))
        for attribute in ("color", "size", "texture", "place"):
            if getattr(known, attribute) is None:
                value = getattr(full, attribute)
                text = TREE["attribute"].format(the=f"the {known}", value=("at the " * (attribute == "place")) + value)
                wanted = Exists(replace(known, **{attribute: value}))
                ask(text, f"attribute - {attribute}", wanted, (entity[o],))
    for name, count in Counter(o.name for o in objects).items():
        if count > 1:
            text = TREE["count"].format(value=some(name, count))
            parents = (id for o, id in entity.items() if o.name == name)
            ask(text, "other - count", Count(Description(name), count), parents)
    for a, relation, b in _relations(scene, objects):
        # "the star at the top left of the ring" could be read in two ways
        first, second = reference(a, scene, without="place"), reference(b, scene, without="place")
        said = f"the {first} is {relation} the {second}"
        if first and second and tokens(" ".join(sentences) + said) < MOST_TOKENS:
            sentences.append(_sentence(said + "."))
            text = TREE["attribute"].format(the=f"the {first}", value=f"{relation} the {second}")
            ask(text, "relation - spatial", Related(first, relation, second), (entity[a], entity[b]))
    return Dense(" ".join(sentences), tuple(asked), scene.novelty)


def _relations(scene: Scene, objects: Sequence[Object]) -> list[tuple[Object, str, Object]]:
    """Some that are sure, one for each pair of objects, held-out ones first."""
    found = []
    for a, b in combinations(objects, 2):
        found += [(a, relation, b) for relation in RELATIONS if relation in sure(a, b)][:1]
    return sorted(found, key=lambda r: (r[0].shape, r[1], r[2].shape) not in HELD_TRIPLES)[:MOST_RELATIONS]


def _sentence(wording: str, **fields: str) -> str:
    text = wording.format(**fields)
    return text[0].upper() + text[1:]


def caption(scene: Scene) -> str:
    """The bare description: "two red circles and a blue letter A on a beige background"; objects from top to bottom."""
    ordered = sorted(scene.objects, key=lambda o: (o.y, o.x))
    things = [some(thing, count) for thing, count in Counter(f"{o.color} {o.name}" for o in ordered).items()]
    *others, last = things
    return f"{', '.join(others)}{' and ' * bool(others)}{last} on a {scene.background} background"


# --- vocabulary -------------------------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """All words that prompts, descriptions, questions and answers can hold, as they are written there."""
    from unipic.world.questions import TEMPLATES  # questions are built on this module

    said = [*TEMPLATES, *GROUNDS, *THINGS, *TREE.values(), *(w for wordings in WORDINGS.values() for w in wordings)]
    said += [*COLORS, *DIAMETERS, *TEXTURES, *BACKGROUNDS, *TONES, *FORMAL.values(), *NUMBERS[:5], *PLACES, *LETTERS]
    said += [*SHAPES, *map(plural, SHAPES), "letter letters a an the is at on and background A The"]
    said += [word.capitalize() for word in (*PLACES, *TONES)]
    found = set(re.findall(r"\w+", re.sub(r"\{\w+\}", " ", " ".join(said))))
    return sorted(found | {str(n) for n in range(max(map(max, SIZES)) + 1)})  # coordinates
