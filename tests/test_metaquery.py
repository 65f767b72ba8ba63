"""MetaQuery: prompt format, positions, queries and connector, each against something independent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from unipic import BadModel, UniPic
from unipic.models.metaquery import Conditioner, Connector, MetaQuery
from unipic.models.mllm import MLLM

TEMPLATE = "<|im_start|>user\n{image}{text}<|im_end|>\n<|im_start|>assistant\n"  # Qwen's, without its system turn


@pytest.fixture
def mllm(metaquery: UniPic) -> MLLM:
    with metaquery.parts.mllm.use() as part:
        return part


@pytest.fixture
def conditioner(metaquery: UniPic) -> Conditioner:
    with metaquery.parts.conditioner.use() as part:
        return part


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("seed", range(5))
def test_connector_equals_siglips_encoder(seed: int) -> None:
    """Values and gradients to 1e-5; the state dicts are interchangeable."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
    ours = Connector(**sizes)
    theirs = SiglipEncoder(SiglipVisionConfig(**sizes, hidden_act="gelu_pytorch_tanh", attn_implementation="eager"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, 48)
    mine, wanted = ours(x), theirs(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    mine.square().sum().backward()
    wanted.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-4)


def test_conditioner_projects_tokens_and_their_mean(conditioner: Conditioner) -> None:
    hidden = torch.randn(3, 16, conditioner.config["llm_hidden_size"])
    condition = conditioner(hidden)
    x = conditioner.connector(conditioner.projector_1(hidden))
    torch.testing.assert_close(condition.tokens, conditioner.projector_3(x))
    torch.testing.assert_close(condition.pooled, conditioner.projector_2(x.sum(1) / 16))


def test_paper_sized_conditioner_has_the_published_tensors() -> None:
    """About a billion parameters (paper §3.1), under the published names."""
    with torch.device("meta"):
        big = Conditioner(
            {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 24, "num_attention_heads": 24}
        )
    shapes = {name: tuple(t.shape) for name, t in big.state_dict().items()}
    assert shapes["meta_queries"] == (256, 3584)
    assert shapes["projector_1.weight"] == (1536, 3584)
    assert shapes["projector_2.weight"] == (2048, 1536)
    assert shapes["projector_3.weight"] == (4096, 1536)
    assert shapes["connector.layers.23.mlp.fc1.weight"] == (8960, 1536)
    assert 0.8e9 < sum(p.numel() for p in big.parameters()) < 1.2e9


@pytest.mark.parametrize("text", ["a red circle", "\n\n  two\tstars ", "", "blue? émoji 🎈", "don't"])
@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_prompts_are_qwens_chat_format(mllm: MLLM, text: str, pictures: int) -> None:
    """The same ids as tokenizing the rendered template as a whole."""
    grids = [torch.tensor([1, 4, 2 * (i + 1)]) for i in range(pictures)]
    image = "".join(f"<|vision_start|>{'<|image_pad|>' * (2 * (i + 1))}<|vision_end|>" for i in range(pictures))
    rendered = TEMPLATE.format(image=image, text=text)
    assert mllm.turn(text, grids) == mllm.tokenizer(rendered).input_ids


def test_special_tokens_in_a_prompt_are_text(mllm: MLLM) -> None:
    ids = mllm.turn("<|im_end|><|image_pad|>", [])
    assert ids.count(mllm.special["<|im_end|>"]) == 1
    assert mllm.special["<|image_pad|>"] not in ids
    assert mllm.tokenizer.decode(mllm.plain("<|im_end|>")) == "<|im_end|>"


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (256, 160), (512, 384)])
def test_one_visual_token_covers_32_pixels(mllm: MLLM, width: int, height: int) -> None:
    """At 28/32 of the DiT's sides a merged patch of the vision tower is 32×32 pixels of the edit."""
    _, grid = mllm.pixels(picture(width, height), int(height * 28 / 32 * width * 28 / 32))
    assert grid.tolist() == [1, 2 * height // 32, 2 * width // 32]


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_states_at_queries_equal_a_plain_loop(mllm: MLLM, conditioner: Conditioner, pictures: int) -> None:
    """Each text by itself, unpadded, its tokens counted 0, 1, 2, … on all axes, also through the pictures."""
    shown = [picture(64, 32 * (i + 1), i) for i in range(pictures)]
    texts = ["a", "make it blue and larger"]
    queries = conditioner.meta_queries
    with torch.no_grad():
        together = mllm.states_at_queries(texts, [shown] * len(texts), queries)
        for text, states in zip(texts, together, strict=True):
            inputs = [mllm.pixels(p, int(p.height * 28 / 32 * p.width * 28 / 32)) for p in shown]
            ids = torch.tensor([mllm.turn(text, [grid for _, grid in inputs])])
            rows = list(mllm.model.get_input_embeddings()(ids)[0])
            seen = [
                row
                for pixels, grid in inputs  # one picture at a time
                for row in mllm.model.model.visual(pixels, grid_thw=grid[None]).pooler_output
            ]
            for place in (ids[0] == mllm.special["<|image_pad|>"]).nonzero().flatten().tolist():
                rows[place] = seen.pop(0)
            embeds = torch.stack([*rows, *queries])[None]
            positions = torch.arange(embeds.shape[1]).expand(3, 1, -1)
            output = mllm.model.model.language_model(inputs_embeds=embeds, position_ids=positions)
            torch.testing.assert_close(states, output.last_hidden_state[0, -len(queries) :], rtol=1e-4, atol=1e-5)


def test_training_reads_the_same_states(mllm: MLLM, conditioner: Conditioner) -> None:
    """Prompts without gradient, then queries: the states and their gradients are those of one whole forward."""
    texts, shown = (
        ["a", "make it blue and larger", "a"],
        [[picture(64, 64, 1)], [], [picture(96, 64, 2), picture(64, 64, 3)]],
    )
    queries = conditioner.meta_queries.detach().requires_grad_(True)
    states = mllm.states_at_queries(texts, shown, queries)
    (gradient,) = torch.autograd.grad(states.sin().sum(), queries)
    with torch.no_grad():
        whole = mllm.states_at_queries(texts, shown, queries)
        torch.testing.assert_close(states.detach(), whole, rtol=1e-4, atol=1e-5)
        for place in ((0, 0), (7, 11), (15, 63)):
            nudge = torch.zeros_like(queries)
            nudge[place] = 1e-2
            up, down = (mllm.states_at_queries(texts, shown, queries + s * nudge).sin().sum() for s in (1, -1))
            torch.testing.assert_close(gradient[place], (up - down) / 2e-2, rtol=2e-2, atol=2e-3)


def test_prompt_and_negative_prompt_are_one_batch(mllm: MLLM, conditioner: Conditioner) -> None:
    encode = MetaQuery(mllm, conditioner).encode
    pair, alone = encode(["a red circle", ""]), encode([""])
    assert pair.tokens.shape == (2, 16, conditioner.config["joint_attention_dim"])
    torch.testing.assert_close(pair[1:].tokens, alone.tokens, rtol=1e-4, atol=1e-5)  # padding is not attended to


def test_gradients_reach_queries_and_connector_only(mllm: MLLM, conditioner: Conditioner) -> None:
    conditioner.requires_grad_(True)
    states = MetaQuery(mllm, conditioner).query_states(["a ring"], [[picture(64, 64)]])
    condition = conditioner(states)
    (condition.tokens.sum() + condition.pooled.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in conditioner.parameters())
    assert all(p.grad is None for p in mllm.model.parameters())
    conditioner.requires_grad_(False)
    conditioner.zero_grad()


def test_a_conditioner_for_another_language_model_is_refused(mllm: MLLM) -> None:
    other = Conditioner({"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2})
    with pytest.raises(BadModel, match="3584"):
        MetaQuery(mllm, other)


def test_describe_is_greedy_with_pictures_in_their_places(metaquery: UniPic, mllm: MLLM) -> None:
    """Against a loop without cache, and with M-RoPE positions from the library's own get_rope_index."""
    shown, wanted = picture(64, 96), []
    pixels, grid = mllm.pixels(shown)
    ids = torch.tensor([mllm.turn("what is this", [grid])])
    stops = mllm.generation.eos_token_id
    with torch.no_grad():
        while len(wanted) < 8:
            types = (ids == mllm.special["<|image_pad|>"]).int()
            positions, _ = mllm.model.model.get_rope_index(ids, types, image_grid_thw=grid[None])
            logits = mllm.model(
                input_ids=ids,
                pixel_values=pixels,
                image_grid_thw=grid[None],
                position_ids=positions,
                mm_token_type_ids=types,
                use_cache=False,
            ).logits
            wanted.append(int(logits[0, -1].argmax()))
            if wanted[-1] in stops:
                break
            ids = torch.cat([ids, torch.tensor([[wanted[-1]]])], dim=1)
    text = mllm.tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert metaquery.describe(shown, "what is this", max_new_tokens=8) == text
    assert len(text) > 0


def test_a_stream_is_the_answer_in_pieces_and_may_be_left(metaquery: UniPic) -> None:
    whole = metaquery.describe(picture(64, 64), "what color", max_new_tokens=12)
    pieces = metaquery.describe_stream(picture(64, 64), "what color", max_new_tokens=12)
    first = next(pieces)
    pieces.close()  # stops the generation and joins its thread
    assert whole.startswith(first.strip())
    assert "".join(metaquery.describe_stream(picture(64, 64), "what color", max_new_tokens=12)).strip() == whole


def test_describing_never_loads_what_makes_pictures() -> None:
    fresh = UniPic.from_pretrained("tiny", device="cpu")
    fresh.describe(picture(64, 64), max_new_tokens=1)
    assert fresh.parts.mllm.loaded is not None
    assert fresh.parts.transformer.loaded is fresh.parts.vae.loaded is fresh.parts.conditioner.loaded is None
