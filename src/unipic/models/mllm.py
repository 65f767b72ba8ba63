"""Qwen2.5-VL: the frozen half that understands. It answers questions, and carries MetaQuery's queries.

Prompts are Qwen's chat format with the default system prompt left out, as published, written here token by token: what
a user writes is text, never a special token, and no template of a folder is rendered. Pictures are prepared by
transformers' PIL image processor, so torchvision is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unipic.errors import BadModel
from unipic.models.checkpoint import blank_transformers, fill_transformers, read_component
from unipic.models.folder import ModelFolder, as_list
from unipic.models.tokenizers import check_ids, load_tokenizer

SPECIALS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|endoftext|>")


class MLLM:
    """The model, its tokenizer and its image processor.

    device, dtype: where and in what it computes; its parameters may wait elsewhere (offloading) or be stored in 8 bits.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        image_processor: Any,
        generation: Any,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device, self.dtype = device or model.device, dtype or model.dtype
        self.model, self.tokenizer = model, tokenizer
        self.image_processor, self.generation = image_processor, generation
        self.special: dict[str, int] = {token: tokenizer.get_vocab()[token] for token in SPECIALS}

    @property
    def width(self) -> int:
        return int(self.model.config.text_config.hidden_size)

    def states_at_queries(
        self, texts: Sequence[str], pictures: Sequence[Sequence[Image]], queries: Tensor, *, frozen: bool = True
    ) -> Tensor:
        """Last hidden states, after the final norm, at `queries` appended to each text: B×len(queries)×width.

        pictures: of each text; the vision tower sees each picture once (the published code: once a text). Positions are
        one-dimensional, the count of attended tokens, on all three axes of M-RoPE, also for pictures: the published
        code gives the model no token ids to find pictures by, and the weights are trained so.

        frozen: gradients reach the queries alone. What stands before them does not depend on them, so that part is
        computed without gradient, and the queries read its keys and values.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            embeds, mask = self._prompts(texts, pictures)
        queries = queries.to(self.device, embeds.dtype).expand(len(texts), -1, -1)
        mask = torch.cat([mask, mask.new_ones(len(texts), queries.shape[1])], dim=1)
        positions = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0).expand(3, -1, -1)
        model, known, before = self.model.model.language_model, None, embeds.shape[1]
        if torch.is_grad_enabled() and frozen:
            with torch.no_grad():
                prompt = {"attention_mask": mask[:, :before], "position_ids": positions[..., :before]}
                known = model(inputs_embeds=embeds, use_cache=True, **prompt).past_key_values
            embeds, positions = queries, positions[..., before:]
        else:
            embeds = torch.cat([embeds, queries], dim=1)
        output = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=known,
            use_cache=known is not None,
        )
        states: Tensor = output.last_hidden_state[:, -queries.shape[1] :]
        return states

    def _prompts(self, texts: Sequence[str], pictures: Sequence[Sequence[Image]]) -> tuple[Tensor, Tensor]:
        """Embeddings of right-padded user turns, B×L×width, and their mask, B×L."""
        # A token of the language model then covers the 32×32 pixels that a 2×2 patch of latents covers.
        distinct = {id(p): p for shown in pictures for p in shown}
        inputs = {key: self.pixels(p, int(p.height * 28 / 32 * p.width * 28 / 32)) for key, p in distinct.items()}
        seen = dict(zip(inputs, self.see(list(inputs.values())), strict=True))
        rows = [self.turn(text, [inputs[id(p)][1] for p in shown]) for text, shown in zip(texts, pictures, strict=True)]
        ids, mask = self.padded(rows)
        return self.embed(ids, [seen[id(p)] for shown in pictures for p in shown]), mask

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids, right-padded to B×L, and their mask, on the device."""
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self.special["<|endoftext|>"]
        )
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return ids.to(self.device), mask.to(self.device)

    @torch.no_grad()
    def describe(self, pictures: Sequence[Image], question: str, max_new_tokens: int) -> Iterator[str]:
        """The answer, piece by piece; greedy, so the same question has the same answer. pictures: may be none."""
        inputs = [self.pixels(p) for p in pictures]
        grids = [grid for _, grid in inputs]
        ids = torch.tensor([self.turn(question, grids)], device=self.device)
        seen: dict[str, Any] = {}
        if inputs:
            seen["pixel_values"] = torch.cat([pixels for pixels, _ in inputs]).to(ids.device, self.dtype)
            seen["image_grid_thw"] = torch.stack(grids).to(ids.device)
        image_mask = ids == self.special["<|image_pad|>"]
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []
        stop = _Stop()

        def work() -> None:
            try:
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    mm_token_type_ids=image_mask.int(),
                    **seen,
                    generation_config=self.generation,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([stop]),
                )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = Thread(target=work, name="describe", daemon=True)
        thread.start()
        try:
            yield from filter(None, streamer)
        finally:
            stop.asked = True
            thread.join()
        if failure:
            raise failure[0]

    def turn(self, text: str, grids: Sequence[Tensor]) -> list[int]:
        """Token ids of one user turn, pictures first, and the start of the answer."""
        ids = [self.special["<|im_start|>"]]
        before = "user\n"
        for grid in grids:
            pads = int(grid.prod()) // self.image_processor.merge_size**2
            ids += [*self.plain(before), self.special["<|vision_start|>"]]
            ids += [self.special["<|image_pad|>"]] * pads + [self.special["<|vision_end|>"]]
            before = ""
        ids += [*self.plain(before + text), self.special["<|im_end|>"], *self.plain("\n")]
        return [*ids, self.special["<|im_start|>"], *self.plain("assistant\n")]

    def plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def pixels(self, picture: Image, pixels: int | None = None) -> tuple[Tensor, Tensor]:
        """Patches and their grid (time, height, width); `pixels` fixes the picture's area, else the folder's bounds."""
        size = {"size": {"shortest_edge": pixels, "longest_edge": pixels}} if pixels else {}
        output = self.image_processor(images=[picture], return_tensors="pt", **size)
        return output["pixel_values"], output["image_grid_thw"][0]

    def see(self, inputs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The vision tower's tokens of each picture; inputs: patches and grid of each."""
        if not inputs:
            return []
        grids = torch.stack([grid for _, grid in inputs]).to(self.device)
        patches = torch.cat([pixels for pixels, _ in inputs]).to(self.device, self.dtype)
        tokens: Tensor = self.model.model.visual(patches, grid_thw=grids).pooler_output
        counts = (grids.prod(-1) // self.image_processor.merge_size**2).tolist()
        return list(torch.split(tokens, counts))

    def embed(self, ids: Tensor, seen: Sequence[Tensor]) -> Tensor:
        """Embeddings of token ids, B×L, with pictures' tokens, in order, at their places: B×L×width."""
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        if not seen:
            return embeds
        places = (ids == self.special["<|image_pad|>"]).unsqueeze(-1)
        return embeds.masked_scatter(places, torch.cat(list(seen)).to(embeds.dtype))


class _Stop(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Ends a generation whose reader has gone."""

    asked = False

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked, device=input_ids.device)


def blank_mllm(folder: ModelFolder) -> Any:
    """The Qwen2.5-VL that its folder describes, without its weights."""
    config = folder.config("mllm", at="")
    return blank_transformers(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, config, folder.path)


def load_mllm(folder: ModelFolder, dtype: torch.dtype, device: torch.device) -> MLLM:
    """Qwen2.5-VL from its own published folder; device: where it will compute."""
    blank = blank_mllm(folder)
    stored = read_component(folder, "mllm", None, at="")
    tensors = {current_name(name): tensor for name, tensor in stored.items()}
    if len(tensors) < len(stored):
        twice = next(name for name in stored if name != current_name(name) and current_name(name) in stored)
        raise BadModel(f"a tensor is stored under two names: {twice!r}", str(folder.path), "download the model again")
    model = fill_transformers(blank, tensors, folder.path, dtype)
    return MLLM(model, *load_companions(folder, model), device, dtype)


def load_companions(folder: ModelFolder, model: Any) -> tuple[Any, Any, Any]:
    """Tokenizer, image processor and generation settings, each checked against the model."""
    where = str(folder.path)
    tokenizer = load_tokenizer(folder, "", Qwen2Tokenizer)
    known = tokenizer.get_vocab()
    if lost := [token for token in SPECIALS if token not in known]:
        raise BadModel(f"the tokenizer lacks {', '.join(lost)}", where, "use Qwen2.5-VL's own")
    check_ids(tokenizer, model.get_input_embeddings().num_embeddings, where)
    if model.config.image_token_id != known["<|image_pad|>"]:
        what = f"image_token_id is {model.config.image_token_id}, the tokenizer's is {known['<|image_pad|>']}"
        raise BadModel(what, str(folder.path / "config.json"), "tokenizer and model do not belong together")
    return tokenizer, _load_image_processor(folder, model), _load_generation(folder, model)


def current_name(name: str) -> str:
    """What transformers 5 calls a tensor of the published checkpoint."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return name.replace("model.", "model.language_model.", 1)
    return name


def published_name(name: str) -> str:
    """The other way: what Qwen2.5-VL was published with."""
    return name.replace("model.visual.", "visual.", 1).replace("model.language_model.", "model.", 1)


def _load_image_processor(folder: ModelFolder, model: Any) -> Any:
    """From preprocessor_config.json, or processor_config.json as newer transformers write it."""
    if folder.has("preprocessor_config.json"):
        name, settings = "preprocessor_config.json", folder.json("preprocessor_config.json")
    else:
        name, settings = "processor_config.json", folder.json("processor_config.json").get("image_processor", {})
    where = str(folder.path / name)

    def take(key: str, default: Any, good: Callable[[Any], bool]) -> Any:
        value = settings.get(key, default) if isinstance(settings, dict) else settings
        if not good(value):
            raise BadModel(f"{key} is {value!r}, which describes no picture", where, "download or save it again")
        return value

    vision, size = model.config.vision_config, take("size", {}, lambda v: v is None or isinstance(v, dict)) or {}
    bounds = [
        take(ours, None, lambda v: v is None or _count(v)) or size.get(ours, size.get(theirs, default))
        for ours, theirs, default in (
            ("min_pixels", "shortest_edge", 56 * 56),
            ("max_pixels", "longest_edge", 28 * 28 * 1280),
        )
    ]
    if not all(map(_count, bounds)) or bounds[0] > bounds[1]:
        raise BadModel(f"pictures of {bounds[0]!r} to {bounds[1]!r} pixels: no such bounds", where, "get it anew")
    return Qwen2VLImageProcessorPil(
        patch_size=take("patch_size", 14, lambda v: v == vision.patch_size),
        temporal_patch_size=take("temporal_patch_size", 2, lambda v: v == vision.temporal_patch_size),
        merge_size=take("merge_size", 2, lambda v: v == vision.spatial_merge_size),
        image_mean=take("image_mean", OPENAI_CLIP_MEAN, _three_numbers),
        image_std=take("image_std", OPENAI_CLIP_STD, lambda v: _three_numbers(v) and min(v) > 0),
        min_pixels=bounds[0],
        max_pixels=bounds[1],
    )


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**31


def _three_numbers(value: Any) -> bool:
    numbers = isinstance(value, list | tuple) and len(value) == 3
    return numbers and all(isinstance(v, int | float) and math.isfinite(v) for v in value)


def _load_generation(folder: ModelFolder, model: Any) -> Any:
    """The folder's stop tokens and repetition penalty; sampling off."""
    stored = folder.json("generation_config.json") if folder.has("generation_config.json") else {}
    rows = model.get_input_embeddings().num_embeddings
    stops, penalty = stored.get("eos_token_id"), stored.get("repetition_penalty", 1.0)
    where = str(folder.path / "generation_config.json")
    if not all(type(stop) is int and 0 <= stop < rows for stop in as_list(stops)):
        raise BadModel(f"eos_token_id is {stops!r}, no tokens of the model", where, "download it again")
    if not isinstance(penalty, int | float) or not 0 < penalty < math.inf:
        raise BadModel(f"repetition_penalty is {penalty!r}, no positive number", where, "download it again")
    pad = stored.get("pad_token_id")
    return GenerationConfig(
        eos_token_id=stops,
        pad_token_id=pad if type(pad) is int and 0 <= pad < rows else None,
        repetition_penalty=float(penalty),
        do_sample=False,
    )
