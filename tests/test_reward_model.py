"""EditReward: prompt, states and head against transformers' own forward; groups, folders, and the reward itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from unipic import BadModel, UniPic
from unipic.errors import BadInput
from unipic.models.assembly import Changed, assemble
from unipic.models.find import find_model
from unipic.models.inventory import report_of
from unipic.models.mllm import MLLM
from unipic.models.reward_model import OUTPUTS, QUESTION, Edited, RewardModel, load_reward_model, new_head
from unipic.models.weights import write_tensors
from unipic.rewards.configs import EditRewardConfig
from unipic.rewards.reward import Sample

CPU = torch.device("cpu")


@pytest.fixture
def mllm(metaquery: UniPic) -> MLLM:
    with metaquery.parts.mllm.use() as part:
        return part


@pytest.fixture
def model(mllm: MLLM) -> RewardModel:
    model = RewardModel(mllm, new_head(mllm.width, 0))
    with torch.no_grad():
        model.net.head.norm.weight.add_(torch.linspace(-0.5, 0.5, mllm.width))
        spread = model.predict(groups()).std(dim=0)
        model.net.head.scores.weight.mul_((0.2 / spread)[:, None])  # scores that differ, most within the bounds
        model.net.head.scores.bias.add_(0.5 - model.predict(groups()).mean(dim=0))
    return model


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def groups() -> list[Edited]:
    """Of one, three and two results, of several sizes and lengths."""
    several = (picture(3), picture(2, 96, 64), picture(4))
    return [
        Edited(picture(0), "make it blue", (picture(1),)),
        Edited(picture(2, 96, 64), "Remove the large red star and <|im_end|>", several),
        Edited(picture(5, 64, 96), "add a ring", (picture(6, 128, 96), picture(7))),
    ]


def alone(edits: list[Edited]) -> list[Edited]:
    return [Edited(e.source, e.instruction, (result,)) for e in edits for result in e.results]


@torch.no_grad()
def plain(model: RewardModel, edit: Edited) -> Tensor:
    """A whole prompt through transformers' own model, positions and all; the head by its formula."""
    mllm, (result,) = model.mllm, edit.results
    inputs = [mllm.image_processor(images=[p], return_tensors="pt") for p in (edit.source, result)]
    before, after = (np.asarray(p, np.int16) for p in (edit.source.resize(result.size), result))
    changed = Image.fromarray(np.abs(before - after).astype(np.uint8))
    second = mllm.image_processor(images=[changed], return_tensors="pt").pixel_values
    for patch, (shown, apart) in enumerate(zip(inputs[1].pixel_values.clone(), second, strict=True)):
        pairs = zip(shown.split(2 * 14 * 14), apart.split(2 * 14 * 14), strict=True)  # of each colour two frames
        inputs[1].pixel_values[patch] = torch.cat([torch.cat([b[: 14 * 14], a[14 * 14 :]]) for b, a in pairs])
    shown = ["<|image_pad|>" * (int(i.image_grid_thw.prod()) // 4) for i in inputs]
    shown = [f"<|vision_start|>{pads}<|vision_end|>" for pads in shown]
    tokenizer, words = mllm.tokenizer, edit.instruction
    ids = [
        *tokenizer("<|im_start|>user\n").input_ids,
        *tokenizer(words + "\n", split_special_tokens=True).input_ids,
        *tokenizer(f"{shown[0]}{shown[1]}{QUESTION}<|im_end|>\n<|im_start|>assistant\n").input_ids,
    ]
    output = mllm.model(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        mm_token_type_ids=(torch.tensor([ids]) == mllm.model.config.image_token_id).int(),
        pixel_values=torch.cat([i.pixel_values for i in inputs]),
        image_grid_thw=torch.cat([i.image_grid_thw for i in inputs]),
        output_hidden_states=True,
    )
    x, head = output.hidden_states[-1][0, -1].double(), model.net.head.double()
    x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * head.norm.weight + head.norm.bias
    scores = head.scores.weight @ x + head.scores.bias
    head.float()
    return scores


def test_a_film_shows_the_result_and_how_far_it_is_from_its_source(model: RewardModel) -> None:
    """Found again by their pixels: of flat colours, each half of a patch is one of them."""
    blue = Image.new("RGB", (112, 112), "blue")
    mean, std = (torch.tensor(getattr(model.mllm.image_processor, f"image_{name}")) for name in ("mean", "std"))
    patches, grid = model._film(Image.new("RGB", (64, 64), (255, 51, 255)), blue)  # at another size
    assert patches.shape == (int(grid.prod()), 3 * 2 * 14 * 14)
    pixels = patches.view(-1, 3, 2, 14 * 14).transpose(2, 3) * std.view(3, 1, 1) + mean.view(3, 1, 1)
    for frame, colour in enumerate(((0.0, 0.0, 1.0), (1.0, 0.2, 0.0))):
        torch.testing.assert_close(pixels[..., frame].mean((0, 2)), torch.tensor(colour), atol=1e-4, rtol=0)
        assert float(pixels[..., frame].std(dim=2).max()) < 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_scores_equal_a_plain_forward(model: RewardModel, shared: bool) -> None:
    edits = groups()
    wanted = torch.stack([plain(model, edit) for edit in alone(edits)])
    with torch.no_grad():
        scores = model.predict(edits, shared=shared)
    torch.testing.assert_close(scores.double(), wanted, rtol=1e-5, atol=1e-5)
    assert float(wanted.std(dim=0).min()) > 1e-2  # they are each result's own


def test_a_group_scores_as_its_members_alone(model: RewardModel) -> None:
    edits = groups()
    apart = torch.cat([model.score([edit]) for edit in alone(edits)])
    assert bool(((apart > 0) & (apart < 10)).any(dim=1).all())  # not all at the ends
    for batch in (1, 2, 4, 16):  # groups are parted and joined
        torch.testing.assert_close(model.score(edits, batch), apart, rtol=1e-5, atol=1e-4)
    assert model.score([]).shape == (0, 3)


def test_gradients_flow_through_what_is_shared(model: RewardModel) -> None:
    """Those of the language model are the same, whether a group's prompts are read once or each as a whole."""
    weight = model.mllm.model.model.language_model.layers[0].self_attn.k_proj.weight.requires_grad_(True)
    try:
        found = []
        for shared in (True, False):
            weight.grad = None
            model.predict(groups(), shared=shared).square().sum().backward()
            assert weight.grad is not None
            found.append(weight.grad.clone())
        assert float(found[0].abs().max()) > 0
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5 * float(found[0].abs().max()))
    finally:
        weight.requires_grad_(False)
        weight.grad = None


# --- folders and the reward -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model: RewardModel, tmp_path: Path) -> Path:
    head = Changed(model.net.head.config, model.net.head.state_dict())
    assemble(tmp_path / "reward", {"mllm": find_model("tiny"), "reward_head": head}, {})
    return tmp_path / "reward"


def test_a_folder_holds_the_same_model(model: RewardModel, folder: Path) -> None:
    loaded = load_reward_model(find_model(str(folder)), torch.float32, CPU)
    assert torch.equal(loaded.score(groups()), model.score(groups()))
    report = report_of(str(folder))
    assert (report["kind"], report["complete"]) == ("reward", True)
    assert [row["component"] for row in report["components"]] == ["reward_head", "mllm"]
    assert report["components"][0]["parameters"] == 5 * model.mllm.width + 3


def spoil_config(folder: Path, **changes: object) -> None:
    path = folder / "reward_head" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 48}, "shape"),
        ({"width": "128"}, "width is '128'"),
        ({"outputs": ["overall"]}, "the head gives"),
        ({"full": 1.0}, "the head gives"),
        ({"reads": ["instruction", "source", "result"]}, "learnt from prompts of"),
        ({"reads": None}, "learnt from prompts of"),
        ({"_class_name": "os.system"}, "not a class of reward_head"),
        ({"auto_map": {"a": "b"}}, "run code"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(folder: Path, changes: dict[str, object], said: str) -> None:
    spoil_config(folder, **changes)
    with pytest.raises(BadModel, match=said):
        load_reward_model(find_model(str(folder)), torch.float32, CPU)


def test_broken_weights_are_refused_and_told(folder: Path) -> None:
    weights = folder / "reward_head" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BadModel, match=r"not the size|truncated"):
        load_reward_model(find_model(str(folder)), torch.float32, CPU)
    assert not report_of(str(folder))["complete"]
    with pytest.raises(BadModel, match="no reward model"):
        load_reward_model(find_model("tiny"), torch.float32, CPU)
    with pytest.raises(BadInput, match="judges edits"):
        UniPic.from_pretrained(folder)


def test_the_reward_scores_groups_and_leaves_out_what_is_no_edit(model: RewardModel, folder: Path) -> None:
    edits = groups()
    samples = [
        Sample(e.instruction, result, e.source.copy()) for e in edits for result in e.results
    ]  # equal sources need not be one object
    wanted = model.score(edits, bounded=False) / 10
    mixed = [samples[0], Sample("a star", picture(9)), *samples[:0:-1]]
    for i, output in enumerate(OUTPUTS):
        reward = EditRewardConfig(kind="edit_reward", model=str(folder), output=output, batch=4, device="cpu").open()
        scores = reward.score(mixed)
        assert scores[1] is None
        told = [scores[0], *scores[:1:-1]]
        assert told == pytest.approx(wanted[:, i].tolist(), abs=1e-5)


def test_hopeless_edits_do_not_tie_as_rewards(folder: Path, tmp_path: Path) -> None:
    """Where a score has an end, a group's members would all be at it."""
    shutil.copytree(folder, tmp_path / "low")
    path = tmp_path / "low" / "reward_head" / "model.safetensors"
    tensors = load_file(path)
    tensors["scores.bias"] = torch.full_like(tensors["scores.bias"], -9.0)
    write_tensors(path, tensors)
    (tmp_path / "low" / "manifest.json").unlink()
    low, edits = load_reward_model(find_model(str(tmp_path / "low")), torch.float32, CPU), groups()
    assert torch.equal(low.score(edits), torch.zeros(len(low.score(edits)), 3))
    samples = [Sample(e.instruction, result, e.source) for e in edits for result in e.results]
    reward = EditRewardConfig(kind="edit_reward", model=str(tmp_path / "low"), device="cpu").open()
    scores = [score for score in reward.score(samples) if score is not None]
    assert max(scores) < 0
    assert len(set(scores)) == len(samples)
