"""What became of a source's objects in an edited picture: how far each asked change was made, and what else was lost.

Every object that was found answers for one object of the edit, exact matches first. What is left was not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unipic.world.changes import MOVE
from unipic.world.edits import Edit
from unipic.world.instructions import Box
from unipic.world.look import LEAST_DEBRIS, Seen, View
from unipic.world.render import mask
from unipic.world.scene import DIAMETERS, Object

WEIGHTS = (0.375, 0.375, 0.125, 0.125)  # of shape, colour, texture and size in how alike two objects are
ALIKE = 0.5  # from here on two objects are versions of one
PLACE = 3.0  # pixels by which an object that should not move may be off
CLEAR = 0.98  # of an object's old place that must be ground, or covered by what was asked for


@dataclass
class Account:
    """done: of each asked change, 0 to 1. lost: how many other things were not kept."""

    view: View
    spec: Edit
    seen: list[Seen]  # which answer for nothing yet
    new: list[Seen] = field(default_factory=list)  # which answer for a change
    done: list[float] = field(default_factory=list)
    lost: float = 0.0
    reasons: list[str] = field(default_factory=list)


def account_of(view: View, spec: Edit) -> Account:
    """The account of an edit, whose result was looked at. The view has a named background."""
    account = Account(view, spec, list(view.objects))
    before, after = spec.source.objects, spec.target.objects
    kept = [o for o in after if o in before]
    became = _became(spec)
    regions = {after[i]: region for i, region in zip(spec.free, spec.regions, strict=True)}
    asked = [o for o in after if o not in before]
    unkept = [o for o in kept if not _exact(account, o)]
    exact = {o: found for o in asked if (found := _exact(account, o, regions.get(o)))}
    account.new += exact.values()
    still = {o: found for o, new in became.items() if new not in regions and (found := _exact(account, o))}
    _grounds(account)
    predecessor = {new: old for old, new in became.items() if new}
    for new in asked:
        old = predecessor.get(new)
        done = 1.0 if new in exact else 0.0 if old in still else _partly(account, new, old, regions.get(new))
        cleared = _cleared(account, old) if old and done else 1.0
        account.done.append(done * cleared)
        if cleared < 1 and old:
            account.reasons.append(f"some of the {old.color} {old.name} was left behind")
        if done < 1:
            account.reasons.append(f"no {new.texture} {new.size} {new.color} {new.name} where it should be")
    for o in unkept:
        _displaced(account, o)
    for old in (o for o, new in became.items() if new is None):
        account.seen = [o for o in account.seen if not _inside(o, old.box)]  # whatever is there, it counts once
        cleared = 0.0 if old in still else _cleared(account, old)
        account.done.append(cleared)
        if cleared < 1:
            account.reasons.append(f"the {old.color} {old.name} is still there")
    _leftovers(account, [*unkept, *became])
    return account


def likeness(seen: Seen | Object, wanted: Object) -> float:
    """How much of shape, colour, texture and size agrees."""
    agree = (a == b for a, b in zip(_attributes(seen), _attributes(wanted), strict=True))
    return float(sum(weight for weight, same in zip(WEIGHTS, agree, strict=True) if same))


def _attributes(o: Object | Seen) -> tuple[str, str, str, str]:
    return (o.shape, o.color, o.texture, o.size)


def _became(spec: Edit) -> dict[Object, Object | None]:
    """Of each object that is not kept, what it is changed into where it stands, or moved to as it is; None if gone."""
    new = [o for o in spec.target.objects if o not in spec.source.objects]
    became: dict[Object, Object | None] = {}
    for old in (o for o in spec.source.objects if o not in spec.target.objects):
        here = [o for o in new if (o.x, o.y) == (old.x, old.y)]
        moved = [o for o in new if _attributes(o) == _attributes(old)]
        became[old] = next(iter([*here, *moved]), None)
        new = [o for o in new if o != became[old]]
    return became


def _exact(account: Account, o: Object, region: Box | None = None) -> Seen | None:
    """Takes an object with the right attributes in the right place."""
    for found in account.seen:
        if _attributes(found) == _attributes(o) and _distance(found, region or (o.x, o.y, o.x, o.y)) == 0:
            account.seen.remove(found)
            return found
    return None


def _distance(o: Seen | Object, region: Box) -> float:
    """Pixels from a region, of which PLACE is part."""
    left, top, right, bottom = region
    across = max(left - PLACE - o.x, 0, o.x - right - PLACE)
    return float(np.hypot(across, max(top - PLACE - o.y, 0, o.y - bottom - PLACE)))


def _grounds(account: Account) -> None:
    for name in ("background", "tone"):
        before, after, now = (getattr(of, name) for of in (account.spec.source, account.spec.target, account.view))
        if before != after:
            account.done.append(float(now == after))
        elif now != after:
            account.lost += 1
        if now != after:
            account.reasons.append(f"{name} is still {now}" if now == before else f"{name} became {now}")


def _partly(account: Account, new: Object, old: Object | None, region: Box | None) -> float:
    """How far a change was made of which there is no exact result; takes the object that comes nearest to it.

    A change counts by what was won in likeness, a move by the way made, an addition by its likeness.
    """
    worth = {found: _worth(found, new, old, region) for found in account.seen}
    best = max((f for f in worth if worth[f] is not None), key=lambda f: (worth[f], likeness(f, new)), default=None)
    if best is None:
        account.lost += old is not None  # it should have changed, and is gone
        return 0.0
    account.seen.remove(best)
    account.new.append(best)
    account.lost += old is not None and region is not None and likeness(best, new) < 1  # moved, and changed
    return worth[best] or 0.0


def _worth(found: Seen, new: Object, old: Object | None, region: Box | None) -> float | None:
    """What an object is worth as the result of a change; None if it is something else."""
    alike = likeness(found, new)
    if old is None:
        return alike if alike >= ALIKE and _distance(found, region or new.box) == 0 else None
    if region is not None:
        way = _distance(old, region)
        return None if alike < ALIKE else alike * max(0.0, 1 - _distance(found, region) / way) if way else alike
    off = float(np.hypot(found.x - new.x, found.y - new.y))
    if off >= MOVE or max(alike, likeness(found, old)) < ALIKE:
        return None
    earlier = likeness(old, new)
    return max(0.0, (alike - earlier) / (1 - earlier)) * (1.0 if off <= PLACE else 1 - off / MOVE)


def _cleared(account: Account, old: Object) -> float:
    """Share of an object's old place that is ground, or covered by what answers for a change."""
    left, top, right, bottom = old.box
    whole = mask("circle" if old.shape == "ring" else old.shape, DIAMETERS[old.size])
    left_over = ~account.view.ground[top:bottom, left:right]
    for o in account.new:
        l2, t2, r2, b2 = (side - 2 * (i < 2) + 2 * (i > 1) for i, side in enumerate(o.box))
        left_over[max(t2 - top, 0) : max(b2 - top, 0), max(l2 - left, 0) : max(r2 - left, 0)] = False
    share = 1 - float((whole * left_over).sum() / whole.sum())
    return 1.0 if share >= CLEAR else share


def _displaced(account: Account, o: Object) -> None:
    """An object that should have been kept and was not; where it was only shifted or changed, that is one loss."""
    same = [f for f in account.seen if _attributes(f) == _attributes(o)]
    near = [f for f in account.seen if likeness(f, o) >= ALIKE and np.hypot(f.x - o.x, f.y - o.y) < MOVE]
    found = min(same or near, key=lambda f: np.hypot(f.x - o.x, f.y - o.y), default=None)
    if found is not None:
        account.seen.remove(found)
    account.lost += min(1.0, float(np.hypot(found.x - o.x, found.y - o.y)) / MOVE) if found in same else 1.0
    account.reasons.append(f"the {o.color} {o.name} was {'moved' if found in same else 'not kept'}")


def _leftovers(account: Account, counted: Sequence[Object]) -> None:
    """What was not asked for: objects, and debris where no object is already counted as lost or undone."""
    account.lost += len(account.seen)
    account.reasons += [f"an unasked {o.color} {o.shape} at {o.x:.0f}, {o.y:.0f}" for o in account.seen]
    debris = [d for d in account.view.debris if not any(_touch(d.box, o.box) for o in counted)]
    large = [d for d in debris if d.area >= LEAST_DEBRIS]
    small = sum(d.area for d in debris if d.area < LEAST_DEBRIS)
    account.lost += len(large) + (small >= LEAST_DEBRIS)
    account.reasons += [f"{d.reason} at {d.box}" for d in large]


def _inside(o: Seen, box: Box) -> bool:
    return box[0] <= o.x <= box[2] and box[1] <= o.y <= box[3]


def _touch(debris: Box, box: Box) -> bool:
    """Whether the middle of one box is within the other, give or take."""
    x, y = (debris[0] + debris[2]) / 2, (debris[1] + debris[3]) / 2
    return bool(box[0] - 2 <= x <= box[2] + 2 and box[1] - 2 <= y <= box[3] + 2)
