"""The alarm of reward hacking, on curves whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from unipic.train.watch import WINDOW, Watch


def alarm(trained: np.ndarray, held_out: np.ndarray) -> int | None:
    """The step at which it sounds."""
    watch = Watch()
    return next((i for i, pair in enumerate(zip(trained, held_out, strict=True)) if watch.add(*map(float, pair))), None)


@pytest.mark.parametrize("seed", range(20))
def test_a_rising_reward_with_a_falling_held_out_one_raises_it(seed: int) -> None:
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 60)
    sounded = alarm(0.3 + 0.5 * t + 0.03 * rng.normal(size=60), 0.6 - 0.4 * t + 0.03 * rng.normal(size=60))
    assert sounded is not None
    assert sounded >= 2 * WINDOW - 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("rise", "fall"), [(0.5, -0.3), (0.5, 0.0), (0.5, 0.08), (0.0, 0.4), (-0.3, 0.4), (0.0, 0.0)])
def test_nothing_else_does(seed: int, rise: float, fall: float) -> None:
    """Both rise; one rises alone; the held-out one falls by less than a fifth; both fall; noise."""
    rng, t = np.random.default_rng(seed), np.linspace(0, 1, 60)
    assert alarm(0.5 + rise * t + 0.01 * rng.normal(size=60), 0.6 - fall * t + 0.01 * rng.normal(size=60)) is None
