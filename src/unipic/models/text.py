"""SD3's three text encoders: prompts → Condition.

CLIP-L and CLIP-G give 77 tokens (their widths side by side, padded with zeros to T5's) and the pooled vector; T5 gives
up to 256 more tokens, after them. No attention mask is used, as in SD3's own pipeline.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from unipic.errors import PromptCut, one_line
from unipic.models.checkpoint import blank_transformers, fill_transformers, read_component
from unipic.models.folder import ModelFolder
from unipic.models.tokenizers import check_ids, load_tokenizer, special_texts
from unipic.types import Condition

T5_LENGTH = 256


@dataclass
class TextEncoders:
    """CLIP-L, CLIP-G and T5 with their tokenizers."""

    clips: Sequence[Any]
    t5: Any
    clip_tokenizers: Sequence[Any]
    t5_tokenizer: Any

    def modules(self) -> list[Any]:
        return [*self.clips, self.t5]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_sequence_length: int = T5_LENGTH) -> Condition:
        """One condition a prompt; text is taken literally. max_sequence_length: of T5's tokens, as in diffusers."""
        return self.read(prompts, max_sequence_length)

    def read(self, prompts: Sequence[str], max_sequence_length: int = T5_LENGTH) -> Condition:
        """The same, with gradients for whoever trains the encoders."""
        tokens, pooled = [], []
        clip_length = min(self.clip_tokenizers[0].model_max_length, self.clips[0].config.max_position_embeddings)
        for clip, tokenizer in zip(self.clips, self.clip_tokenizers, strict=True):
            ids = token_ids(tokenizer, prompts, clip_length).to(clip.device)
            output = clip(ids, output_hidden_states=True)
            tokens.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        t5_length = min(max_sequence_length, self.t5_tokenizer.model_max_length)
        for prompt in prompts:  # what CLIP loses, T5 still reads; what T5 loses, nobody does
            if len(self.t5_tokenizer(prompt, truncation=False, verbose=False).input_ids) > t5_length:
                warnings.warn(
                    f"only the first {t5_length} tokens are read of: {one_line(prompt)}", PromptCut, stacklevel=3
                )
        ids = token_ids(self.t5_tokenizer, prompts, t5_length)
        long = self.t5(ids.to(self.t5.device)).last_hidden_state
        short = torch.cat(tokens, dim=-1)
        short = pad(short, (0, long.shape[-1] - short.shape[-1]))
        return Condition(torch.cat([short, long.to(short.dtype)], dim=1), torch.cat(pooled, dim=-1))


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """B×length ids, padded and cut to `length`."""
    texts = [literal(prompt, special_texts(tokenizer)) for prompt in prompts]
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def literal(text: str, special_tokens: Sequence[str]) -> str:
    """Break special tokens that a user wrote, by a space, into plain characters: "</s>" must not end a prompt.

    One is left alone: CLIP-G pads with "!", and the published pipeline reads every "!" of a prompt as that token.
    """
    for token in special_tokens:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


_ENCODERS: dict[str, tuple[Any, Any]] = {
    "text_encoder": (CLIPTextModelWithProjection, CLIPTextConfig),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextConfig),
    "text_encoder_3": (T5EncoderModel, T5Config),
}


def blank_encoder(folder: ModelFolder, name: str) -> Any:
    """The encoder that a folder describes, without its weights. name: text_encoder, text_encoder_2, text_encoder_3."""
    return blank_transformers(*_ENCODERS[name], folder.config(name), folder.root / name)


def load_text_encoders(folder: ModelFolder, dtype: torch.dtype) -> TextEncoders:
    """The text encoders of a published Kontext folder."""

    def encoder(name: str) -> Any:
        blank = blank_encoder(folder, name)
        return fill_transformers(blank, read_component(folder, name, None), folder.root / name, dtype)

    encoders = [encoder(name) for name in _ENCODERS]
    tokenizers = [read_tokenizer(folder, name) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    for model, tokenizer, name in zip(encoders, tokenizers, _ENCODERS, strict=True):
        check_ids(tokenizer, model.config.vocab_size, str(folder.root / name.replace("text_encoder", "tokenizer")))
    return TextEncoders(encoders[:2], encoders[2], tokenizers[:2], tokenizers[2])


def read_tokenizer(folder: ModelFolder, name: str) -> Any:
    """A tokenizer of a published Kontext folder. name: tokenizer, tokenizer_2, tokenizer_3."""
    folder.config(name)
    return load_tokenizer(folder, name, T5TokenizerFast if name == "tokenizer_3" else CLIPTokenizer)
