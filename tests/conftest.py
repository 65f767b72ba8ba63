"""Shared by all tests: one thread a process, and the embedded models opened once."""

from __future__ import annotations

import pytest
import torch

from unipic import UniPic

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def metaquery() -> UniPic:
    return UniPic.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="session")
def kontext() -> UniPic:
    return UniPic.from_pretrained("tiny-kontext", device="cpu")


@pytest.fixture(params=["tiny-kontext", "tiny"])
def system(request: pytest.FixtureRequest, kontext: UniPic, metaquery: UniPic) -> UniPic:
    """Either of the embedded models."""
    return kontext if request.param == "tiny-kontext" else metaquery
