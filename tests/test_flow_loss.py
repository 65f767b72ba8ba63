"""More weight on what an edit changes: places by hand, and a stage's loss against its own formula."""

from __future__ import annotations

import math

import pytest
import torch

from tests.test_train_stages import SEED, STAGES, draws_of, stage
from unipic import flow
from unipic.train.dit import velocity_of
from unipic.train.flow_loss import change_weights, flow_losses, times

pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")


def test_changed_places_count_for_more_the_fewer_they_are() -> None:
    source = torch.randn(4, 16, 8, 4, generator=torch.Generator().manual_seed(SEED))
    x0 = source.clone()
    x0[0, :, 3, 2] += 1
    x0[1, :, :4] += 1
    x0[2] += 1
    x0[3, :, 0, 0] += 0.1  # as an autoencoder's own noise
    weights = change_weights(x0, source)
    assert weights.shape == (4, 1, 8, 4)
    expected = torch.ones(4, 1, 8, 4)
    expected[0, 0, 3, 2] = 1 + math.log2(32)
    expected[1, 0, :4] = 2
    torch.testing.assert_close(weights, expected)


def test_weights_are_of_squared_errors() -> None:
    generator = torch.Generator().manual_seed(SEED)
    x0, noise = torch.randn(2, 3, 16, 4, 4, generator=generator)
    weights = torch.rand(3, 1, 4, 4, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.9])
    losses = flow_losses(lambda x, _: 0.5 * x, x0, t, noise, weights)
    for i in range(3):
        x = (1 - t[i]) * x0[i] + t[i] * noise[i]
        errors = (0.5 * x - (noise[i] - x0[i])).double() ** 2
        assert float(losses[i]) == pytest.approx(float((errors * weights[i].double()).sum() / errors.numel()), rel=1e-5)


@pytest.mark.parametrize("kind", ["kontext", "joint"])
def test_a_stage_weighs_edits_alone(kind: str) -> None:
    plain, weighing = (stage(STAGES[kind], weigh_changes=on, noises=2) for on in (False, True))
    (drawn,), (edited,) = (weighing.batch(step, range(4)) for step in (0, 1))
    assert (drawn.task, edited.task) == ("generate", "edit")
    assert plain.losses(drawn, draws_of(drawn)).tolist() == weighing.losses(drawn, draws_of(drawn)).tolist()
    losses = weighing.losses(edited, draws_of(edited))
    x0, (source,) = weighing.latents.of(edited), weighing.latents.of_references(edited)
    weights = change_weights(x0, source)
    assert float(weights.max()) > 1
    draws, expected = draws_of(edited), torch.zeros(4)
    noises = [(draws.normal(*x0.shape[1:]), times(weighing.config.times, draws)) for _ in range(2)]
    dropped = (draws.uniform() < weighing.config.drop_text).tolist()
    texts = ["" if drop else text for drop, text in zip(dropped, edited.texts, strict=True)]
    velocity = velocity_of(weighing.transformer, weighing.encode(texts, edited), weighing.references(edited))
    for noise, t in noises:
        errors = (velocity(flow.interpolate(x0, noise, t), t) - (noise - x0)).square() * weights
        expected += errors.detach().mean(dim=(1, 2, 3)) / 2
    torch.testing.assert_close(losses.detach(), expected, rtol=1e-5, atol=0)
