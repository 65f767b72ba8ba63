"""What each token of a picture should know: a second loss for models that start from nothing.

A linear head, thrown away afterwards, tells from every token what lies in its cell of the picture: the ground, the
object that covers most of it, and where that object is.

Of a language model's eye: a published vision tower has seen the world before it is asked anything; from answers alone
a small one learns colours and little else. Of the DiT, midway: from squared errors a small one learns last what an
instruction is about, which of a reference's things and what becomes of it. That is a choice among few, and
cross-entropy teaches choices (as in REPA, Yu et al., 2024, whose teacher is a pretrained encoder).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unipic.world.scene import BACKGROUNDS, COLORS, DIAMETERS, LETTERS, SHAPES, TEXTURES, TONES, Object, Scene

NOTHING = "nothing"
LEAST_COVER = 0.1  # of a cell, or of an object's box, from which the object is in it
OF_ALL = {"background": tuple(BACKGROUNDS), "tone": tuple(TONES), "shape": (NOTHING, *SHAPES, *LETTERS)}
OF_OBJECTS = {"color": tuple(COLORS), "size": tuple(DIAMETERS), "texture": TEXTURES}
LABELS = OF_ALL | OF_OBJECTS
PLACE = 2  # coordinates of an object's middle, as shares of the picture's sides
UNKNOWN = -100


class CellHead(nn.Module):
    """Visual tokens, N×width → logits of LABELS side by side, and a place, N×(sum of labels + 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, sum(map(len, LABELS.values())) + PLACE)

    def forward(self, tokens: Tensor) -> Tensor:
        told: Tensor = self.linear(tokens)
        return told


def cell_loss(told: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """Mean cross-entropies of all labels, and the mean distance along x and y times ten; a scalar.

    told: N×…, as `CellHead` gives it. labels: N×6, as indices; UNKNOWN where there is no object. places: N×2.
    """
    *logits, place = torch.split(told.float(), [*map(len, LABELS.values()), PLACE], dim=1)
    there = labels[:, -1] != UNKNOWN
    losses = [cross_entropy(logits[i], labels[:, i]) for i in range(len(OF_ALL))]
    if there.any():
        losses += [cross_entropy(logits[i][there], labels[there, i]) for i in range(len(OF_ALL), len(LABELS))]
        losses.append(10 * (place[there] - places[there]).abs().mean())
    return torch.stack(losses).sum()


def scene_losses(told: Tensor, scenes: Sequence[Sequence[Scene]], rows: int, columns: int) -> Tensor:
    """`cell_loss` of each sample; B. 0 for one whose scenes are not known.

    told: B×n×N×…, of n noises and all of a sample's image tokens. scenes: of the pictures these belong to, in the
    tokens' order; each is rows×columns tokens.
    """
    losses = [told.new_zeros((), dtype=torch.float32)] * len(told)
    for i, own in enumerate(scenes):
        if own:
            pairs = [cell_targets(scene, rows, columns) for scene in own]
            labels, places = (torch.cat(column).repeat(told.shape[1], 1) for column in zip(*pairs, strict=True))
            losses[i] = cell_loss(told[i].flatten(0, 1), labels.to(told.device), places.to(told.device))
    return torch.stack(losses)


def cell_targets(scene: Scene, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Of the cells of a picture, row by row: N×6 labels and N×2 places, as `cell_loss` takes them."""
    width, height = scene.width / columns, scene.height / rows
    labels, places = [], []
    for row in range(rows):
        for column in range(columns):
            o = _mostly(scene.objects, (column * width, row * height, (column + 1) * width, (row + 1) * height))
            told = {"background": scene.background, "tone": scene.tone, "shape": o.shape if o else NOTHING}
            told |= {"color": o.color, "size": o.size, "texture": o.texture} if o else {}
            labels.append([LABELS[name].index(told[name]) if name in told else UNKNOWN for name in LABELS])
            places.append((o.x / scene.width, o.y / scene.height) if o else (0.0, 0.0))
    return torch.tensor(labels), torch.tensor(places)


def _mostly(objects: Sequence[Object], cell: tuple[float, float, float, float]) -> Object | None:
    """The object that covers most of a cell, if any covers enough of it or lies in it with enough of itself."""
    found: Object | None = None
    most = 0.0
    left, top, right, bottom = cell
    for o in objects:
        l2, t2, r2, b2 = o.box
        covered = max(0.0, min(right, r2) - max(left, l2)) * max(0.0, min(bottom, b2) - max(top, t2))
        least = LEAST_COVER * min((right - left) * (bottom - top), (r2 - l2) * (b2 - t2))
        if covered >= max(least, most):
            found, most = o, covered
    return found
