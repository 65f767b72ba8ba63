"""Muon against singular value decompositions and a float64 twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.reference import training as twin
from tests.runs import Toy
from unipic.train.loop import train
from unipic.train.muon import orthogonal
from unipic.train.optim import OptimizerConfig, Weights


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 40), (2, 40, 5), (1, 1, 9)])
def test_singular_vectors_stay_and_values_become_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrices).double().numpy()
    for matrix, made in zip(matrices.double().numpy(), found, strict=True):
        np.testing.assert_allclose(made, twin.orthogonal(matrix), atol=1e-4)
        u, sizes, vt = np.linalg.svd(matrix, full_matrices=False)
        values = np.diag(u.T @ made @ vt.T)
        large = sizes / np.linalg.norm(matrix) > 0.01
        assert large.any()
        assert ((values[large] > 0.67) & (values[large] < 1.25)).all(), values


def test_a_matrix_of_zeros_stays() -> None:
    assert not orthogonal(torch.zeros(2, 3, 4)).any()


def test_layers_are_updated_by_muon_and_all_else_by_adamw() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 2),
            "norm": nn.GroupNorm(2, 4),
            "line": nn.Linear(6, 5),
            "like": nn.Linear(6, 5),  # of one shape with the former: they share a batch of matrices
            "table": nn.Embedding(7, 3),
        }
    )
    config = OptimizerConfig(kind="muon", lr=0.05, weight_decay=0.3, schedule="constant", clip=None)
    weights = Weights({"m": module}, config, None)
    named = dict(module.named_parameters())
    start = {name: p.detach().double().numpy().copy() for name, p in named.items()}
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in named}
    for step in range(8):
        for name, p in named.items():
            p.grad = torch.randn_like(p)
            gradients[name].append(p.grad.double().numpy().copy())
        weights.update(step, 8, 1.0)
    for name, p in named.items():
        decay = 0.0 if p.ndim == 1 else 0.3
        layers = name in ("conv.weight", "line.weight", "like.weight")
        rule = twin.muon if layers else twin.adamw
        wanted = rule(start[name], gradients[name], [0.05] * 8, decay, config)[-1]
        np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-4, atol=1e-5, err_msg=name)


def test_an_interrupted_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    optimizer = {"kind": "muon", "lr": 0.01, "schedule": "constant"}
    train(Toy(optimizer=optimizer), tmp_path / "whole")
    train(Toy(optimizer=optimizer, steps=4), tmp_path / "parts")
    train(Toy(optimizer=optimizer), tmp_path / "parts")
    files = [load_file(tmp_path / run / "model" / "net.safetensors") for run in ("whole", "parts")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
