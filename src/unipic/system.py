"""`UniPic`: one object that generates, edits and describes pictures, from a published folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from unipic import pictures
from unipic.errors import BadInput
from unipic.models import assembly
from unipic.models.find import find_mllm, find_model
from unipic.models.placement import Placement
from unipic.parts import Parts
from unipic.pictures import PictureLike
from unipic.pipeline import OnStep, make_pictures
from unipic.types import DEFAULTS, MAX_PICTURES, MAX_SEED, Request, check_text, check_whole

EDIT_MULTIPLE = 32  # pixels: one token of the language model, four of the DiT


class UniPic:
    """A unified image model: understanding, generation and editing. Make one with `UniPic.from_pretrained`.

    Weights are read when a job first needs them: describing never loads the DiT.
    defaults: the settings of each task, for what a call leaves out.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        own = parts.folder.defaults
        self.defaults = {task: {**values, **own.get(task, {})} for task, values in DEFAULTS.items()}

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "tiny",
        *,
        mllm: str | Path | None = None,
        lora: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offload: str = "none",
        quantize: str = "none",
    ) -> UniPic:
        """Open a published folder.

        model: "tiny", a folder, or a hub name. mllm: the same for Qwen2.5-VL, where it is not inside the model.
        lora: an adapter of the transformer, merged into it. device: auto, cpu, cuda, mps. dtype: auto, fp32, bf16,
        fp16. offload: none, model, group. quantize: none, fp8, int8. Raises BadInput, BadModel.
        """
        placement = Placement.choose(device, dtype, offload, quantize)
        folder = find_model(str(model))
        if folder.kind == "reward":
            raise BadInput("this model judges edits, it makes no pictures", str(model), "give it as a reward")
        language = find_mllm(folder, None if mllm is None else str(mllm))
        return cls(Parts(folder, language, placement, None if lora is None else str(lora)))

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] = 42,
        fast_batch: bool = False,
        on_step: OnStep | None = None,
        **sampling: Any,
    ) -> list[Image]:
        """Pictures of a prompt, or of each of several: `num_images` of each, prompt by prompt.

        seed: of a prompt's first picture (the next have the next numbers), or one for each picture.
        width, height: pixels. sampling: steps, guidance_scale, guidance_interval, skip_layers (see `types.Request`).
        None takes the model's default. fast_batch, on_step: see `pipeline`.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        seeds = _seeds(seed, len(prompts), num_images)
        values = self._settings("generate", negative_prompt=negative_prompt, width=width, height=height, **sampling)
        requests = [Request(p, seed=s, **values) for p, own in zip(prompts, seeds, strict=True) for s in own]
        return self.run(requests, fast_batch=fast_batch, on_step=on_step)

    def edit(
        self,
        image: PictureLike | Sequence[PictureLike],
        instruction: str | Sequence[str],
        *,
        references: PictureLike | Sequence[PictureLike] = (),
        negative_prompt: str | None = None,
        image_size: int | None = None,
        width: int | None = None,
        height: int | None = None,
        keep_size: bool = False,
        num_images: int = 1,
        seed: int | Sequence[int] = 42,
        fast_batch: bool = False,
        on_step: OnStep | None = None,
        **sampling: Any,
    ) -> list[Image]:
        """Edit a picture as told, or several pictures, each by its own instruction; a single one of either serves all.

        references: further pictures to take from, for every edit (`run` takes requests with references of their own).
        image_size: the longer side that pictures are worked at. width, height: of the result, where it should differ
        from the picture's working size. keep_size: scale the result to the input's own size. The rest as in `generate`.
        """
        images = pictures.as_list(image)
        instructions = [instruction] * len(images) if isinstance(instruction, str) else list(instruction)
        images = images * len(instructions) if len(images) == 1 else images
        if len(images) != len(instructions):
            raise BadInput(
                "pictures and instructions do not pair up",
                f"{len(images)} pictures, {len(instructions)} instructions",
                "give one of either, or one instruction for each picture",
            )
        if keep_size and (width or height):
            raise BadInput(
                "a result cannot keep its size and have another", "--keep-size with a width or height", "choose"
            )
        seeds = _seeds(seed, len(images), num_images)
        values = self._settings("edit", negative_prompt=negative_prompt, image_size=image_size, **sampling)
        longer = values.pop("image_size")
        self.parts.spec.check_side("image size", longer, EDIT_MULTIPLE)
        originals = [pictures.load(i) for i in images]
        extra = tuple(_resized(pictures.load(r), longer) for r in pictures.as_list(references))
        requests = []
        for original, text, own in zip(originals, instructions, seeds, strict=True):
            source = _resized(original, longer)
            size = (source.width if width is None else width, source.height if height is None else height)
            kept = original.size if keep_size else None
            requests += [
                Request(text, *size, seed=s, references=(source, *extra), keep_size=kept, **values) for s in own
            ]
        return self.run(requests, fast_batch=fast_batch, on_step=on_step)

    def describe(
        self,
        image: PictureLike | Sequence[PictureLike],
        question: str | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> str:
        """What the multimodal language model answers about a picture (or several)."""
        return "".join(self.describe_stream(image, question, max_new_tokens=max_new_tokens)).strip()

    def describe_stream(
        self,
        image: PictureLike | Sequence[PictureLike],
        question: str | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> Iterator[str]:
        """The same, piece by piece while it is written."""
        values = self.defaults["describe"]
        asked = values["question"] if question is None else question
        limit = values["max_new_tokens"] if max_new_tokens is None else max_new_tokens
        check_text("question", asked)
        check_whole("number of new tokens", limit, 1, 32_768)
        shown = [pictures.load(i) for i in pictures.as_list(image)]
        if not shown:
            raise BadInput("there is no picture to describe", "an empty list", "give at least one")
        for picture in shown:
            if max(picture.size) > 200 * min(picture.size):  # what Qwen's image processor refuses
                raise BadInput("the picture is too elongated", f"{picture.width}x{picture.height} pixels", "crop it")
        with self.parts.mllm.use() as mllm:
            yield from mllm.describe(shown, asked, limit)

    def run(
        self, requests: Sequence[Request], *, fast_batch: bool = False, on_step: OnStep | None = None
    ) -> list[Image]:
        """The pictures of any requests, of any sizes and settings together, in their order (see `pipeline`)."""
        return make_pictures(self.parts, requests, fast_batch=fast_batch, on_step=on_step)

    def save_pretrained(self, target: str | Path) -> None:
        """Write the model in its published layout: transformer and conditioner as they are in memory, if they are (an
        adapter is merged, a trainer may have changed them), everything else as it was read.

        target: a folder that does not exist, or is empty; it appears whole or not at all.
        """
        folder, parts = self.parts.folder, self.parts
        if parts.placement.quantize != "none":
            raise BadInput("8-bit weights have no published layout", str(target), "load the model without --quantize")
        if parts.lora is not None:
            with parts.transformer.use():
                pass  # merged now
        components = assembly.components_of(folder)
        for name, module in (("transformer", parts.transformer.loaded), ("conditioner", parts.conditioner.loaded)):
            if module is not None:
                components[name] = assembly.Changed(folder.config(name), module.state_dict())
        assembly.assemble(Path(target), components, folder.defaults)

    def _settings(self, task: str, **given: Any) -> dict[str, Any]:
        """The model's defaults under what was given."""
        if stray := set(given) - set(self.defaults[task]) - {"guidance_interval", "skip_layers"}:
            raise TypeError(f"{task}() has no setting {sorted(stray)[0]!r}")
        return {**self.defaults[task], **{k: v for k, v in given.items() if v is not None}}


def _seeds(seed: int | Sequence[int], texts: int, num_images: int) -> list[list[int]]:
    """For each text the seeds of its pictures."""
    check_whole("number of pictures", num_images, 1, MAX_PICTURES)
    if isinstance(seed, Sequence):
        if len(seed) != texts * num_images:
            raise BadInput(f"{len(seed)} seeds for {texts * num_images} pictures", "seed", "give one for each picture")
        return [list(seed[i * num_images :][:num_images]) for i in range(texts)]
    check_whole("seed", seed, 0, MAX_SEED - num_images + 1)
    return [[seed + i for i in range(num_images)] for _ in range(texts)]


def _resized(picture: Image, longer_side: int) -> Image:
    """At its working size (bicubic, as published)."""
    return picture.resize(pictures.working_size(picture.size, longer_side, EDIT_MULTIPLE))
