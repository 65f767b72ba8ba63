"""The third loss of the tiny language model: what its queries can read of a text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.test_train_stages import STAGES, draws_of, stage
from unipic.data.questions import FORESEE, QuestionSource
from unipic.train.cells import NOTHING, UNKNOWN
from unipic.train.slots import LABELS, Slots, Thing, labels_of, things_of
from unipic.world import edits, language
from unipic.world import scene as scenes
from unipic.world.language import TAGS, Group, Prompt
from unipic.world.scene import MOST_OBJECTS


def test_a_prompts_things_are_those_it_names_in_its_order() -> None:
    def said(*include: Group) -> Prompt:
        return Prompt("", TAGS[0], include)

    assert things_of(said(Group("star", 3))) == (Thing("star"),) * 3
    assert things_of(said(Group("letter P", color="red"), Group("ring", color="blue"))) == (
        Thing("P", "red"),
        Thing("ring", "blue"),
    )
    assert things_of(said(Group("heart"), Group("cross", position=("above", 0)))) == (
        Thing("heart"),
        Thing("cross", relation="above"),
    )


@pytest.mark.parametrize("type", ["subject-add", "subject-replace", "color_alter", "subject-remove"])
def test_an_edits_things_are_those_it_makes(type: str) -> None:
    edit = edits.sample(3, "train", type)
    things = things_of(edit)
    assert len(things) == len(set(edit.target.objects) - set(edit.source.objects)) == (type != "subject-remove")
    assert all((thing.shape in edit.instruction) or type == "color_alter" for thing in things)


def test_labels_name_every_thing_of_the_world() -> None:
    for seed in range(50):
        scene = scenes.sample(seed, "train")
        things = things_of(language.prompts(scene, np.random.default_rng(seed)))
        labels = labels_of(things)
        assert len(labels) == MOST_OBJECTS
        for thing, row in zip([*things, *[Thing(NOTHING)] * (MOST_OBJECTS - len(things))], labels, strict=True):
            told = [values[i] if i != UNKNOWN else None for values, i in zip(LABELS.values(), row, strict=True)]
            assert told == list(thing)


def test_the_loss_is_that_of_a_slow_twin() -> None:
    torch.manual_seed(0)
    slots, things = Slots(16), [(Thing("star", "red"), Thing("P", None, "above")), ()]
    states = torch.randn(2, MOST_OBJECTS, 16)
    for own, row, loss in zip(things, states, slots(lambda _: states, things), strict=True):
        total = 0.0
        for labels, state in zip(labels_of(own), row, strict=True):
            logits = torch.split(slots.linear(state), [len(values) for values in LABELS.values()])
            wanted = [torch.tensor(i) for i in labels]
            total += sum(cross_entropy(*pair).item() for pair in zip(logits, wanted, strict=True) if pair[1] != UNKNOWN)
        assert float(loss) == pytest.approx(total / MOST_OBJECTS, rel=1e-5)


def test_the_language_model_learns_to_bind() -> None:
    """After some steps on 16 texts its queries tell which colour goes with which thing."""
    data = {"foresee": 1.0, "plain": 1.0, "limit": 16}
    made = stage({**STAGES["mllm"], "slots": 1.0, "data": data, "batch": 16, "flat": 1.0})
    assert set(made.trained) == {"mllm", "slots"}
    (micro,) = made.batch(0, range(16))
    told = [a for a in micro.asked if a.spec]
    parameters = [p for module in made.trained.values() for p in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    first = last = 0.0
    for step in range(40):
        loss = made._slots(told).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (float(loss) if not step else first), float(loss)
    assert last < first / 4
    assert made.mllm.model.get_input_embeddings().weight.grad.abs().sum() > 0  # not only the queries learn
    whole = made.losses(micro, draws_of(micro))
    without = stage({**STAGES["mllm"], "slots": 0.0, "data": data, "batch": 16, "flat": 1.0})
    without.mllm.model.load_state_dict(made.mllm.model.state_dict())
    slots = torch.zeros(16)
    slots[[i for i, a in enumerate(micro.asked) if a.spec]] = made._slots(told)
    torch.testing.assert_close(whole, without.losses(micro, draws_of(micro)) + slots, rtol=1e-4, atol=1e-4)


def test_plain_scenes_are_foreseen_in_their_share() -> None:
    def captions(plain: float) -> list[str]:
        asked = [QuestionSource(0, foresee=1.0, plain=plain).load(i) for i in range(200)]
        assert all(a.qa.kind == FORESEE for a in asked)
        return [a.qa.answer for a in asked if isinstance(a.spec, Prompt)]

    drawn, plain = captions(0), captions(1)
    assert len(drawn) == len(plain) > 40
    assert sum(map(len, plain)) < sum(map(len, drawn)) / 1.3  # nothing but what the prompt names
