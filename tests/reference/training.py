"""What a training step computes, in float64 and by hand: losses, conditions and updates from their formulas.

Large modules of libraries (the autoencoder, CLIP, T5, Qwen2.5-VL) run as they are, in float64; what is made of them is
written out here, a sample at a time. Random numbers come from the sample's own streams, in the order of the calls.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unipic.train.randomness import Draws

Leaves = dict[str, Tensor]
PLACE = "<|vision_start|>{}<|vision_end|>"


def doubled(module: Any) -> Any:
    """A library's module in float64, of which gradients can be asked."""
    return copy.deepcopy(module).double().eval().requires_grad_(True)


def leaves_of(module: Any) -> Leaves:
    return {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}


# --- rectified flow ---------------------------------------------------------------------------------------------------


class Choices:
    """The random choices of samples: each noise and then its level, then whether the text is dropped."""

    def __init__(
        self, seed: int, numbers: Sequence[int], shape: Sequence[int], drop: float, times: Any, noises: int = 1
    ) -> None:
        draws, self.noised = Draws(seed, numbers, torch.device("cpu")), list[tuple[Tensor, Tensor]]()
        for _ in range(noises):
            noise = draws.normal(*shape).double()
            u = 1 / (1 + torch.exp(-(times.mean + times.std * draws.normal().double())))
            self.noised.append((noise, times.shift * u / (1 + (times.shift - 1) * u)))
        self.dropped = [bool(u < drop) for u in draws.uniform()]


Conditions = Sequence[tuple[Tensor, Tensor]]
"""Of each sample: 1×L×D tokens, 1×P pooled"""


def flow_losses(
    transformer: Callable[..., Tensor],
    x0: Tensor,
    choices: Choices,
    conditions: Conditions,
    references: Sequence[Tensor],
) -> Tensor:
    """‖v(x_t, t) − (ε − x0)‖² / dimensions of each sample, where x_t = (1 − t)·x0 + t·ε; the mean over its noises."""
    losses = []
    for i, (tokens, pooled) in enumerate(conditions):
        x, own = x0[i : i + 1], []
        for noises, ts in choices.noised:
            noise, t = noises[i : i + 1], ts[i : i + 1]
            v = transformer((1 - t) * x + t * noise, tokens, pooled, 1000 * t, [r[i : i + 1] for r in references])
            own.append(((v - (noise - x)) ** 2).sum() / x.numel())
        losses.append(sum(own, torch.zeros(())) / len(own))
    return torch.stack(losses)


def latents(vae: Any, pixels: Tensor) -> Tensor:
    """The posterior's mode in the transformer's units."""
    with torch.no_grad():
        mode = vae.encode(2 * pixels.double() / 255 - 1).latent_dist.mean
    return (mode - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def adapted(base: Mapping[str, Tensor], adapters: Leaves, rank: int, alpha: float) -> dict[str, Tensor]:
    """W + (α/r)·B·A of every layer with an adapter."""
    weights = {name: w.detach().double() for name, w in base.items()}
    for name, a in adapters.items():
        if ".lora_A." in name:
            b, layer = adapters[name.replace("lora_A", "lora_B")], name.split(".lora_A.")[0]
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + alpha / rank * b @ a
    return weights


# --- conditions -------------------------------------------------------------------------------------------------------


def text_condition(encoders: Sequence[Any], tokenizers: Sequence[Any], text: str) -> tuple[Tensor, Tensor]:
    """CLIP-L's and CLIP-G's last states but one side by side, zeros to T5's width, then T5's states; and pooled."""
    outputs = []
    for encoder, tokenizer in zip(encoders, tokenizers, strict=True):
        ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        outputs.append(encoder(ids, output_hidden_states=True))
    clip = torch.cat([outputs[0].hidden_states[-2], outputs[1].hidden_states[-2]], dim=-1)
    t5 = outputs[2].last_hidden_state
    zeros = clip.new_zeros(1, clip.shape[1], t5.shape[2] - clip.shape[2])
    tokens = torch.cat([torch.cat([clip, zeros], dim=-1), t5], dim=1)
    return tokens, torch.cat([outputs[0].text_embeds, outputs[1].text_embeds], dim=-1)


class LanguageModel:
    """Qwen2.5-VL in float64: one sample at a time, whole, without padding or cache."""

    def __init__(self, mllm: Any) -> None:
        self.mllm, self.model = mllm, doubled(mllm.model)

    def ids(self, text: str) -> list[int]:
        return self.mllm.tokenizer(text, add_special_tokens=False).input_ids

    def prompt(self, text: str, pictures: Sequence[Any], flat: bool) -> tuple[list[int], list[tuple[Tensor, Tensor]]]:
        """Ids of Qwen's chat format without a system turn; patches and grids. flat: pictures at 28/32 of their size."""
        seen = []
        for picture in pictures:
            area = int(picture.height * 28 / 32 * picture.width * 28 / 32)
            size = {"size": {"shortest_edge": area, "longest_edge": area}} if flat else {}
            output = self.mllm.image_processor(images=[picture], return_tensors="pt", **size)
            seen.append((output["pixel_values"].double(), output["image_grid_thw"]))
        places = "".join(PLACE.format("<|image_pad|>" * (int(grid.prod()) // 4)) for _, grid in seen)
        turn = f"<|im_start|>user\n{places}{text}<|im_end|>\n<|im_start|>assistant\n"
        return self.ids(turn), seen

    def embeds(self, ids: list[int], seen: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """1×L×D: tokens of the pictures, one after the other, in place of their pads."""
        rows = list(self.model.get_input_embeddings()(torch.tensor(ids)))
        shown = [row for patches, grid in seen for row in self.model.model.visual(patches, grid_thw=grid).pooler_output]
        pads = [i for i, token in enumerate(ids) if token == self.mllm.special["<|image_pad|>"]]
        for i, row in zip(pads, shown, strict=True):
            rows[i] = row
        return torch.stack(rows)[None]

    def states(self, embeds: Tensor, positions: Tensor | None = None) -> Tensor:
        """1×L×D after the final norm. positions: 3×1×L, else tokens are counted."""
        if positions is None:
            positions = torch.arange(embeds.shape[1]).expand(3, 1, -1)
        return self.model.model.language_model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False
        ).last_hidden_state

    def answer_loss(self, question: str, answer: str, picture: Any, flat: bool) -> Tensor:
        """−log p of an answer's tokens and its end, on average."""
        turn, seen = self.prompt(question, [picture] if picture else [], flat)
        wanted = self.ids(answer + "<|im_end|>")
        ids = torch.tensor([turn + wanted])
        positions = None
        if not flat:
            kinds = (ids == self.mllm.special["<|image_pad|>"]).int()
            grids = torch.cat([grid for _, grid in seen]) if seen else None
            positions, _ = self.model.model.get_rope_index(ids, kinds, image_grid_thw=grids)
        logits = self.model.lm_head(self.states(self.embeds(ids[0].tolist(), seen), positions))[0]
        terms = []
        for i, token in enumerate(wanted, start=len(turn)):
            before = logits[i - 1]
            terms.append(torch.logsumexp(before, 0) - before[token])
        return torch.stack(terms).mean()


def connected(w: Leaves, heads: int, states: Tensor) -> tuple[Tensor, Tensor]:
    """The connector (SigLIP's encoder: pre-norm, GELU by tanh), each token projected, and their mean projected."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    x, n = linear("projector_1", states), 0
    while (at := f"connector.layers.{n}") + ".layer_norm1.weight" in w:
        seen = norm(f"{at}.layer_norm1", x)
        q, k, v = (linear(f"{at}.self_attn.{p}_proj", seen).chunk(heads, dim=-1) for p in "qkv")
        scale = 1 / math.sqrt(q[0].shape[-1])
        heard = [(a @ b.transpose(1, 2) * scale).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        x = x + linear(f"{at}.self_attn.out_proj", torch.cat(heard, dim=-1))
        h = linear(f"{at}.mlp.fc1", norm(f"{at}.layer_norm2", x))
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x, n = x + linear(f"{at}.mlp.fc2", h), n + 1
    return linear("projector_3", x), linear("projector_2", x.mean(1))


# --- losses of the stand-ins ------------------------------------------------------------------------------------------


def vae_loss(vae: Any, pixels: Tensor, draws: Draws, config: Any) -> Tensor:
    """Of each sample: |d| + squares·d² + edges·(|∂x d| + |∂y d|), averaged, + kl·KL(posterior ‖ N(0, 1)) / values.

    Decoded is the posterior's draw with noise of up to config.noise of its own deviation.
    """
    x = 2 * pixels.double() / 255 - 1
    posterior = vae.encode(x).latent_dist
    mean, variance = posterior.mean, posterior.logvar.exp()
    latent = mean + variance.sqrt() * draws.normal(*mean.shape[1:]).double()
    level, noise = config.noise * draws.uniform().double(), draws.normal(*mean.shape[1:]).double()
    spread = torch.stack([one.detach().flatten().var(correction=1).sqrt() for one in latent])  # no gradient goes there
    d = vae.decode(latent + (level * spread)[:, None, None, None] * noise).sample - x
    divergence = 0.5 * (mean**2 + variance - 1 - variance.log()).sum((1, 2, 3))
    right, below = d[..., :, 1:] - d[..., :, :-1], d[..., 1:, :] - d[..., :-1, :]
    each = [part.abs().mean((1, 2, 3)) for part in (d, right, below)]
    pixel = each[0] + config.squares * (d**2).mean((1, 2, 3))
    return pixel + config.edges * (each[1] + each[2]) + config.kl * divergence / x[0].numel()


def contrastive_losses(said: Sequence[Tensor], seen: Sequence[Tensor], log_scale: Tensor) -> Tensor:
    """CLIP's, mean over encoders and directions: of each sample −log of its partner's share among all of the batch.

    said, seen: of each encoder B×D, of texts and of pictures, of any length. The scale is at most e^4.6.
    """
    scale, losses = torch.exp(torch.clamp(log_scale, max=4.6)), []
    for i in range(len(said[0])):
        terms = []
        for texts, pictures in zip(said, seen, strict=True):
            texts, pictures = (x / x.norm(dim=1, keepdim=True) for x in (texts, pictures))
            to_pictures, to_texts = scale * (pictures @ texts[i]), scale * (texts @ pictures[i])
            terms += [torch.logsumexp(s, 0) - s[i] for s in (to_pictures, to_texts)]
        losses.append(torch.stack(terms).mean())
    return torch.stack(losses)


# --- updates ----------------------------------------------------------------------------------------------------------


def rate(lr: float, warmup: int, steps: int, cosine: bool) -> list[float]:
    """Of all updates: a line from lr / warmup up to lr, then half a cosine, which would reach 0 at `steps`."""
    rising = [lr * k / warmup for k in range(1, warmup + 1)]
    left = steps - warmup
    return rising + [lr * (1 + math.cos(math.pi * k / left)) / 2 if cosine else lr for k in range(left)]


def adamw(
    start: np.ndarray, gradients: Sequence[np.ndarray], rates: Sequence[float], decay: float, config: Any
) -> list[np.ndarray]:
    """A parameter after each update (Loshchilov and Hutter, algorithm 2)."""
    (b1, b2), p, found = config.betas, start.astype(np.float64), []
    m, v = np.zeros_like(p), np.zeros_like(p)
    for k, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - lr * decay * p - lr * (m / (1 - b1**k)) / (np.sqrt(v / (1 - b2**k)) + config.eps)
        found.append(p)
    return found


def orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five rounds of Jordan's quintic on the singular values alone, which is what it does to a matrix."""
    u, sizes, vt = np.linalg.svd(matrix, full_matrices=False)
    s = sizes / np.linalg.norm(matrix)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return np.asarray((u * s) @ vt)


def muon(
    start: np.ndarray, gradients: Sequence[np.ndarray], rates: Sequence[float], decay: float, _: Any
) -> list[np.ndarray]:
    """A weight after each update: Nesterov's momentum of 0.95, made orthogonal, as large as AdamW's (0.2 √longer)."""
    p, m, found = start.astype(np.float64), np.zeros(start.shape), []
    for g, lr in zip(gradients, rates, strict=True):
        m = 0.95 * m + 0.05 * g
        ahead = (0.95 * m + 0.05 * g).reshape(len(p), -1)
        p = p - lr * decay * p - lr * 0.2 * max(ahead.shape) ** 0.5 * orthogonal(ahead).reshape(p.shape)
        found.append(p)
    return found


def averaged(values: Sequence[Any], decay: float, counts: Sequence[int] | None = None) -> Any:
    """The moving average of values[1:], begun at values[0], as one weighted sum of all.

    counts: which average each is, 1, 2, … where none was left out.
    """
    kept = [min(decay, (1 + n) / (10 + n)) for n in counts or range(1, len(values))]
    weights = [math.prod(kept), *((1 - d) * math.prod(kept[n + 1 :]) for n, d in enumerate(kept))]
    return sum(w * value for w, value in zip(weights, values, strict=True))
