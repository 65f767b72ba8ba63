"""The few types that travel between rooms, and the legend of the letters in shapes.

B batch · C latent channels · H, W latent height and width · L condition tokens · D width of a token
P width of the pooled condition · T sampling steps · N image tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

from unipic.errors import BadInput

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

# Bounds of a request. They refuse slips of the keyboard, not ambition.
MAX_STEPS = 1_000
MAX_GUIDANCE = 100.0
MAX_PICTURES = 256
MAX_PROMPT = 16_384  # characters
MAX_SEED = 2**64 - 1  # what torch.Generator takes

GENERATE_PREFIX = "Generate an image: "  # MetaQuery: before a prompt without a picture; an instruction stands alone

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
        "reference_to": "both",
    },
    "describe": {"question": "Describe the image in detail.", "max_new_tokens": 512},
}


REFERENCE_TO = ("both", "mllm", "dit")  # who sees the pictures to be edited (paper, Table 2); Kontext: the DiT alone


@dataclass(frozen=True)
class Condition:
    """What the transformer is told of a prompt, whoever encoded it: CLIP and T5, or MetaQuery.

    tokens: B×L×D, joint attention reads them. pooled: B×P, modulates every layer.
    """

    tokens: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: slice) -> Condition:
        return Condition(self.tokens[index], self.pooled[index])

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Join along the batch."""
        import torch

        return Condition(torch.cat([c.tokens for c in conditions]), torch.cat([c.pooled for c in conditions]))


@dataclass(frozen=True)
class SkipLayerGuidance:
    """SD3.5-Medium's extra push away from a prediction that leaves some layers out.

    start, stop: fractions of the steps between which it acts (both exclusive, as in diffusers).
    """

    layers: tuple[int, ...]
    scale: float = 2.8
    start: float = 0.01
    stop: float = 0.2


@dataclass(frozen=True)
class Request:
    """One picture to be made: a generation, or, with references, an edit of the first of them.

    width, height: pixels that it is made at. references: RGB pictures at their working size. keep_size: pixels that the
    result is scaled to. reference_to: one of REFERENCE_TO, as the model was trained.
    guidance_interval: the noise levels (σ, low and high) between which guidance acts; None is everywhere.
    """

    prompt: str
    width: int
    height: int
    seed: int = 42
    negative_prompt: str = ""
    steps: int = 50
    guidance_scale: float = 3.5
    guidance_interval: tuple[float, float] | None = None
    skip_layers: SkipLayerGuidance | None = None
    references: tuple[Image, ...] = field(default=(), repr=False)
    keep_size: tuple[int, int] | None = None
    reference_to: str = "both"

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative prompt", self.negative_prompt, may_be_empty=True)
        check_whole("seed", self.seed, 0, MAX_SEED)
        check_whole("number of steps", self.steps, 1, MAX_STEPS)
        check_number("guidance scale", self.guidance_scale, 0.0, MAX_GUIDANCE)
        if self.reference_to not in REFERENCE_TO:
            known = ", ".join(REFERENCE_TO)
            raise BadInput(
                "who sees the references is not known", f"reference_to: {self.reference_to!r}", f"give one of {known}"
            )
        if (interval := self.guidance_interval) is not None:
            if not isinstance(interval, tuple) or len(interval) != 2:
                raise BadInput("the guidance interval is no pair", f"got {interval!r}", "give (low, high)")
            low, high = interval
            check_number("guidance interval", low, 0.0, 1.0)
            check_number("guidance interval", high, low, 1.0)
        if (skip := self.skip_layers) is not None:
            if not self.guided:
                where = f"the guidance scale is {self.guidance_scale:g}"
                raise BadInput("skip-layer guidance needs guidance", where, "raise the guidance scale above 1")
            check_number("skip-layer guidance scale", skip.scale, 0.0, MAX_GUIDANCE)
            check_number("skip-layer guidance start", skip.start, 0.0, 1.0)
            check_number("skip-layer guidance stop", skip.stop, skip.start, 1.0)

    @property
    def guided(self) -> bool:
        """Whether a negative prediction is needed: like the published code, only for a scale above 1."""
        return self.guidance_scale > 1


def check_text(name: str, text: object, *, may_be_empty: bool = False) -> None:
    """Refuse what no tokenizer and no file can hold; everything else is taken literally."""
    if not isinstance(text, str):
        raise BadInput(f"the {name} is not text", f"got {type(text).__name__}", "give a string")
    if not text.strip() and not may_be_empty:
        raise BadInput(f"the {name} is empty", f"got {text!r}", "say it in a few words")
    if len(text) > MAX_PROMPT:
        raise BadInput(
            f"the {name} is too long", f"{len(text):,} characters", f"shorten it to at most {MAX_PROMPT:,} characters"
        )
    if bad := next((c for c in text if c == "\0" or "\ud800" <= c <= "\udfff"), None):
        raise BadInput(
            f"the {name} holds a character that is not text",
            f"{bad!r} at position {text.index(bad)}",
            "remove it (often a sign of a wrongly decoded file)",
        )


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not a whole number from low to high."""
    whole = isinstance(value, SupportsIndex) and not isinstance(value, bool)  # also numpy's
    if not whole or not low <= int(value) <= high:  # type: ignore[call-overload]
        raise BadInput(f"the {name} is out of range", f"got {value!r}", f"give a whole number from {low} to {high}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Refuse what is not a finite number from low to high."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high):
        raise BadInput(f"the {name} is out of range", f"got {value!r}", f"give a number from {low:g} to {high:g}")
