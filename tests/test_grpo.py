"""Flow-GRPO on real rollouts of both kinds of models: the ratio, the loss and its gradient against a float64 twin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.sd3 import ReferenceSD3
from tests.test_train_stages import calm, stage, transformer_twin
from unipic import BadInput
from unipic.errors import TryLater
from unipic.rewards.reward import Reward, Sample, WeightedSum
from unipic.train.grpo import Groups, GrpoStage, Part
from unipic.train.loop import Update, advance
from unipic.train.lora import merged, without_adapters
from unipic.train.optim import Weights
from unipic.train.policy import normalised
from unipic.train.processes import Processes
from unipic.train.randomness import Draws

BATCH, GROUP, STEPS, TRAINED = 16, 8, 4, 3
RAW = {
    "stage": "grpo",
    "batch": BATCH,
    "group": GROUP,
    "lora": {"rank": 4, "alpha": 8},
    "rewards": {"world": {"kind": "world"}},
    "optimizer": {"lr": 3e-4, "betas": [0.9, 0.999], "weight_decay": 0.0, "schedule": "constant"},
    "sampler": {"steps": STEPS, "trained": TRAINED, "guidance_scale": 3.0},
}
ONE = Processes("cpu", "fp32")


class Redness:
    """A reward that every picture differs in; of some there is none."""

    def __init__(self, missing: Sequence[int] = ()) -> None:
        self.missing, self.seen = set(missing), 0

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        scores: list[float | None] = []
        for sample in samples:
            red, green, _ = sample.picture.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
            scores.append(None if self.seen in self.missing else float(red - green + 0.01 * self.seen))
            self.seen += 1
        return scores


class Same:
    """A reward that no picture differs in."""

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        return [0.5] * len(samples)


def alone(reward: Reward) -> WeightedSum:
    """As a recipe's only reward."""
    return WeightedSum({"it": (1.0, reward)})


def grpo(model: str, task: str, **more: Any) -> GrpoStage:
    """With adapters that already do something."""
    data = {"tasks": [task], "phases": [{"resolution": 64}], "sources": [{"kind": "world", "texts": {"prompt": 1}}]}
    made: GrpoStage = calm(stage({**RAW, "model": model}, data=data, **more))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in made.transformer.named_parameters():
            if ".lora_B." in name:
                p.add_(0.1 * torch.randn_like(p))
    made.rewards = alone(Redness())
    return made


def rolled(made: GrpoStage, step: int = 0) -> tuple[Groups, list[Update]]:
    (groups,) = made.batch(step, range(BATCH))
    return groups, made.rollout([groups], step, ONE)


CASES = [("tiny-kontext", "generate"), ("tiny-kontext", "edit"), ("tiny", "generate"), ("tiny", "edit")]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("model", "task"), CASES)
def test_the_first_update_s_ratio_is_one(model: str, task: str, merge: bool) -> None:
    made = grpo(model, task, merge=merge)
    _, updates = rolled(made)
    assert len(updates) == 2
    for update in updates:
        for micro in update.micros:
            made.losses(micro, None)  # type: ignore[arg-type]
    ratios = made.notes.values["ratio_off"]
    assert len(ratios) == BATCH * TRAINED
    assert max(ratios) <= 1e-5


def test_merged_in_bf16_ratios_would_be_off_so_that_is_refused() -> None:
    with pytest.raises(BadInput, match="merge: true"):
        grpo("tiny-kontext", "generate", merge=True, dtype="bf16")


# --- against the twin -------------------------------------------------------------------------------------------------


def twin_losses(made: GrpoStage, micro: Part, own: ReferenceSD3, before: ReferenceSD3) -> tuple[Tensor, Tensor, Tensor]:
    """In float64, a sample at a time: −min(r·A, clip(r)·A) + β·‖mean − mean_before‖² / (2s² · dimensions).

    And its log-probabilities, and the KL without β. Of CPS that is ‖mean − mean_before‖² / dimensions. Guarded, r is
    exp(z·(mean − mean then)), averaged inside.
    """
    config, walked, given = made.config, made.rolled.trajectory.steps[micro.step], made.rolled.given
    sigmas, i = made.sampler.sigmas.double().tolist(), micro.step
    a, b = sigmas[i], sigmas[i + 1]
    cps = config.sampler.kind == "cps"
    s = config.sampler.noise_level * math.sqrt(a / (1 - (sigmas[1] if a == 1 else a)))
    std = b * math.sin(config.sampler.noise_level * math.pi / 2) if cps else s * math.sqrt(a - b)
    found = []
    for at in micro.at:
        x, next_x = walked.x[at][None].double(), walked.next_x[at][None].double()
        references = [r[at][None].double() for r in given.references]

        def mean(net: ReferenceSD3, x: Tensor = x, at: int = at, references: list[Tensor] = references) -> Tensor:
            def v(condition: Any) -> Tensor:
                tokens, pooled = condition.tokens[at][None].double(), condition.pooled[at][None].double()
                return net(x, tokens, pooled, torch.tensor([1000 * a]), references)

            assert given.negative is not None
            negative = v(given.negative)
            negative = negative if config.sampler.negative_gradient else negative.detach()
            guided = negative + config.sampler.guidance_scale * (v(given.condition) - negative)
            if cps:
                return (1 - b) * (x - a * guided) + math.sqrt(b**2 - std**2) * (x + (1 - a) * guided)
            score = -(x + (1 - a) * guided) / a
            return x + (guided - s**2 / 2 * score) * (b - a)

        m = mean(own)
        log_prob = (-((next_x - m) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2).mean()
        if cps:
            log_prob = -((next_x - m) ** 2).mean()
        then = walked.mean[at][None].double()
        log_ratio = log_prob - walked.log_prob[at].double()
        ratio = (((next_x - then) / std * (m - then)).mean() if config.guard else log_ratio).exp()
        advantage = float(made.rolled.advantages[at])
        bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
        loss = -torch.minimum(ratio * advantage, bounded * advantage)
        width = math.sqrt(0.5) if cps else std if config.kl == "exact" else s
        kl = ((m - mean(before).detach()) ** 2).mean() / (2 * width**2)
        found.append((loss + config.beta * kl, log_prob, kl))
    losses, log_probs, kls = map(torch.stack, zip(*found, strict=True))
    return losses, log_probs, kls


OPTIONS: list[dict[str, Any]] = [
    {},
    {"kl": "exact", "sampler": {**RAW["sampler"], "negative_gradient": True}},  # type: ignore[dict-item]
    {"guard": True},
    {"sampler": {**RAW["sampler"], "kind": "cps"}},  # type: ignore[dict-item]
    {"guard": True, "sampler": {**RAW["sampler"], "kind": "cps"}},  # type: ignore[dict-item]
    {"sampler": {**RAW["sampler"], "window": 2}},  # type: ignore[dict-item]
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("model", "task"), [("tiny-kontext", "edit"), ("tiny", "generate"), ("tiny", "edit")])
def test_losses_and_gradients_are_those_of_a_float64_twin(model: str, task: str, options: dict[str, Any]) -> None:
    """On fresh rollouts, and once the weights have moved: then ratios differ and are clipped."""
    made = grpo(model, task, micro_batch=4, beta=0.5, clip=1e-4, **options)
    _, updates = rolled(made)
    last = len(made.rolled.trajectory.steps) - 1
    first, second = updates[0].micros[last], updates[1].micros[1]
    compare(made, first)
    with torch.no_grad():
        for name, p in made.transformer.named_parameters():
            if ".lora_B." in name:
                p.add_(0.2 * torch.randn_like(p))
    made.notes.clear()
    compare(made, second)
    assert max(made.notes.values["clipped"]) == 1


def compare(made: GrpoStage, micro: Part) -> None:
    own, leaves = transformer_twin(made.base)
    before = ReferenceSD3(
        {n.replace(".base_layer.", "."): w for n, w in made.transformer.state_dict().items() if ".lora_" not in n},
        dict(made.transformer.config),
    )
    wanted, log_probs, kls = twin_losses(made, micro, own, before)
    losses = made.losses(micro, None)  # type: ignore[arg-type]
    if micro.fresh:
        walked = made.rolled.trajectory.steps[micro.step].log_prob[list(micro.at)]
        torch.testing.assert_close(walked.double(), log_probs.detach(), rtol=1e-5, atol=1e-5)
    noted = torch.tensor(made.notes.values["kl"], dtype=torch.float64)
    torch.testing.assert_close(noted, kls.detach(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(losses.detach().double(), wanted.detach(), rtol=1e-4, atol=2e-5)
    losses.sum().backward()
    wanted.sum().backward()
    largest = max(float(leaf.grad.abs().max()) for leaf in leaves.values() if leaf.grad is not None)
    assert largest > 0
    for name, p in made.transformer.named_parameters():
        if ".lora_" in name:
            assert p.grad is not None
            assert leaves[name].grad is not None
            assert float((p.grad.double() - leaves[name].grad).abs().max()) <= 1e-3 * largest, name
            p.grad = None


# --- rollouts ---------------------------------------------------------------------------------------------------------


def test_a_rollout_does_not_depend_on_how_it_is_split() -> None:
    whole, split = (grpo("tiny-kontext", "edit", rollout_batch=size) for size in (None, 3))
    for made in (whole, split):
        rolled(made, step=3)
    a, b = whole.rolled, split.rolled
    assert a.trajectory.steps.keys() == b.trajectory.steps.keys() == set(range(TRAINED))
    for i, walked in a.trajectory.steps.items():
        torch.testing.assert_close(walked.next_x, b.trajectory.steps[i].next_x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.advantages, b.advantages, rtol=0.02, atol=0.02)  # of pictures in whole grey levels


def test_members_of_a_group_share_their_prompt_and_nothing_else() -> None:
    made = grpo("tiny-kontext", "edit")
    groups, _ = rolled(made)
    assert len(groups.prompts) == BATCH // GROUP
    assert groups.of == (0,) * GROUP + (1,) * GROUP
    given, starts = made.rolled.given, made.rolled.trajectory.steps[0].x
    assert torch.equal(given.condition.tokens[0], given.condition.tokens[GROUP - 1])
    assert not torch.equal(given.condition.tokens[0], given.condition.tokens[GROUP])
    assert torch.equal(given.references[0][0], given.references[0][GROUP - 1])
    assert len({tuple(point.flatten()[:4].tolist()) for point in starts}) == BATCH
    shares = [made.batch(1, range(start, start + 4))[0] for start in (0, 4, 8, 12)]
    assert [share.of for share in shares] == [(0,) * 4] * 4
    assert shares[0].ids == shares[1].ids != shares[2].ids == shares[3].ids


def test_each_sample_is_learnt_from_once_and_what_has_no_score_never() -> None:
    made = grpo("tiny-kontext", "generate", micro_batch=3)
    made.rewards = alone(Redness(missing=[0, 1, 2, 3, 4, 10]))  # 3 of the first group are too few
    _, updates = rolled(made)
    seen = [(micro.step, at) for update in updates for micro in update.micros for at in micro.at]
    kept = [at for at in range(GROUP, BATCH) if at != 10]
    assert sorted(seen) == [(i, at) for i in range(TRAINED) for at in kept]
    assert [update.terms for update in updates] == [3 * TRAINED, 4 * TRAINED]
    told = made.told(ONE)
    assert told["missing"] == pytest.approx(6 / 16)
    assert (told["groups_too_few"], told["groups_alike"]) == (0.5, 0)


def test_a_rollout_without_differences_changes_nothing() -> None:
    made = grpo("tiny-kontext", "generate")
    made.rewards = alone(Same())
    weights = Weights(made.trained, made.config.optimizer, made.config.ema)
    before = [p.detach().clone() for p in weights.all()]
    record = advance(made, weights, made.batch(0, range(BATCH)), 0, ONE)
    assert all(torch.equal(a, b) for a, b in zip(before, weights.all(), strict=True))
    assert record["groups_alike"] == 1
    assert not record.get("skipped")


def test_a_step_is_two_updates_by_the_paper_s_optimizer() -> None:
    made = grpo("tiny-kontext", "generate", ema={"decay": 0.5})
    weights = Weights(made.trained, made.config.optimizer, made.config.ema)
    record = advance(made, weights, made.batch(0, range(BATCH)), 0, ONE)
    steps = {float(state["step"]) for o in weights.optimizers for state in o.state.values()}
    assert steps == {2}
    assert record["step"] == 1
    assert record["lr"] == 3e-4
    assert record["reward"] == pytest.approx(sum(made.notes.values["reward"]) / BATCH)


# --- options on the same rollout --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"kind": "cps"}, {"window": 2}, {"window": 1, "window_starts": 1}])
@pytest.mark.parametrize("guard", [False, True])
def test_variants_begin_with_a_ratio_of_one(options: dict[str, Any], guard: bool) -> None:
    made = grpo("tiny-kontext", "edit", guard=guard, sampler={**RAW["sampler"], **options})  # type: ignore[dict-item]
    _, updates = rolled(made)
    for micro in (micro for update in updates for micro in update.micros):
        made.losses(micro, None)  # type: ignore[arg-type]
    assert max(made.notes.values["ratio_off"]) <= 1e-5
    steps = set(made.rolled.trajectory.steps)
    assert len(steps) == options.get("window", TRAINED)
    assert updates[0].terms == BATCH // 2 * len(steps)


def test_a_group_shares_its_way_to_the_window() -> None:
    """The whole way before it from one noise, without any other; after its random steps the members differ."""
    made = grpo("tiny-kontext", "edit", sampler={**RAW["sampler"], "window": 1})  # type: ignore[dict-item]
    begun = {made.sampler.noisy(0, step).start for step in range(50)}
    assert begun == {0, 1}
    step = next(step for step in range(50) if made.sampler.noisy(0, step).start == 1)
    made.config = made.config.model_copy(update={"seed": 0})
    groups, _ = rolled(made, step)
    (walked,) = made.rolled.trajectory.steps.values()
    for first in (0, GROUP):
        members = walked.x[first : first + GROUP]
        assert torch.equal(members, members[:1].expand_as(members))
        assert len({float(x.sum()) for x in walked.next_x[first : first + GROUP]}) == GROUP
        noise = Draws(0, [groups.numbers[first]], torch.device("cpu")).normal(*walked.x.shape[1:])
        with torch.no_grad():
            alone = made.sampler.follow(made.transformer, made.rolled.given.at([first]), noise, range(1))
        torch.testing.assert_close(alone, members[:1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(walked.x[0], walked.x[GROUP])


def test_guarded_ratios_are_neither_biased_nor_wider_at_late_steps() -> None:
    """Log-ratios of Gaussians that moved by the same share of their deviation: plain ones lean below 0."""
    torch.manual_seed(0)
    for std in (0.05, 0.5):
        old, moved = torch.zeros(4000, 1, 1, 1), torch.full((4000, 1, 1, 1), 0.02)
        drawn = old + std * torch.randn(4000, 1, 1, 1)
        plain = ((-((drawn - moved) ** 2) + (drawn - old) ** 2) / (2 * std**2)).flatten()
        guarded = normalised(plain, moved, old, torch.tensor(std), torch.tensor(1 / (2 * std**2)))
        cps = (-((drawn - moved) ** 2) + (drawn - old) ** 2).flatten()  # its log-probability has no 1 / 2·std²
        torch.testing.assert_close(normalised(cps, moved, old, torch.tensor(std), torch.tensor(1.0)), guarded)
        bias = 0.02**2 / (2 * std**2)
        assert float(plain.mean()) == pytest.approx(-bias, abs=4 * 0.02 / std / math.sqrt(4000))
        assert float(guarded.mean()) == pytest.approx(0, abs=4 * 0.02 / math.sqrt(4000))
        assert float(guarded.std()) == pytest.approx(0.02, rel=0.1)  # whatever the deviation


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_merged_adapters_are_the_same_function_and_leave_no_trace() -> None:
    made = grpo("tiny-kontext", "generate")
    rolled(made)
    given, x = made.rolled.given, made.rolled.trajectory.steps[1].x
    with torch.no_grad():
        before = {name: p.clone() for name, p in made.transformer.named_parameters()}
        beside = made.sampler.velocity(made.transformer, given, 1, x)[0]
        with merged(made.transformer):
            within = made.sampler.velocity(made.transformer, given, 1, x)[0]
        with without_adapters(made.transformer):
            base = made.sampler.velocity(made.transformer, given, 1, x)[0]
        again = made.sampler.velocity(made.transformer, given, 1, x)[0]
    torch.testing.assert_close(within, beside, rtol=1e-4, atol=1e-4)
    assert float((base - beside).abs().max()) > 1e-2
    assert torch.equal(again, beside)
    assert all(torch.equal(before[name], p) for name, p in made.transformer.named_parameters())
    assert all(p.requires_grad == (".lora_" in name) for name, p in made.transformer.named_parameters())


@pytest.mark.parametrize("task", ["generate", "edit"])
def test_folded_adapters_have_the_gradients_of_those_beside(task: str) -> None:
    made = grpo("tiny-kontext", task)
    _, updates = rolled(made)
    assert made.folds
    found = {}
    for made.folds in (True, False):
        for p in made.transformer.parameters():
            p.grad = None
        for micro in updates[1].micros:
            made.losses(micro, None).sum().backward()  # type: ignore[arg-type]
        assert all((p.grad is not None) == (".lora_" in name) for name, p in made.transformer.named_parameters())
        found[made.folds] = {n: p.grad for n, p in made.transformer.named_parameters() if p.grad is not None}
    largest = max(float(grad.abs().max()) for grad in found[False].values())
    for name, grad in found[True].items():
        torch.testing.assert_close(grad, found[False][name], rtol=1e-4, atol=1e-5 * largest, msg=name)
    assert not any("forward" in vars(layer) for layer in made.transformer.modules())


def test_checkpointed_layers_are_not_folded() -> None:
    """They are computed again in the backward pass."""
    checkpointed = grpo("tiny-kontext", "generate", gradient_checkpointing=True)
    assert not checkpointed.folds
    _, updates = rolled(checkpointed)
    checkpointed.losses(updates[0].micros[0], None).sum().backward()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"batch": 20}, "groups of 8"),
        ({"updates": 3}, "3 updates"),
        ({"sampler": {"steps": 4, "trained": 5}}, "5 steps cannot be learnt from"),
        (
            {"sampler": {"steps": 4, "trained": 3, "window": 1, "window_starts": 4}},
            "before level 4, and the first 3 are learnt from",
        ),
        ({"model": "tiny-kontext", "mllm": "tiny"}, "no language model"),
        ({"rewards": {}}, "rewards"),
        ({"group": 3}, "group"),
    ],
)
def test_bad_settings_are_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        stage({**RAW, **more}, place=False)


def test_what_a_recipe_names_of_a_default_leaves_the_rest_of_it() -> None:
    made = stage({**RAW, "optimizer": {"lr": 1e-4}, "ema": {"decay": 0.5}}, place=False)
    optimizer, ema = made.config.optimizer, made.config.ema
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay) == (1e-4, (0.9, 0.999), 0)  # paper §4.1
    assert (optimizer.schedule, ema.decay, ema.every) == ("constant", 0.5, 8)
    followed = stage({**RAW, "stage": "nft", "sampler": {"steps": 5}}, place=False)  # fewer than grpo's trained ones
    assert followed.config.sampler.guidance_scale == 1


@pytest.mark.parametrize(("silent", "step", "code"), [("world", 0, 2), ("judge", 0, 75), ("world", 1, 75)])
def test_a_rollout_without_a_score_ends_the_run(silent: str, step: int, code: int) -> None:
    """As a mistake only where nothing is lost by it, and no other time would bring a score."""
    judge = {"kind": "judge", "model": "m", "base_url": "http://127.0.0.1:9/v1", "key_env": None}
    made = grpo("tiny-kontext", "generate", rewards={"world": {"kind": "world"}, "judge": judge})
    rewards = {name: Redness(missing=range(2 * BATCH) if name == silent else ()) for name in ("world", "judge")}
    made.rewards = WeightedSum({name: (1.0, reward) for name, reward in rewards.items()})
    with pytest.raises(TryLater if code == 75 else BadInput, match=f"none of the {BATCH} pictures") as told:
        rolled(made, step)
    assert told.value.exit_code == code


def test_draws_of_a_rollout_are_each_sample_s_own() -> None:
    """The same number draws the same noise, whichever process has it."""
    one, other = (Draws(5, numbers, torch.device("cpu")).normal(2, 2) for numbers in ((7, 8), (8, 9)))
    assert torch.equal(one[1], other[0])
