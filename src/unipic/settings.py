"""What a picture says of its own making: enough to make it again, bit for bit, on the same kind of machine."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import diffusers
import PIL
import torch
import transformers

from unipic import __version__
from unipic.types import Request

if TYPE_CHECKING:
    from unipic.parts import Parts


def describe_making(parts: Parts, request: Request, fast_batch: bool) -> dict[str, Any]:
    """The settings that a PNG carries. Nothing in them depends on what else was made in the same run."""
    placement = parts.placement
    settings: dict[str, Any] = {
        "task": "edit" if request.references else "generate",
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "width": request.width,
        "height": request.height,
        "model": parts.folder.name,
        "weights": parts.weights_hash,
        "device": placement.device.type,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "versions": {
            "unipic": __version__,
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
        },
        "threads": torch.get_num_threads(),
    }
    if request.references:
        settings["references"] = [
            {"width": p.width, "height": p.height, "sha256": hashlib.sha256(p.tobytes()).hexdigest()}
            for p in request.references
        ]
    options = {
        "guidance_interval": request.guidance_interval and list(request.guidance_interval),
        "skip_layers": request.skip_layers and asdict(request.skip_layers),
        "keep_size": request.keep_size and list(request.keep_size),
        "reference_to": None if request.reference_to == "both" else request.reference_to,
        "lora": parts.lora_hash,
        "quantize": None if placement.quantize == "none" else placement.quantize,
        "fast_batch": fast_batch or None,
    }
    return settings | {name: value for name, value in options.items() if value is not None}
