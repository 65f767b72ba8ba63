"""UniPic2-Kontext's transformer: SD3.5-Medium's, which also reads reference latents.

References are extra image tokens: embedded by the same patch embedding with the same cropped sine-cosine positions as
the target, put before it in the sequence, and cut off after the last block. The paper says that the positional encoding
distinguishes reference from target (§3.1); in the published code, and so in the published weights, it does not: only
order and content differ.

State-dict keys and config are those of diffusers' SD3Transformer2DModel. Left out of its forward: ControlNet residuals
and IP-Adapter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from unipic.models.checkpoint import blank_diffusers, fill, read_component
from unipic.models.folder import ModelFolder


class KontextTransformer(SD3Transformer2DModel):  # type: ignore[misc]  # diffusers is untyped
    """SD3's multimodal diffusion transformer with references.

    Called by `sampling.guided` and by training, not by diffusers' pipelines: it returns the velocity itself.
    """

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        *,
        references: Sequence[Tensor] = (),
        skip_layers: Sequence[int] = (),
        taps: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Velocity of the noisy latents.

        hidden_states: B×C×H×W. encoder_hidden_states: B×L×D. pooled_projections: B×P. timestep: B, σ·1000.
        references: latents B×C×h×w each, each of its own size. skip_layers: blocks left out. taps: is filled
        with each block's image tokens, B×N×D, those of references first. Returns B×C×H×W.
        """
        height, width = (side // self.config.patch_size for side in hidden_states.shape[-2:])
        images = [self.pos_embed(latent).contiguous() for latent in (*references, hidden_states)]
        image = torch.cat(images, dim=1) if references else images[0]
        modulation = self.time_text_embed(timestep, pooled_projections)
        text = self.context_embedder(encoder_hidden_states)

        for index, block in enumerate(self.transformer_blocks):
            if index in skip_layers:
                continue
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, image = self._gradient_checkpointing_func(block, image, text, modulation)
            else:
                text, image = block(image, text, modulation)
            if taps is not None:
                taps[index] = image

        target = self.proj_out(self.norm_out(image[:, -height * width :], modulation))
        patch = self.config.patch_size
        target = target.unflatten(1, (height, width)).unflatten(3, (patch, patch, self.out_channels))
        velocity: Tensor = target.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return velocity


def initialise(transformer: KontextTransformer) -> None:
    """Weights to train from nothing, as in DiT: every block and the output begin as if they were not there."""
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 1:
            nn.init.constant_(parameter, float(name.endswith("weight")))  # gains and biases
        elif "norm" in name or name.startswith("proj_out"):  # adaptive modulations, gates among them
            nn.init.zeros_(parameter)
        elif "timestep_embedder" in name or "text_embedder" in name:
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.xavier_uniform_(parameter.view(len(parameter), -1))


def blank_transformer(folder: ModelFolder) -> KontextTransformer:
    """The transformer that a folder describes, without its weights."""
    transformer: KontextTransformer = blank_diffusers(
        KontextTransformer, folder.config("transformer"), folder.root / "transformer"
    )
    return transformer


def load_transformer(folder: ModelFolder, dtype: torch.dtype) -> KontextTransformer:
    """The transformer of a published folder."""
    blank = blank_transformer(folder)
    transformer: KontextTransformer = fill(
        blank, read_component(folder, "transformer", dtype), folder.root / "transformer"
    )
    return transformer
