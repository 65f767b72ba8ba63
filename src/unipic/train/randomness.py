"""Random numbers of training samples: each sample's are a function of seed and number alone.

So they do not depend on how a batch is split, on how many processes share it, or on interruptions, and a run has no
random state to save. Philox is counter-based: no two samples share a stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Draws:
    """The streams of a batch's samples, read in the order of the calls.

    seed: of the run. numbers: of the samples, counted over the whole run. device: where the numbers are wanted.
    """

    def __init__(self, seed: int, numbers: Sequence[int], device: torch.device) -> None:
        self.device = device
        self._streams = [np.random.Generator(np.random.Philox(key=np.array([seed, n], np.uint64))) for n in numbers]

    def normal(self, *shape: int) -> Tensor:
        """B×shape standard normal numbers, float32; B of them without a shape."""
        drawn = [stream.standard_normal(shape, np.float32) for stream in self._streams]
        return torch.from_numpy(np.stack(drawn)).to(self.device)

    def uniform(self) -> Tensor:
        """B numbers in [0, 1), float32."""
        return torch.tensor([stream.random(dtype=np.float32) for stream in self._streams], device=self.device)
