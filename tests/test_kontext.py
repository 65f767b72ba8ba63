"""The transformer against diffusers' own (without references) and against a float64 twin (with them)."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import SD3Transformer2DModel

from tests.reference.sd3 import ReferenceSD3
from unipic.models.kontext import KontextTransformer


def model(seed: int) -> KontextTransformer:
    """A small random transformer: dual attention in some layers, positions of spacing 1, 1/2 or 1/4."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    layers = rng.randint(2, 4)
    transformer = KontextTransformer(
        sample_size=rng.choice([8, 16, 32]),
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=12,
        pos_embed_max_size=16,
        dual_attention_layers=tuple(range(rng.randint(0, layers))),
        qk_norm="rms_norm",
    )
    for name, parameter in transformer.named_parameters():
        if "norm_" in name and parameter.ndim == 1:  # RMS norms start as ones, which would hide a mistake
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return transformer


def inputs(seed: int, references: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """A batch of random shape; every reference has its own size."""
    rng = random.Random(seed)
    side = lambda: 2 * rng.randint(1, 8)  # noqa: E731
    batch = rng.randint(1, 3)
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    named = {
        "hidden_states": normal(batch, 4, side(), side()),
        "encoder_hidden_states": normal(batch, rng.randint(1, 9), 24),
        "pooled_projections": normal(batch, 12),
        "timestep": torch.rand(batch, generator=generator) * 1000,
    }
    return named, [normal(batch, 4, side(), side()) for _ in range(references)]


@pytest.mark.parametrize("seed", range(10))
def test_without_references_it_is_exactly_diffusers(seed: int) -> None:
    ours = model(seed)
    stock = SD3Transformer2DModel.from_config(ours.config)
    stock.load_state_dict(ours.state_dict())
    named, _ = inputs(seed, 0)
    skip = [0] if seed % 3 == 0 else []
    theirs = stock(**named, skip_layers=skip or None, return_dict=False)[0]
    mine = ours(**named, skip_layers=skip)
    assert torch.equal(mine, theirs)

    direction = torch.randn_like(mine)
    (mine * direction).sum().backward()
    (theirs * direction).sum().backward()
    for (name, a), b in zip(ours.named_parameters(), stock.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        assert a.grad is None or torch.equal(a.grad, b.grad), name


@pytest.mark.parametrize("seed", range(30))
def test_it_equals_a_float64_twin(seed: int) -> None:
    """Values and gradients to 1e-5, relative to the largest, over 30 random shapes and 0 to 3 references."""
    ours = model(seed)
    twin = ReferenceSD3(ours.state_dict(), dict(ours.config))
    named, references = inputs(seed, references=seed % 4)
    skip = [1] if seed % 5 == 0 else []
    expected = twin(*named.values(), references, skip)
    got = ours(**named, references=references, skip_layers=skip)
    assert relative(got, expected) <= 1e-5

    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(seed))
    (got * direction).sum().backward()
    (expected * direction.double()).sum().backward()
    largest = max(float(w.grad.abs().max()) for w in twin.weights.values() if w.grad is not None)
    for name, parameter in ours.named_parameters():
        wanted = twin.weights[name].grad
        if parameter.grad is not None:
            assert float((parameter.grad - wanted).abs().max()) <= 1e-5 * largest, name


def test_gradient_checkpointing_changes_nothing() -> None:
    ours, (named, references) = model(3), inputs(3, references=2)
    ours.train()
    plain = torch.autograd.grad(ours(**named, references=references).sum(), list(ours.parameters()), allow_unused=True)
    ours.enable_gradient_checkpointing()
    saved = torch.autograd.grad(ours(**named, references=references).sum(), list(ours.parameters()), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True) if a is not None)


def test_order_of_references_matters_only_by_content() -> None:
    """All share the target's positions, so swapping two references permutes keys and values and no more."""
    ours, (named, references) = model(2), inputs(2, references=2)
    assert relative(ours(**named, references=references), ours(**named, references=references[::-1]).double()) <= 1e-5


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((got.double() - expected).abs().max() / expected.abs().max()).detach())
