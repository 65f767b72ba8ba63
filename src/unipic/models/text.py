"""SD3's three text encoders: prompts → Condition.

CLIP-L and CLIP-G give 77 tokens (their widths side by side, padded with zeros to T5's) and the pooled vector; T5 gives
up to 256 more tokens, after them. No attention mask is used, as in SD3's own pipeline.
"""

from __future__ import annotations

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

from unipic.models.checkpoint import build_transformers, read_component
from unipic.models.folder import ModelFolder
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
    def encode(self, prompts: Sequence[str]) -> Condition:
        """One condition a prompt; text is taken literally."""
        tokens, pooled = [], []
        clip_length = min(self.clip_tokenizers[0].model_max_length, self.clips[0].config.max_position_embeddings)
        for clip, tokenizer in zip(self.clips, self.clip_tokenizers, strict=True):
            ids = token_ids(tokenizer, prompts, clip_length).to(clip.device)
            output = clip(ids, output_hidden_states=True)
            tokens.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        ids = token_ids(self.t5_tokenizer, prompts, min(T5_LENGTH, self.t5_tokenizer.model_max_length))
        long = self.t5(ids.to(self.t5.device)).last_hidden_state
        short = torch.cat(tokens, dim=-1)
        short = pad(short, (0, long.shape[-1] - short.shape[-1]))
        return Condition(torch.cat([short, long.to(short.dtype)], dim=1), torch.cat(pooled, dim=-1))


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """B×length ids, padded and cut to `length`.

    Special tokens written in a prompt are split into plain characters. One is not: CLIP-G pads with "!", and the
    published pipeline, with whose weights we must agree, reads every "!" of a prompt as that token.
    """
    special = [token for token in tokenizer.all_special_tokens if len(token) > 1]
    rows = [
        tokenizer(
            prompt,
            padding="max_length",
            max_length=length,
            truncation=True,
            split_special_tokens=any(token in prompt for token in special),
        ).input_ids
        for prompt in prompts
    ]
    return torch.tensor(rows)


def load_text_encoders(folder: ModelFolder, dtype: torch.dtype) -> TextEncoders:
    """The text encoders of a published Kontext folder."""

    def encoder(name: str, cls: Any, config_cls: Any) -> Any:
        config = config_cls.from_dict({k: v for k, v in folder.config(name).items() if "attn_implementation" not in k})
        return build_transformers(cls, config, read_component(folder, name, None), folder.root / name, dtype)

    def tokenizer(name: str, cls: Any) -> Any:
        folder.config(name)
        return cls.from_pretrained(folder.check_subfolder(name), local_files_only=True)

    return TextEncoders(
        clips=[encoder(n, CLIPTextModelWithProjection, CLIPTextConfig) for n in ("text_encoder", "text_encoder_2")],
        t5=encoder("text_encoder_3", T5EncoderModel, T5Config),
        clip_tokenizers=[tokenizer(n, CLIPTokenizer) for n in ("tokenizer", "tokenizer_2")],
        t5_tokenizer=tokenizer("tokenizer_3", T5TokenizerFast),
    )
