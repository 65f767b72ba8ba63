"""Tiny models in both published layouts, with random weights: the real code paths in seconds.

    python -m unipic.models.tiny FOLDER              writes FOLDER/tiny (MetaQuery, its language model inside)
                                                     and FOLDER/tiny-kontext
    python -m unipic.models.tiny FOLDER --to-train   the same, larger, as training from nothing begins

Their tokenizers know some words of the embedded world whole and any other text by its letters or bytes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from unipic.models.assembly import INDEX
from unipic.models.checkpoint import write_component, write_manifest
from unipic.models.kontext import KontextTransformer, initialise
from unipic.models.metaquery import Conditioner
from unipic.models.mllm import published_name
from unipic.world import instructions, language

WORDS = """
a an the of on in to and with its is are it this that one two three four what how many where which photo picture image
red orange yellow green blue purple pink brown black white small large big filled outlined striped dotted
circle square triangle star ring cross heart diamond letter object objects left right above below
background add remove replace move make turn change color generate describe
""".split()  # noqa: SIM905  (readable as a text)
QWEN_SPECIALS = """
<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|>
<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Sizes:
    """Of a tiny model. dit: layers and heads of 32. vae: channels from the full resolution to the latent's.

    text: width of T5, half of which CLIP has. clip_tokens, t5_tokens: that they read. llm: width and layers. vision:
    width and depth of its tower. sight: side in pixels that smaller pictures are enlarged to, to be described.
    connector: layers, as wide as T5. queries: of MetaQuery.
    """

    dit: tuple[int, int] = (3, 2)
    vae: tuple[int, int, int, int] = (16, 16, 32, 32)
    vae_groups: int = 8
    vae_attention: bool = True  # at its narrowest; without it a small one learns faster
    text: int = 64
    text_layers: int = 2
    clip_tokens: int = 16
    t5_tokens: int = 48
    llm: tuple[int, int] = (64, 2)
    vision: tuple[int, int] = (32, 2)
    sight: int = 56
    connector: int = 2
    queries: int = 16
    to_train: bool = False  # weights to begin training from, and tokenizers that know all of the world's words

    @property
    def words(self) -> list[str]:
        if not self.to_train:
            return WORDS
        return sorted({*language.vocabulary(), *instructions.vocabulary()})


RANDOM = Sizes()  # for tests, where only the machinery counts
TO_TRAIN = Sizes(
    dit=(6, 4),
    vae=(8, 16, 32, 64),
    vae_groups=4,
    vae_attention=False,
    text=128,
    llm=(128, 4),
    vision=(128, 4),
    sight=112,
    to_train=True,
)
POOLED = 64
# Height and width have the slow frequencies of M-RoPE. With Qwen's million, and the sixteen that a small head has, the
# columns of a small picture are turned by a ten-thousandth of a radian against each other: nobody can tell them apart.
ROPE_THETA = 10.0
DEFAULTS = {
    "generate": {"width": 64, "height": 64, "steps": 10, "guidance_scale": 3.5, "negative_prompt": ""},
    "edit": {"image_size": 64, "steps": 10, "guidance_scale": 3.5, "negative_prompt": ""},
    "describe": {"max_new_tokens": 192},  # four boxes as JSON, the longest answer of the world, are 164
}


def make_kontext(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, sizes: Sizes = RANDOM) -> None:
    """A random Kontext model."""
    torch.manual_seed(seed)
    _write_transformer_and_vae(folder, dtype, sizes)
    for i, name in enumerate(("", "_2")):
        tokenizer = clip_tokenizer(sizes.words, sizes.clip_tokens)
        tokenizer.save_pretrained(folder / f"tokenizer{name}")
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.text // 2,
            intermediate_size=sizes.text,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=2,
            projection_dim=POOLED // 2,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act=("quick_gelu", "gelu")[i],
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        _write(folder, f"text_encoder{name}", CLIPTextModelWithProjection(config), dtype, sizes.to_train)
    t5 = t5_tokenizer(sizes.words, sizes.t5_tokens)
    t5.save_pretrained(folder / "tokenizer_3")
    t5_config = T5Config(
        vocab_size=len(t5),
        d_model=sizes.text,
        d_kv=sizes.text // 4,
        d_ff=2 * sizes.text,
        num_layers=sizes.text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    _write(folder, "text_encoder_3", T5EncoderModel(t5_config), dtype, sizes.to_train)
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    write_manifest(folder, {task: DEFAULTS[task] for task in ("generate", "edit")})


def make_metaquery(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float16, sizes: Sizes = RANDOM) -> None:
    """A random MetaQuery model, with its language model in `mllm/`."""
    torch.manual_seed(seed)
    _write_transformer_and_vae(folder, dtype, sizes)
    connector = {
        "hidden_size": sizes.text,
        "intermediate_size": 2 * sizes.text,
        "num_hidden_layers": sizes.connector,
        "num_attention_heads": 4,
    }
    conditioner = Conditioner(
        connector_config={**connector, "_attn_implementation": "flash_attention_2"},  # as the published config says
        num_queries=sizes.queries,
        llm_hidden_size=sizes.llm[0],
        pooled_projection_dim=POOLED,
        joint_attention_dim=sizes.text,
    )
    nn.init.normal_(conditioner.meta_queries)
    _write(folder, "conditioner", conditioner, dtype, sizes.to_train)
    make_mllm(folder / "mllm", dtype, sizes)
    write_manifest(folder, DEFAULTS)


def make_mllm(folder: Path, dtype: torch.dtype = torch.float16, sizes: Sizes = RANDOM) -> None:
    """A random Qwen2.5-VL."""
    tokenizer = qwen_tokenizer(sizes.words)
    tokenizer.save_pretrained(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIALS}
    half = sizes.llm[0] // 4 // 2  # of a head
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.llm[0],
            "intermediate_size": 2 * sizes.llm[0],
            "num_hidden_layers": sizes.llm[1],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": _mrope(half)},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config={
            "depth": sizes.vision[1],
            "hidden_size": sizes.vision[0],
            "intermediate_size": 2 * sizes.vision[0],
            "num_heads": 2,
            "out_hidden_size": sizes.llm[0],
            "fullatt_block_indexes": [sizes.vision[1] - 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    _write(folder, "mllm", Qwen2_5_VLForConditionalGeneration(config), dtype, sizes.to_train, at="")
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": sizes.sight**2,
        "max_pixels": 28 * 28 * 64,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    stops = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    (folder / "generation_config.json").write_text(json.dumps(stops, indent=2) + "\n")


def _mrope(half: int) -> list[int]:
    """How the halves of a head's dimensions are shared by time, height and width: 2 to 3 to 3, as in Qwen2.5-VL."""
    return [half // 4, half * 3 // 8, half * 3 // 8]


def _write_transformer_and_vae(folder: Path, dtype: torch.dtype, sizes: Sizes) -> None:
    # sample_size = patch_size · pos_embed_max_size spaces neighbouring tokens by 1: a small model tells them apart
    transformer = KontextTransformer(
        sample_size=32,
        patch_size=2,
        num_layers=sizes.dit[0],
        attention_head_dim=32,
        num_attention_heads=sizes.dit[1],
        joint_attention_dim=sizes.text,
        caption_projection_dim=32 * sizes.dit[1],
        pooled_projection_dim=POOLED,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=sizes.vae,
        layers_per_block=1,
        norm_num_groups=sizes.vae_groups,
        latent_channels=16,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=sizes.vae_attention,
        shift_factor=0.0,
        scaling_factor=1.0,
    )
    _write(folder, "transformer", transformer, dtype, sizes.to_train)
    _write(folder, "vae", vae, dtype, sizes.to_train)
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    write_component(folder, "scheduler", schedule, {})


def _write(folder: Path, component: str, model: Any, dtype: torch.dtype, to_train: bool, at: str | None = None) -> None:
    """Weights as the libraries draw them, to train; else by width, so that prompts, seeds and references all show."""
    if to_train and component == "transformer":
        initialise(model)
    if (
        to_train and component == "vae"
    ):  # a posterior of width one would first teach the decoder to ignore small objects
        nn.init.constant_(model.encoder.conv_out.bias[model.config.latent_channels :], -6.0)
    for name, parameter in model.named_parameters() if not to_train else ():
        if parameter.ndim > 1 and "meta_queries" not in name:
            fan_in = parameter[0].numel()
            nn.init.normal_(parameter, std=1.0 if "embed" in name and parameter.ndim == 2 else fan_in**-0.5)
    config = model.config if isinstance(model, Conditioner) else _plain_config(model)
    stored = model.state_dict()
    if component == "text_encoder_3":
        del stored["encoder.embed_tokens.weight"]  # tied to shared.weight
    if component == "mllm":
        stored = {published_name(name): tensor for name, tensor in stored.items()}
    write_component(folder, component, config, {k: t.to(dtype) for k, t in stored.items()}, at)


def _plain_config(model: Any) -> dict[str, Any]:
    if hasattr(model.config, "to_dict"):
        content: dict[str, Any] = json.loads(model.config.to_json_string())
        return content | {"architectures": [type(model).__name__]}
    content = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    return content | {"_class_name": type(model).__name__.replace("KontextTransformer", "SD3Transformer2DKontextModel")}


def clip_tokenizer(words: Sequence[str] = WORDS, length: int = 16) -> Any:
    """Byte-level BPE with CLIP's end-of-word marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges([*dict.fromkeys(word.lower() for word in words)], "</w>")
    vocab = [
        *alphabet,
        *(a + "</w>" for a in alphabet),
        *("".join(m) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=length)


def qwen_tokenizer(words: Sequence[str] = WORDS) -> Any:
    """Byte-level BPE with Qwen2.5-VL's special tokens."""
    merges = _merges(words, "")
    vocab = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(m) for m in merges)]
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocab))}
    return Qwen2Tokenizer(vocab=ids, merges=merges, extra_special_tokens=QWEN_SPECIALS, model_max_length=4096)


def t5_tokenizer(words: Sequence[str] = WORDS, length: int = 48) -> Any:
    """Unigram pieces: our words whole, anything else by its letters."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -8.0) for letter in letters] + [("▁" + word, -2.0) for word in words]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=length)


def _merges(known: Sequence[str], end_of_word: str) -> list[tuple[str, str]]:
    """BPE merges that make our words whole (for an empty `end_of_word`, also with a space before them).

    The library's trainer breaks ties differently from run to run; this one takes the first in alphabetical order.
    """
    space = "Ġ"  # how byte-level BPE writes a space
    words = [[*w[:-1], w[-1] + end_of_word] for w in known]
    words += [] if end_of_word else [[space, *w] for w in known]
    merges = []
    while pairs := Counter(pair for word in words for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [_merged(word, best) for word in words]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def main(arguments: Sequence[str]) -> None:
    folder, to_train = Path(arguments[0]), "--to-train" in arguments
    sizes, dtype = (TO_TRAIN, torch.float32) if to_train else (RANDOM, torch.float16)
    make_metaquery(folder / "tiny", dtype=dtype, sizes=sizes)
    make_kontext(folder / "tiny-kontext", dtype=dtype, sizes=sizes)


if __name__ == "__main__":
    main(sys.argv[1:])
