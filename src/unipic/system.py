"""`UniPic`: one object that generates, edits and describes pictures, from a published folder.

Parts are loaded when a job first needs them: describing never loads the DiT, generating from a cached condition never
loads an encoder. A request's result depends on its weights and settings alone, not on what it is batched with.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL.Image import Image, Resampling
from torch import Tensor

from unipic import flow, pictures
from unipic.errors import BadInput
from unipic.models import checkpoint
from unipic.models.folder import ModelFolder, find_mllm, find_model
from unipic.models.kontext import KontextTransformer, load_transformer
from unipic.models.lora import merge_lora
from unipic.models.metaquery import MetaQuery, load_conditioner
from unipic.models.mllm import MLLM, load_mllm
from unipic.models.placement import Part, Placement
from unipic.models.spec import ModelSpec
from unipic.models.text import TextEncoders, load_text_encoders
from unipic.models.vae import VAE, load_vae
from unipic.sampling import SkipLayers, Step, guided, sample
from unipic.settings import describe_making
from unipic.types import MAX_PICTURES, MAX_SEED, Condition, Request, SkipLayerGuidance, check_text, check_whole

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers.logging.set_verbosity_error()

EDIT_MULTIPLE = 32  # pixels: one token of the language model, four of the DiT
# The defaults of the published scripts, for folders that bring none.
DEFAULTS: dict[str, dict[str, Any]] = {
    "generate": {"width": 384, "height": 512, "steps": 50, "guidance_scale": 3.5, "negative_prompt": ""},
    "edit": {
        "image_size": 512,
        "steps": 50,
        "guidance_scale": 3.5,
        "negative_prompt": "blurry, low quality, low resolution, distorted, deformed, broken content, missing parts, "
        "damaged details, artifacts, glitch, noise, pixelated, grainy, compression artifacts, bad composition, "
        "wrong proportion, incomplete editing, unfinished, unedited areas.",
    },
    "describe": {"question": "Describe the image in detail.", "max_new_tokens": 512},
}


@dataclass(frozen=True)
class Progress:
    """What a callback learns after each step. picture: which of the requests. preview(): the present estimate."""

    picture: int
    step: int
    steps: int
    sigma: float
    preview: Callable[[], Image] = field(repr=False)


OnStep = Callable[[Progress], None]


class UniPic:
    """A unified image model: understanding, generation and editing. Make one with `UniPic.from_pretrained`."""

    def __init__(
        self, folder: ModelFolder, mllm_folder: ModelFolder | None, placement: Placement, lora: str | None = None
    ) -> None:
        self.folder, self.mllm_folder, self.placement, self.lora = folder, mllm_folder, placement, lora
        self.spec = ModelSpec(folder)
        self.defaults = {task: {**values, **folder.defaults.get(task, {})} for task, values in DEFAULTS.items()}
        dtype = placement.dtype
        self._transformer: Part[KontextTransformer] = Part(
            self._load_transformer, lambda t: [t], placement, quantize=True
        )
        self._vae: Part[VAE] = Part(lambda: VAE(load_vae(folder, dtype)), lambda v: [v.module], placement)
        self._mllm: Part[MLLM] = Part(self._load_mllm, lambda m: [m.model], placement, release=True, quantize=True)
        self._conditioner = Part(lambda: load_conditioner(folder, dtype), lambda c: [c], placement, release=True)
        self._text: Part[TextEncoders] = Part(
            lambda: load_text_encoders(folder, dtype), TextEncoders.modules, placement, release=True
        )

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
        """Open a published folder. Weights are read when a job first needs them.

        model: "tiny", a folder, or a hub name. mllm: the same for Qwen2.5-VL, where it is not inside the model.
        lora: an adapter of the transformer, merged into it. device: auto, cpu, cuda, mps.
        dtype: auto, fp32, bf16, fp16.
        offload: none, model, group. quantize: none, fp8, int8. Raises BadInput, BadModel.
        """
        placement = Placement.choose(device, dtype, offload, quantize)
        folder = find_model(str(model))
        _ = folder.kind  # a folder that is no model is refused here
        return cls(
            folder,
            find_mllm(folder, None if mllm is None else str(mllm)),
            placement,
            None if lora is None else str(lora),
        )

    # -- the three jobs ------------------------------------------------------------------------------------------

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

        seed: of the first picture (the next have the next numbers), or one for each picture. width, height: pixels.
        sampling: steps, guidance_scale, guidance_interval, skip_layers (see Request). None takes the model's default.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        check_whole("number of pictures", num_images, 1, MAX_PICTURES)
        seeds = _seeds(seed, len(prompts), num_images)
        values = self._settings("generate", negative_prompt=negative_prompt, width=width, height=height, **sampling)
        requests = [
            Request(prompt=p, seed=s, **values)
            for i, p in enumerate(prompts)
            for s in seeds[i * num_images :][:num_images]
        ]
        return self.run(requests, fast_batch=fast_batch, on_step=on_step)

    def edit(
        self,
        image: pictures.PictureLike | Sequence[pictures.PictureLike],
        instruction: str | Sequence[str],
        *,
        references: Sequence[pictures.PictureLike] = (),
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
        """Edit a picture as told, or each of several pictures by its own instruction (a single one serves all).

        references: further pictures to take from, for every edit. image_size: the longer side that pictures are worked
        at. width, height: of the result, where it should differ from the picture's working size. keep_size: scale the
        result to the input's own size. The rest as in `generate`.
        """
        images = pictures.as_list(image)
        instructions = [instruction] * len(images) if isinstance(instruction, str) else list(instruction)
        if not images or len(images) != len(instructions):
            raise BadInput(
                "pictures and instructions do not pair up",
                f"{len(images)} pictures, {len(instructions)} instructions",
                "give one instruction, or one for each picture",
            )
        check_whole("number of pictures", num_images, 1, MAX_PICTURES)
        seeds = _seeds(seed, len(images), num_images)
        values = self._settings("edit", negative_prompt=negative_prompt, image_size=image_size, **sampling)
        longer = values.pop("image_size")
        self.spec.check_side("image size", longer, EDIT_MULTIPLE)
        originals = [pictures.load(i) for i in images]
        extra = tuple(_resized(pictures.load(r), longer) for r in references)
        requests = []
        for i, (original, text) in enumerate(zip(originals, instructions, strict=True)):
            source = _resized(original, longer)
            size = {
                "width": source.width if width is None else width,
                "height": source.height if height is None else height,
            }
            requests += [
                Request(prompt=text, seed=s, references=(source, *extra), **size, **values)
                for s in seeds[i * num_images :][:num_images]
            ]
        results = self.run(requests, fast_batch=fast_batch, on_step=on_step)
        if keep_size:
            results = [_scaled(r, originals[i // num_images].size) for i, r in enumerate(results)]
        return results

    def describe(
        self,
        image: pictures.PictureLike | Sequence[pictures.PictureLike],
        question: str | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> str:
        """What the multimodal language model answers about a picture (or several)."""
        return "".join(self.describe_stream(image, question, max_new_tokens=max_new_tokens)).strip()

    def describe_stream(
        self,
        image: pictures.PictureLike | Sequence[pictures.PictureLike],
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
        for picture in shown:
            if max(picture.size) > 200 * min(picture.size):  # what the image processor refuses
                raise BadInput("the picture is too elongated", f"{picture.width}x{picture.height} pixels", "crop it")
        with self._mllm.use() as mllm:
            yield from mllm.describe(shown, asked, limit)

    def run(
        self, requests: Sequence[Request], *, fast_batch: bool = False, on_step: OnStep | None = None
    ) -> list[Image]:
        """The pictures of any requests, in order; each carries its settings (`save_png` writes them).

        Exact by default: one guidance pair per forward, so a request gives the same bytes alone and in any company.
        fast_batch: requests of one shape and schedule share forwards; within one grey level of the exact result.
        """
        for request in requests:
            self.spec.check_request(request)
        encoded = self._encode(requests)
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[_shape_of(request) if fast_batch else i].append(i)
        latents: dict[int, Tensor] = {}
        with self._transformer.use() as transformer:
            for members in groups.values():
                joint = self._sample(
                    transformer, [requests[i] for i in members], [encoded[i] for i in members], members, on_step
                )
                latents.update(zip(members, torch.split(joint, 1), strict=True))
        with self._vae.use() as vae:
            results = [vae.decode(latents[i]) for i in range(len(requests))]
        for request, result in zip(requests, results, strict=True):
            result.info[pictures.SETTINGS_KEY] = json.dumps(
                describe_making(self, request, fast_batch), ensure_ascii=False
            )
        return results

    # -- the parts of a run --------------------------------------------------------------------------------------

    def _encode(self, requests: Sequence[Request]) -> list[_Encoded]:
        """Conditions and reference latents, each request by itself; equal ones of a run are encoded once."""
        seen = {id(picture): picture for request in requests for picture in request.references}
        latents: dict[int, Tensor] = {}
        if seen:
            with self._vae.use() as vae:
                latents = {key: vae.encode(picture) for key, picture in seen.items()}
        conditions: dict[Any, Condition] = {}
        with self._encoder() as encode:
            for key, request in ((_condition_key(r), r) for r in requests):
                if key not in conditions:
                    conditions[key] = encode(_texts(request), request.references)
        pairs = [conditions[_condition_key(r)] for r in requests]
        return [
            _Encoded(both[:1], both[1:] if r.guided else None, [latents[id(p)] for p in r.references])
            for r, both in zip(requests, pairs, strict=True)
        ]

    @contextmanager
    def _encoder(self) -> Iterator[Callable[[Sequence[str], Sequence[Image]], Condition]]:
        """(texts, references) → a condition for each text."""
        if self.folder.kind == "metaquery":
            with self._mllm.use() as mllm, self._conditioner.use() as conditioner:
                yield MetaQuery(mllm, conditioner).encode
        else:
            with self._text.use() as encoders:  # one text at a time, as published: the same bits in any company
                yield lambda texts, _: Condition.cat([encoders.encode([text]) for text in texts])

    @torch.no_grad()
    def _sample(
        self,
        transformer: KontextTransformer,
        requests: Sequence[Request],
        encoded: Sequence[_Encoded],
        numbers: Sequence[int],
        on_step: OnStep | None,
    ) -> Tensor:
        """Latents of requests of one shape and schedule, as one batch."""
        first = requests[0]
        device, dtype = self.placement.device, self.placement.dtype
        sigmas = flow.sigmas(first.steps, self.spec.shift)
        velocity = guided(
            transformer,
            Condition.cat([e.condition for e in encoded]),
            Condition.cat([e.negative for e in encoded if e.negative]) if first.guided else None,
            [torch.cat(latents).to(device, dtype) for latents in zip(*(e.references for e in encoded), strict=True)],
            scale=torch.tensor([r.guidance_scale for r in requests], device=device).view(-1, 1, 1, 1),
            interval=first.guidance_interval,
            skip=_skip_layers(first.skip_layers, sigmas),
        )
        noise = torch.cat([self._noise(r) for r in requests])

        def report(step: Step) -> None:
            assert on_step
            for number, x0 in zip(numbers, torch.split(step.x0, 1), strict=True):
                on_step(Progress(number, step.number, step.total, step.sigma, lambda x0=x0: self._decode(x0)))  # type: ignore[misc]

        return sample(velocity, noise, sigmas, report if on_step else None)

    def _noise(self, request: Request) -> Tensor:
        """The seed's first draw, on the device and in the precision of the model: the published code's latents."""
        generator = torch.Generator(self.placement.device).manual_seed(request.seed)
        shape = (
            1,
            self.spec.latent_channels,
            request.height // self.spec.vae_factor,
            request.width // self.spec.vae_factor,
        )
        return torch.randn(shape, generator=generator, device=self.placement.device, dtype=self.placement.dtype)

    def _decode(self, latent: Tensor) -> Image:
        with self._vae.use() as vae:
            return vae.decode(latent)

    def _settings(self, task: str, **given: Any) -> dict[str, Any]:
        """The model's defaults under what was given."""
        if stray := set(given) - set(self.defaults[task]) - {"guidance_interval", "skip_layers"}:
            raise TypeError(f"{task}() has no setting {sorted(stray)[0]!r}")
        return {**self.defaults[task], **{k: v for k, v in given.items() if v is not None}}

    # -- loading and saving --------------------------------------------------------------------------------------

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 over all weights that make pictures."""
        return self.folder.weights_hash(self.mllm_folder if self.folder.kind == "metaquery" else None)

    @cached_property
    def lora_hash(self) -> str | None:
        """SHA-256 of the adapter, if there is one."""
        if self.lora is None:
            return None
        path = Path(self.lora)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    def _load_transformer(self) -> KontextTransformer:
        transformer = load_transformer(self.folder, self.placement.dtype)
        if self.lora is not None:
            merge_lora(transformer, self.lora)
        return transformer

    def _load_mllm(self) -> MLLM:
        if self.mllm_folder is None:
            raise BadInput(
                f"the model {self.folder.name!r} has no multimodal language model to describe with",
                "a Kontext model only generates and edits",
                "use a MetaQuery model, or give --mllm",
            )
        return load_mllm(self.mllm_folder, self.placement.dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model in its published layout: parts in memory as they are now, the others as they were read.

        The folder must not exist, or be empty.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise BadInput("there is something already", str(target), "give a new or empty folder")
        if self.placement.quantize != "none":
            raise BadInput(
                "8-bit weights cannot be saved in the published layout", str(target), "load without --quantize"
            )
        if self.lora is not None:
            with self._transformer.use():
                pass  # merged into the weights that are saved
        target.mkdir(parents=True, exist_ok=True)
        names = [*self.folder.components(), *(["mllm"] if self.folder.has("mllm") else [])]
        for name in names:
            shutil.copytree(self.folder.check_subfolder(name), target / name, copy_function=shutil.copyfile)
        if self.folder.has("model_index.json"):
            shutil.copyfile(self.folder.file("model_index.json"), target / "model_index.json")
        for name, module in self._loaded_modules():
            for old in (target / name).glob("*.safetensors*"):
                old.unlink()
            checkpoint.write_component(target, name, self.folder.config(name), module.state_dict())
        checkpoint.write_manifest(target, self.folder.defaults)

    def _loaded_modules(self) -> list[tuple[str, torch.nn.Module]]:
        """What training or an adapter may have changed; the frozen parts are copied."""
        loaded = [("transformer", self._transformer.loaded), ("conditioner", self._conditioner.loaded)]
        return [(name, module) for name, module in loaded if module is not None]


@dataclass(frozen=True)
class _Encoded:
    condition: Condition
    negative: Condition | None
    references: list[Tensor]


def _texts(request: Request) -> list[str]:
    return [request.prompt, request.negative_prompt] if request.guided else [request.prompt]


def _condition_key(request: Request) -> tuple[Any, ...]:
    return (*_texts(request), *(id(picture) for picture in request.references))


def _shape_of(request: Request) -> tuple[Any, ...]:
    """What requests must share to share a forward."""
    return (
        (request.width, request.height, request.steps, request.guided, request.guidance_interval, request.skip_layers),
        tuple(picture.size for picture in request.references),
    )


def _skip_layers(skip: SkipLayerGuidance | None, sigmas: Tensor) -> SkipLayers | None:
    """Fractions of the steps, as noise levels."""
    if skip is None:
        return None
    steps = len(sigmas) - 1
    acting = [float(s) for i, s in enumerate(sigmas[:-1]) if steps * skip.start < i < steps * skip.stop]
    return SkipLayers(skip.layers, skip.scale, frozenset(acting))


def _seeds(seed: int | Sequence[int], texts: int, num_images: int) -> list[int]:
    """A seed for each picture; a single one counts on from picture to picture of a prompt, and anew for the next."""
    if isinstance(seed, Sequence):
        if len(seed) != texts * num_images:
            raise BadInput(
                f"{len(seed)} seeds for {texts * num_images} pictures", "seed", "give one for each, or one number"
            )
        return list(seed)
    check_whole("seed", seed, 0, MAX_SEED - num_images + 1)
    return [seed + i for i in range(num_images)] * texts


def _resized(picture: Image, longer_side: int) -> Image:
    """At its working size (bicubic, as published)."""
    return picture.resize(pictures.working_size(picture.size, longer_side, EDIT_MULTIPLE))


def _scaled(result: Image, size: tuple[int, int]) -> Image:
    scaled = result.resize(size, Resampling.LANCZOS)
    scaled.info.update(result.info)
    return scaled
