"""From requests to pictures: encode, sample, decode.

A picture depends on its request and the weights alone. By default every request is sampled by itself, one guidance pair
per forward, so that its bytes are the same in any company: a batched matrix product sums in another order, and the last
bits differ. `fast_batch` shares forwards between requests of one shape; its pictures stay within one grey level.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from unipic import flow
from unipic.models.kontext import KontextTransformer
from unipic.parts import Parts
from unipic.pictures import SETTINGS_KEY
from unipic.sampling import SkipLayers, Step, Velocity, guided, sample
from unipic.settings import describe_making
from unipic.types import Condition, Request, SkipLayerGuidance


@dataclass(frozen=True)
class Progress:
    """What a callback learns after each step.

    picture: which of the requests. step: of `steps`. sigma: the noise level reached. preview(): decodes the present
    estimate of the finished picture.
    """

    picture: int
    step: int
    steps: int
    sigma: float
    preview: Callable[[], Image] = field(repr=False)


FAST_BATCH = 8  # requests in one forward, at most: 16 samples with guidance
OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class Encoded:
    """What the transformer is given of one request."""

    condition: Condition
    negative: Condition | None
    references: list[Tensor]


def make_pictures(
    parts: Parts, requests: Sequence[Request], *, fast_batch: bool = False, on_step: OnStep | None = None
) -> list[Image]:
    """The pictures of the requests, in their order, each with its settings in `info`."""
    parts.spec.check_parts()
    for request in requests:
        parts.spec.check_request(request)
    encoded = encode(parts, requests)
    latents: dict[int, Tensor] = {}
    with parts.transformer.use() as transformer:
        for members in _groups(requests, fast_batch):
            work = [(requests[i], encoded[i]) for i in members]
            report = None if on_step is None else _reporter(parts, members, on_step)
            latents.update(zip(members, _sample(parts, transformer, work, report), strict=True))
    with parts.vae.use() as vae:
        results = [_sized(vae.decode(latents[i]), request) for i, request in enumerate(requests)]
    for request, result in zip(requests, results, strict=True):
        result.info[SETTINGS_KEY] = json.dumps(describe_making(parts, request, fast_batch), ensure_ascii=False)
    return results


def _sized(picture: Image, request: Request) -> Image:
    return picture if request.keep_size is None else picture.resize(request.keep_size, Resampling.LANCZOS)


def encode(parts: Parts, requests: Sequence[Request]) -> list[Encoded]:
    """Conditions and reference latents, request by request; what several requests share is encoded once."""
    pictures = {id(picture): picture for request in requests for picture in _to_dit(request)}
    latents: dict[int, Tensor] = {}
    if pictures:
        with parts.vae.use() as vae:
            latents = {key: vae.encode(picture) for key, picture in pictures.items()}
    conditions: dict[Any, Condition] = {}
    with parts.encoder() as encoder:
        for request in requests:
            if (key := _condition_key(request)) not in conditions:
                conditions[key] = encoder(_texts(request), _to_mllm(request))
    encoded = []
    for request in requests:
        pair = conditions[_condition_key(request)]
        negative = pair[1:] if request.guided else None
        encoded.append(Encoded(pair[:1], negative, [latents[id(picture)] for picture in _to_dit(request)]))
    return encoded


@torch.no_grad()
def _sample(
    parts: Parts,
    transformer: KontextTransformer,
    work: Sequence[tuple[Request, Encoded]],
    report: Callable[[Step], None] | None,
) -> Sequence[Tensor]:
    """Latents of requests of one shape and schedule, as one batch."""
    sigmas = flow.sigmas(work[0][0].steps, parts.spec.shift)
    noise = torch.cat([initial_latent(parts, request) for request, _ in work])
    return torch.split(sample(velocity_of(parts, transformer, work, sigmas), noise, sigmas, report), 1)


def velocity_of(
    parts: Parts, transformer: KontextTransformer, work: Sequence[tuple[Request, Encoded]], sigmas: Tensor
) -> Velocity:
    """The velocity that requests of one shape and schedule ask for, as one batch."""
    first, device, dtype = work[0][0], parts.placement.device, parts.placement.dtype
    return guided(
        transformer,
        Condition.cat([e.condition for _, e in work]),
        Condition.cat([e.negative for _, e in work if e.negative]) if first.guided else None,
        [torch.cat(latents).to(device, dtype) for latents in zip(*(e.references for _, e in work), strict=True)],
        scale=torch.tensor([r.guidance_scale for r, _ in work], device=device).view(-1, 1, 1, 1),
        interval=first.guidance_interval,
        skip=_skip_layers(first.skip_layers, sigmas),
    )


def initial_latent(parts: Parts, request: Request) -> Tensor:
    """The seed's first draw, on the device and in the precision of the model: the published code's noise."""
    device, factor = parts.placement.device, parts.spec.vae_factor
    generator = torch.Generator(device).manual_seed(request.seed)
    shape = (1, parts.spec.latent_channels, request.height // factor, request.width // factor)
    return torch.randn(shape, generator=generator, device=device, dtype=parts.placement.dtype)


def _groups(requests: Sequence[Request], fast_batch: bool) -> list[list[int]]:
    """Which requests share forwards."""
    if not fast_batch:
        return [[i] for i in range(len(requests))]
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, r in enumerate(requests):
        sizes = (r.width, r.height, *(picture.size for picture in r.references))
        groups[sizes, r.reference_to, r.steps, r.guided, r.guidance_interval, r.skip_layers].append(i)
    return [members[i : i + FAST_BATCH] for members in groups.values() for i in range(0, len(members), FAST_BATCH)]


def _reporter(parts: Parts, members: Sequence[int], on_step: OnStep) -> Callable[[Step], None]:
    def preview(x0: Tensor) -> Image:
        with parts.vae.use() as vae:
            return vae.decode(x0)

    def report(step: Step) -> None:
        for picture, x0 in zip(members, torch.split(step.x0, 1), strict=True):
            on_step(Progress(picture, step.number, step.total, step.sigma, lambda x0=x0: preview(x0)))  # type: ignore[misc]

    return report


def _skip_layers(skip: SkipLayerGuidance | None, sigmas: Tensor) -> SkipLayers | None:
    """Fractions of the steps, as noise levels."""
    if skip is None:
        return None
    steps = len(sigmas) - 1
    acting = [float(s) for i, s in enumerate(sigmas[:-1]) if steps * skip.start < i < steps * skip.stop]
    return SkipLayers(skip.layers, skip.scale, frozenset(acting))


def _texts(request: Request) -> list[str]:
    return [request.prompt, request.negative_prompt] if request.guided else [request.prompt]


def _condition_key(request: Request) -> tuple[Any, ...]:
    return (*_texts(request), *(id(picture) for picture in _to_mllm(request)))


def _to_dit(request: Request) -> tuple[Image, ...]:
    return request.references if request.reference_to != "mllm" else ()


def _to_mllm(request: Request) -> tuple[Image, ...]:
    return request.references if request.reference_to != "dit" else ()
