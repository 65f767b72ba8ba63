"""SD3.5's transformer with references, in float64 and by hand: from the state dict, one formula after the other.

Written from the papers' formulas (SD3: arXiv 2403.03206) and the checkpoints' key names, without diffusers' modules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class ReferenceSD3:
    """A slow twin of `KontextTransformer`; gradients flow to `weights` (float64 leaves)."""

    def __init__(self, state: dict[str, Tensor], config: dict) -> None:
        self.weights = {name: t.detach().double().requires_grad_() for name, t in state.items()}
        self.config = config
        self.heads = config["num_attention_heads"]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def positions(self, height: int, width: int) -> Tensor:
        """Sine-cosine positions of the central crop of a grid of pos_embed_max_size², spaced as diffusers spaces it."""
        size, dim = self.config["pos_embed_max_size"], self.heads * self.config["attention_head_dim"]
        spacing = (self.config["sample_size"] // self.config["patch_size"]) / size
        frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        rows = []
        for y in range((size - height) // 2, (size - height) // 2 + height):
            for x in range((size - width) // 2, (size - width) // 2 + width):
                angles = [place * spacing * frequencies for place in (x, y)]
                rows.append(torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)]))
        return torch.stack(rows)

    def embed(self, latent: Tensor) -> Tensor:
        """Patches, one by one, times the convolution's kernel, plus positions."""
        p = self.config["patch_size"]
        height, width = latent.shape[-2] // p, latent.shape[-1] // p
        kernel = self.weights["pos_embed.proj.weight"].flatten(1)
        patches = [
            latent[:, :, y * p : (y + 1) * p, x * p : (x + 1) * p].flatten(1) @ kernel.T
            for y in range(height)
            for x in range(width)
        ]
        return torch.stack(patches, dim=1) + self.weights["pos_embed.proj.bias"] + self.positions(height, width)

    def modulation(self, timestep: Tensor, pooled: Tensor) -> Tensor:
        angles = timestep.double()[:, None] * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        parts = []
        for name, x in (("timestep", torch.cat([angles.cos(), angles.sin()], dim=1)), ("text", pooled)):
            hidden = self.linear(f"time_text_embed.{name}_embedder.linear_1", x)
            parts.append(self.linear(f"time_text_embed.{name}_embedder.linear_2", hidden * hidden.sigmoid()))
        return parts[0] + parts[1]

    def modulated(self, name: str, emb: Tensor, chunks: int) -> tuple[Tensor, ...]:
        return self.linear(f"{name}.linear", emb * emb.sigmoid())[:, None].chunk(chunks, dim=-1)

    @staticmethod
    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)

    def head_norm(self, name: str, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weights[f"{name}.weight"]

    def split(self, prefix: str, names: Sequence[str], norms: Sequence[str], x: Tensor) -> list[Tensor]:
        """Queries, keys (both normalised) and values: B×heads×N×width each."""
        out = [self.linear(f"{prefix}.{n}", x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for n in names]
        return [self.head_norm(f"{prefix}.{norms[0]}", out[0]), self.head_norm(f"{prefix}.{norms[1]}", out[1]), out[2]]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (scores @ v).transpose(1, 2).flatten(2)

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        h = self.linear(f"{name}.net.0.proj", x)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return self.linear(f"{name}.net.2", h)

    def block(self, index: int, image: Tensor, text: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        at, last = f"transformer_blocks.{index}", index == self.config["num_layers"] - 1
        dual = index in self.config["dual_attention_layers"]
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *second = self.modulated(f"{at}.norm1", emb, 9 if dual else 6)
        seen = self.norm(image) * (1 + scale) + shift
        if last:
            t_scale, t_shift = self.modulated(f"{at}.norm1_context", emb, 2)
        else:
            t_shift, t_scale, t_gate, t_shift_ff, t_scale_ff, t_gate_ff = self.modulated(f"{at}.norm1_context", emb, 6)
        read = self.norm(text) * (1 + t_scale) + t_shift

        mine = self.split(f"{at}.attn", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), seen)
        theirs = self.split(
            f"{at}.attn", ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k"), read
        )
        joint = self.attend(*(torch.cat(pair, dim=2) for pair in zip(mine, theirs, strict=True)))
        from_image, from_text = joint[:, : image.shape[1]], joint[:, image.shape[1] :]
        before = image
        image = image + gate * self.linear(f"{at}.attn.to_out.0", from_image)
        if dual:
            own = self.norm(before) * (1 + second[1]) + second[0]
            own = self.attend(*self.split(f"{at}.attn2", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), own))
            image = image + second[2] * self.linear(f"{at}.attn2.to_out.0", own)
        image = image + gate_ff * self.feed_forward(f"{at}.ff", self.norm(image) * (1 + scale_ff) + shift_ff)
        if not last:
            text = text + t_gate * self.linear(f"{at}.attn.to_add_out", from_text)
            text = text + t_gate_ff * self.feed_forward(
                f"{at}.ff_context", self.norm(text) * (1 + t_scale_ff) + t_shift_ff
            )
        return image, text

    def __call__(
        self,
        x: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        timestep: Tensor,
        references: Sequence[Tensor] = (),
        skip_layers: Sequence[int] = (),
    ) -> Tensor:
        x, tokens, pooled = x.double(), tokens.double(), pooled.double()
        p = self.config["patch_size"]
        height, width = x.shape[-2] // p, x.shape[-1] // p
        image = torch.cat([self.embed(latent.double()) for latent in (*references, x)], dim=1)
        emb = self.modulation(timestep, pooled)
        text = self.linear("context_embedder", tokens)
        for index in range(self.config["num_layers"]):
            if index not in skip_layers:
                image, text = self.block(index, image, text, emb)
        scale, shift = self.modulated("norm_out", emb, 2)
        out = self.linear("proj_out", self.norm(image[:, image.shape[1] - height * width :]) * (1 + scale) + shift)
        result = x.new_zeros(x.shape)
        for i in range(height * width):
            y, column = divmod(i, width)
            patch = out[:, i].reshape(len(x), p, p, -1).permute(0, 3, 1, 2)
            result[:, :, y * p : (y + 1) * p, column * p : (column + 1) * p] = patch
        return result
