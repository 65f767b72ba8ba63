"""The one interface of rewards: samples → scores. A score that cannot be had is None: never 0, never a guess."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL.Image import Image

from unipic.errors import UnipicError


@dataclass(frozen=True)
class Sample:
    """A picture that was made, to be scored.

    text: the prompt, or the instruction. source: the picture that was edited, if one was. spec: what the prompt's
    source knows of it beyond the words (of the world: a Prompt, Dense, Scene or Edit), for rewards that verify.
    verdicts: what rewards have found already that others would find again, by the name of what they ask.
    """

    text: str
    picture: Image = field(repr=False)
    source: Image | None = field(default=None, repr=False)
    spec: Any = field(default=None, repr=False)
    verdicts: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Reward(Protocol):
    """Scores pictures; samples of a group stand side by side, so that what they share can be done once."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        """One score a sample, higher is better; None where it cannot be had. May be called from a thread."""
        ...


@runtime_checkable
class Telling(Protocol):
    """A reward that has more to say than its scores, such as what they have cost."""

    def told(self) -> dict[str, float]:
        """What has been added since this was last asked; always the same names."""
        ...


@dataclass(frozen=True)
class Scores:
    """total: the weighted sums, None where a part is. parts: by name, each reward's own scores."""

    total: list[float | None]
    parts: dict[str, list[float | None]]


class WeightedSum:
    """Several rewards as one. rewards: by name, each with its weight."""

    def __init__(self, rewards: Mapping[str, tuple[float, Reward]]) -> None:
        self.rewards = dict(rewards)

    def score(self, samples: Sequence[Sample], without: Collection[str] = ()) -> Scores:
        """without: the names of those that are not asked."""
        asked = {name: weighed for name, weighed in self.rewards.items() if name not in without}
        parts = {name: _checked(name, reward.score(samples), len(samples)) for name, (_, reward) in asked.items()}
        weights = [weight for weight, _ in asked.values()]
        total = [_sum(weights, scores) for scores in zip(*parts.values(), strict=True)]
        return Scores(total, parts)

    def told(self) -> dict[str, float]:
        """What rewards say beside their scores, by their names."""
        telling = {name: reward for name, (_, reward) in self.rewards.items() if isinstance(reward, Telling)}
        return {f"{name}/{key}": value for name, reward in telling.items() for key, value in reward.told().items()}


def _sum(weights: Sequence[float], scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return math.fsum(w * s for w, s in zip(weights, known, strict=True)) if len(known) == len(scores) else None


def _checked(name: str, scores: Sequence[float | None], count: int) -> list[float | None]:
    """A reward that breaks its promise would poison every group that it takes part in."""
    if len(scores) != count:
        raise UnipicError("a reward gave too many scores or too few", f"{name}: {len(scores)} of {count}", "mend it")
    return [None if score is None or not math.isfinite(score) else float(score) for score in scores]
