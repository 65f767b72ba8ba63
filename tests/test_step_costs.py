"""scripts/step_costs.py: its counts against sums by hand, and against tensors that have memory."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from step_cases import Case
from step_costs import counted
from step_counting import Saved, operations

WIDTH, LAYERS, DUAL, TEXT = 1536, 24, 13, 333


def by_hand(image: int) -> int:
    """Operations of a forward of SD3.5-Medium: two a weight and token, four a pair of tokens and width."""
    square = WIDTH**2
    per_image_token = LAYERS * (4 + 8) * square + DUAL * 4 * square
    per_text_token = (LAYERS - 1) * (4 + 8) * square + 3 * square + 4096 * WIDTH  # the last block only reads text
    once = (LAYERS * (6 + 6) - 4 + DUAL * 3 + 2) * square + (256 + 2048 + 2 * WIDTH) * WIDTH  # modulations
    ends = image * 2 * 64 * WIDTH
    attention = 4 * WIDTH * (LAYERS * (image + TEXT) ** 2 + DUAL * image**2)
    return 2 * (per_image_token * image + per_text_token * TEXT + once + ends) + attention


def test_operations_are_those_of_a_sum_by_hand() -> None:
    cost = counted(Case("kontext", side=512))
    assert cost.forward == by_hand(32 * 32)
    assert 2 < cost.backward / cost.forward < 2.2  # fused attention computes its scores again
    assert cost.trained == 2_243_171_520
    saving = counted(Case("kontext", side=512, checkpointing=True))
    assert abs((saving.backward - cost.backward) / cost.forward - 1) < 0.01  # all blocks are computed again
    blocks = LAYERS * (1024 + TEXT) * WIDTH * 2  # their inputs in bf16
    assert blocks < saving.saved < 1.25 * blocks  # with them, the two ends
    assert saving.saved < cost.block < cost.saved / LAYERS * 2


def test_saved_bytes_are_those_of_a_sum_by_hand() -> None:
    """Of x → linear → GELU → linear → square: x, before and after GELU, and what is squared."""
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    saved = Saved([model])
    with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda t: t):
        model(torch.randn(5, 8)).square().sum()
    assert saved.bytes() == 4 * 5 * (8 + 32 + 32 + 4)


def test_a_product_is_two_operations_a_term() -> None:
    assert operations(lambda: torch.randn(3, 5) @ torch.randn(5, 7)) == 2 * 3 * 5 * 7
