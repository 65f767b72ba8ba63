"""Pictures to latents and back, with SD3.5's autoencoder."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL.Image import Image, fromarray
from torch import Tensor

from unipic.errors import BadModel, UnipicError
from unipic.models.checkpoint import blank_diffusers, fill, read_component
from unipic.models.folder import ModelFolder

TILE_ABOVE = 1536 * 1536  # pixels; a larger picture is encoded and decoded in overlapping tiles


class VAE:
    """The autoencoder of a model. Latents are shifted and scaled to about unit variance."""

    def __init__(self, module: Any, tile_above: int = TILE_ABOVE) -> None:
        self.module = module
        self.tile_above = tile_above
        self.scale, self.shift = module.config.scaling_factor, module.config.shift_factor or 0.0  # older ones have none

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent."""
        return int(2 ** (len(self.module.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, picture: Image) -> Tensor:
        """1×C×H×W latent of an RGB picture.

        The published code draws from the posterior without a seed, so that a seed does not fix an edit; its mode does.
        """
        return self.latents(torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None])

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """B×C×H×W latents, the posterior's modes, of B×3×h×w pictures in grey levels 0 to 255."""
        batch = (pixels.float() / 255 * 2 - 1).contiguous()  # torch's group norm of channels-last is 1,000× less exact
        self._tile(pixels.shape[-1] * pixels.shape[-2])
        posterior = self.module.encode(batch.to(self.module.device, self.module.dtype)).latent_dist
        return self.normalised(posterior.mode())

    def normalised(self, latent: Tensor) -> Tensor:
        """A raw latent in the transformer's units."""
        scaled: Tensor = (latent - self.shift) * self.scale
        return scaled

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Image:
        """The RGB picture of one latent, 1×C×H×W."""
        raw = latent.to(self.module.device, self.module.dtype)
        raw = raw / self.scale + self.shift
        self._tile(latent.shape[-1] * latent.shape[-2] * self.factor**2)
        pixels = self.module.decode(raw, return_dict=False)[0]
        if not pixels.isfinite().all():
            what = f"the model computed NaN or Inf in {str(self.module.dtype).removeprefix('torch.')}"
            raise UnipicError(what, "while decoding the picture", "use --dtype bf16 or fp32")
        levels = (pixels[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
        return fromarray((levels * 255).round().astype(np.uint8))

    def _tile(self, pixels: int) -> None:
        if pixels > self.tile_above:
            self.module.enable_tiling()
        else:
            self.module.disable_tiling()


def blank_vae(folder: ModelFolder) -> Any:
    """The AutoencoderKL that a folder describes, without its weights."""
    config, where = folder.config("vae"), str(folder.root / "vae" / "config.json")
    for key, sound in (("scaling_factor", lambda v: v > 0), ("shift_factor", lambda v: True)):
        value = config.get(key, 1.0)
        if value is not None and not (type(value) in (int, float) and math.isfinite(value) and sound(value)):
            raise BadModel(f"{key} is {value!r}, no number to scale by", where, "download or save the model again")
    return blank_diffusers(AutoencoderKL, folder.config("vae"), folder.root / "vae")


def load_vae(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The AutoencoderKL of a published folder."""
    return fill(blank_vae(folder), read_component(folder, "vae", dtype), folder.root / "vae")
