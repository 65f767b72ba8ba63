"""Devices, precisions, offloading and 8-bit weights, as far as this machine has them."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from unipic import BadInput, UniPic
from unipic.models.placement import Placement, quantize_weights


def difference(a: UniPic, b: UniPic) -> float:
    pictures = [np.asarray(s.generate("a red circle", steps=2)[0], dtype=float) for s in (a, b)]
    return float(np.abs(pictures[0] - pictures[1]).mean())


def test_words_of_the_command_line() -> None:
    auto = Placement.choose()
    assert auto.dtype == {"cpu": torch.float32, "cuda": torch.bfloat16, "mps": torch.float16}[auto.device.type]
    assert Placement.choose("cpu", "bf16").dtype == torch.bfloat16
    for wrong in ({"device": "tpu"}, {"dtype": "fp64"}, {"offload": "disk"}, {"quantize": "int4"}):
        with pytest.raises(BadInput, match="choose"):
            Placement.choose(**wrong)


@pytest.mark.parametrize("offload", ["model", "group"])
def test_offloading_forgets_encoders_and_changes_nothing(offload: str) -> None:
    plain = UniPic.from_pretrained("tiny-kontext", device="cpu")
    frugal = UniPic.from_pretrained("tiny-kontext", device="cpu", offload=offload)
    with frugal.parts.text.use() as encoders:
        remembered = weakref.ref(encoders.t5)
    del encoders
    gc.collect()
    assert remembered() is None
    assert frugal.parts.text.loaded is None
    assert difference(plain, frugal) == 0
    assert frugal.parts.transformer.loaded is not None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_close(dtype: str) -> None:
    """A random model amplifies rounding; bf16 has 3 digits."""
    full, half = (UniPic.from_pretrained("tiny", device="cpu", dtype=d) for d in ("fp32", dtype))
    assert difference(full, half) < 12


def test_fp8_weights() -> None:
    full, eighth = (UniPic.from_pretrained("tiny", device="cpu", quantize=q) for q in ("none", "fp8"))
    assert 0 < difference(full, eighth) < 25
    with eighth.parts.transformer.use() as transformer:
        linear = transformer.transformer_blocks[0].attn.to_q
        assert linear.weight.dtype == torch.float8_e4m3fn
    with pytest.raises(BadInput, match="8-bit"):
        eighth.save_pretrained("never-written")


def test_int8_weights() -> None:
    pytest.importorskip("torchao", reason="the extra `quant` is not installed")
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64))
    x = torch.randn(2, 64)
    wanted = layer(x)
    quantize_weights(layer, "int8", torch.float32)
    assert 0 < float((layer(x) - wanted).abs().max().detach()) < 0.1
    full, eighth = (UniPic.from_pretrained("tiny", device="cpu", quantize=q) for q in ("none", "int8"))
    assert 0 < difference(full, eighth) < 25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("offload", ["none", "model", "group"])
def test_cuda(offload: str) -> None:
    cpu = UniPic.from_pretrained("tiny", device="cpu")
    cuda = UniPic.from_pretrained("tiny", device="cuda", dtype="fp32", offload=offload)
    assert cuda.generate("a ring", steps=2)[0].size == cpu.generate("a ring", steps=2)[0].size
