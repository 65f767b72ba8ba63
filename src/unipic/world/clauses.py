"""Statements about scenes that a machine can check, and descriptions that fit exactly one object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from unipic.world.scene import Object, Scene, confusable, relations

PLACES = tuple(
    f"{row} {column}".strip() or "center" for row in ("top", "", "bottom") for column in ("left", "", "right")
)
PLACE_SLACK = 1 / 12  # of the picture's side, by which an object may be off its third
SURE = 2  # pixels by which an object may be off before a stated relation fails


@dataclass(frozen=True)
class Description:
    """What is known of an object. name: its class; place: one of PLACES, "top" being the top left and right as well."""

    name: str | None = None
    color: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None

    def __str__(self) -> str:
        bare = " ".join(word for word in (self.size, self.texture, self.color, self.name or "object") if word)
        return bare + (f" at the {self.place}" if self.place else "")

    def found(self, scene: Scene) -> list[Object]:
        """The objects that it fits."""
        return [o for o in scene.objects if self._fits(o, scene)]

    def _fits(self, o: Object, scene: Scene) -> bool:
        known = ((self.name, o.name), (self.color, o.color), (self.size, o.size), (self.texture, o.texture))
        return all(a in (None, b) for a, b in known) and (self.place is None or _is_at(o, self.place, scene))


@dataclass(frozen=True)
class Exists:
    what: Description


@dataclass(frozen=True)
class Count:
    """Exactly so many."""

    what: Description
    count: int


@dataclass(frozen=True)
class Related:
    what: Description
    relation: str
    other: Description


@dataclass(frozen=True)
class Ground:
    background: str | None = None
    tone: str | None = None


Clause = Exists | Count | Related | Ground


def satisfied(clause: Clause, scene: Scene) -> bool:
    match clause:
        case Exists(what):
            return bool(what.found(scene))
        case Count(what, count):
            return len(what.found(scene)) == count
        case Related(what, relation, other):
            return any(relation in relations(a, b) for a in what.found(scene) for b in other.found(scene) if a != b)
        case Ground(background, tone):
            return background in (None, scene.background) and tone in (None, scene.tone)


def place_of(o: Object, scene: Scene) -> str:
    """The ninth of the picture that an object's middle is in."""
    return PLACES[3 * (3 * o.y // scene.height) + 3 * o.x // scene.width]


def _is_at(o: Object, place: str, scene: Scene) -> bool:
    x, y = o.x / scene.width, o.y / scene.height
    near, far = 1 / 3 + PLACE_SLACK, 2 / 3 - PLACE_SLACK
    middle = min(x, y) > 1 / 3 - PLACE_SLACK and max(x, y) < 2 / 3 + PLACE_SLACK
    held = {"left": x < near, "right": x > far, "top": y < near, "bottom": y > far, "center": middle}
    return all(held[word] for word in place.split())


def described(o: Object, scene: Scene) -> Description:
    """Everything about an object."""
    return Description(o.name, o.color, o.size, o.texture, place_of(o, scene))


def reference(o: Object, scene: Scene, without: str = "") -> Description | None:
    """The shortest description that fits this object alone, without telling that attribute; None if there is none."""
    full = described(o, scene)
    known = Description()
    for attribute in ("name", "color", "size", "texture", "place"):
        if attribute != without:
            known = replace(known, **{attribute: getattr(full, attribute)})
            if known.found(scene) == [o] and not any(_mistaken(known, o, other, scene) for other in scene.objects):
                return known
    return None


def _mistaken(known: Description, o: Object, other: Object, scene: Scene) -> bool:
    """Whether another, which its name and texture do not tell apart, may be meant as well."""
    return confusable(o, other) and other in replace(known, name=None, texture=None).found(scene)


def sure(a: Object, b: Object) -> set[str]:
    """The relations that hold even if one object is a little off."""
    return set.intersection(*_nearly(a, b))


def possible(a: Object, b: Object) -> set[str]:
    """The relations that hold if one object is a little off."""
    return set.union(*_nearly(a, b))


def _nearly(a: Object, b: Object) -> list[set[str]]:
    return [relations(replace(a, x=a.x + dx, y=a.y + dy), b) for dx, dy in product((-SURE, SURE), repeat=2)]
