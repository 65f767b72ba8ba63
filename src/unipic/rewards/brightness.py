"""A reward that asks to be hacked: how bright a picture is, whatever it shows. To see the alarm work."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unipic.rewards.reward import Sample


class BrightnessReward:
    """Mean luma, 0 to 1."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(np.asarray(sample.picture.convert("L")).mean() / 255) for sample in samples]
