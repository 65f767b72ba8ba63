"""What the tiny models' sizes must allow, before any training."""

from __future__ import annotations

from pathlib import Path

import torch

from unipic.models import tiny
from unipic.models.find import find_language_model
from unipic.models.mllm import load_mllm


@torch.no_grad()
def test_the_language_model_can_tell_columns_apart(tmp_path: Path) -> None:
    """Of a head's dimensions some turn by a tenth of a radian and more from one column of a picture to the next."""
    tiny.make_mllm(tmp_path, torch.float32, tiny.TO_TRAIN)
    mllm = load_mllm(find_language_model(str(tmp_path)), torch.float32, torch.device("cpu"))
    columns = torch.tensor([[0, 0], [0, 0], [0, 1]])[:, None]  # time, height, width of two tokens
    cos, sin = mllm.model.model.language_model.rotary_emb(torch.zeros(1), columns)
    turned = torch.arccos((cos[0, 0] * cos[0, 1] + sin[0, 0] * sin[0, 1]).clamp(-1, 1))
    assert turned.max() > 0.1
