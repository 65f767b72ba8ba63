"""CLIP-L, CLIP-G and T5 → Condition, against diffusers' own encoding."""

from __future__ import annotations

import pytest
import torch

from unipic import UniPic
from unipic.errors import PromptCut
from unipic.models.text import TextEncoders, token_ids
from unipic.models.tiny import clip_tokenizer


@pytest.fixture
def encoders(kontext: UniPic) -> TextEncoders:
    with kontext.parts.text.use() as part:
        return part


@pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")
@pytest.mark.parametrize("length", [48, 24])
@pytest.mark.parametrize("prompt", ["a red circle", "", "a photo of two blue stars and a ring " * 20])
def test_encoding_equals_diffusers(encoders: TextEncoders, prompt: str, length: int) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline(
        None,
        None,
        None,
        encoders.clips[0],
        encoders.clip_tokenizers[0],
        encoders.clips[1],
        encoders.clip_tokenizers[1],
        encoders.t5,
        encoders.t5_tokenizer,
    )
    tokens, _, pooled, _ = pipeline.encode_prompt(
        prompt, None, None, do_classifier_free_guidance=False, max_sequence_length=length, device=torch.device("cpu")
    )
    ours = encoders.encode([prompt], length)
    assert torch.equal(ours.tokens, tokens)
    assert torch.equal(ours.pooled, pooled)
    assert ours.tokens.shape == (1, 16 + length, encoders.t5.config.d_model)


def test_special_tokens_are_text(encoders: TextEncoders) -> None:
    """An end-of-text mark written in a prompt does not end it; CLIP's pooled vector would sit there."""
    for tokenizer in (*encoders.clip_tokenizers, encoders.t5_tokenizer):
        ids = token_ids(tokenizer, [f"red {tokenizer.eos_token} blue", "red blue"], 32)
        plain_end = (ids[1] == tokenizer.eos_token_id).nonzero()[0]
        assert (ids[0] == tokenizer.eos_token_id).nonzero()[0] > plain_end


def test_a_pad_token_that_is_a_letter_keeps_its_published_meaning() -> None:
    tokenizer = clip_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "!"})
    ids = token_ids(tokenizer, ["red! circle"], 8)[0].tolist()
    assert ids[2] == tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("!")


def test_a_prompt_that_is_cut_is_told(encoders: TextEncoders) -> None:
    with pytest.warns(PromptCut, match="first 48 tokens"):
        encoders.encode(["a photo of two blue stars and a ring " * 20])
