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
    with frugal.parts.text.use(release=True) as encoders:
        remembered = weakref.ref(encoders.t5)
    del encoders
    gc.collect()
    assert remembered() is None
    assert frugal.parts.text.loaded is None
    assert difference(plain, frugal) == 0
    assert frugal.parts.transformer.loaded is not None


def three_jobs(system: UniPic) -> tuple[np.ndarray, np.ndarray, str]:
    generated = system.generate("a red circle", steps=2)[0]
    source = UniPic.from_pretrained("tiny", device="cpu").generate("a ring", steps=1)[0]
    edited = system.edit(source, "make it blue", references=[source], steps=2)[0]
    answer = system.describe(source, "what is this", max_new_tokens=3) if system.parts.mllm_folder else "none"
    return np.asarray(generated, float), np.asarray(edited, float), answer


@pytest.mark.parametrize("model", ["tiny", "tiny-kontext"])
@pytest.mark.parametrize("options", [{"dtype": "bf16"}, {"dtype": "fp16"}, {"quantize": "fp8"}], ids=str)
def test_lower_precision_is_close(model: str, options: dict[str, str]) -> None:
    """In all three jobs. A random model amplifies rounding; bf16 has 3 digits, fp8 one or two."""
    full, lower = (three_jobs(UniPic.from_pretrained(model, device="cpu", **o)) for o in ({}, options))
    for a, b in zip(full[:2], lower[:2], strict=True):
        assert 0 < np.abs(a - b).mean() < 25
    assert lower[2]


def test_fp8_weights_are_eight_bits_wide() -> None:
    system = UniPic.from_pretrained("tiny", device="cpu", quantize="fp8")
    with system.parts.transformer.use() as transformer:
        assert transformer.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    with pytest.raises(BadInput, match="8-bit"):
        system.save_pretrained("never-written")


def test_int8_weights() -> None:
    pytest.importorskip("torchao", reason="the extra `quant` is not installed")
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64)).requires_grad_(False)
    x = torch.randn(2, 64)
    wanted = layer(x)
    quantize_weights(layer, "int8", torch.float32)
    assert 0 < float((layer(x) - wanted).abs().max()) < 0.1
    full, eighth = (three_jobs(UniPic.from_pretrained("tiny", device="cpu", quantize=q)) for q in ("none", "int8"))
    for a, b in zip(full[:2], eighth[:2], strict=True):
        assert 0 < np.abs(a - b).mean() < 25


def test_describing_twice_with_offloading_reads_the_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    system = UniPic.from_pretrained("tiny", device="cpu", offload="model")
    picture = UniPic.from_pretrained("tiny", device="cpu").generate("a ring", steps=1)[0]
    system.describe(picture, max_new_tokens=1)
    first = system.parts.mllm.loaded
    system.describe(picture, max_new_tokens=1)
    assert first is not None
    assert system.parts.mllm.loaded is first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("offload", ["none", "model", "group"])
@pytest.mark.parametrize("model", ["tiny", "tiny-kontext"])
def test_cuda(model: str, offload: str) -> None:
    """The seed's noise differs between devices; offloading must not."""
    still, moving = (three_jobs(UniPic.from_pretrained(model, device="cuda", offload=o)) for o in ("none", offload))
    for a, b in zip(still[:2], moving[:2], strict=True):
        assert np.abs(a - b).mean() < 1
    assert still[2] == moving[2]
