"""What can be read of a text through queries: a third loss for a language model that starts from nothing.

A published language model has read enough to know which colour goes with which thing. A small one that learnt from
answers alone knows it while it answers, not at queries behind a prompt, where MetaQuery reads. So some learnable tokens
stand there, one for each thing that a text asks for, and a linear head tells from each what that is. Tokens and head
are thrown away afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unipic.train.cells import NOTHING, UNKNOWN
from unipic.world.edits import Edit
from unipic.world.language import Prompt
from unipic.world.scene import COLORS, LETTERS, MOST_OBJECTS, RELATIONS, SHAPES

LABELS = {"shape": (NOTHING, *SHAPES, *LETTERS), "color": tuple(COLORS), "relation": (NOTHING, *RELATIONS)}


class Thing(NamedTuple):
    """color: None where it is left open, or there is nothing. relation: to the thing before it, or NOTHING."""

    shape: str
    color: str | None = None
    relation: str = NOTHING


def things_of(spec: Prompt | Edit) -> tuple[Thing, ...]:
    """What a prompt names, in its order; of an edit the things that are there afterwards and were not before."""
    if isinstance(spec, Edit):
        return tuple(Thing(o.shape, o.color) for o in spec.target.objects if o not in spec.source.objects)
    return tuple(
        Thing(group.name.removeprefix("letter "), group.color, group.position[0] if group.position else NOTHING)
        for group in spec.include
        for _ in range(group.count)
    )


class Slots(nn.Module):
    """MOST_OBJECTS tokens of the language model's width, and the head that reads its states there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(MOST_OBJECTS, width) / width**0.5)
        self.linear = nn.Linear(width, sum(map(len, LABELS.values())))

    def forward(self, read: Callable[[Tensor], Tensor], things: Sequence[tuple[Thing, ...]]) -> Tensor:
        """Cross-entropies of what is known, over MOST_OBJECTS; B. read: of the queries the states there,
        B×MOST_OBJECTS×width; called within, where queries that are sharded are whole.
        """
        states = read(self.queries)
        logits = torch.split(self.linear(states).float(), [*map(len, LABELS.values())], dim=-1)
        labels = torch.tensor([labels_of(own) for own in things], device=states.device)
        losses = [
            cross_entropy(each.transpose(1, 2), labels[:, :, i], ignore_index=UNKNOWN, reduction="none").mean(dim=1)
            for i, each in enumerate(logits)
        ]
        return torch.stack(losses).sum(dim=0)


def labels_of(things: tuple[Thing, ...]) -> list[list[int]]:
    """MOST_OBJECTS×3 indices of LABELS; UNKNOWN for what is left open."""
    rows = []
    for shape, color, relation in [*things, *[Thing(NOTHING)] * (MOST_OBJECTS - len(things))]:
        told = (shape, color, relation)
        rows.append(
            [UNKNOWN if one is None else LABELS[name].index(one) for name, one in zip(LABELS, told, strict=True)]
        )
    return rows
