"""What an update does to the weights: AdamW or Muon with a schedule, clipping, and an average of the weights over time.

A loss or a gradient that is not finite changes nothing: neither weights, nor moments, nor averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unipic.config import Strict
from unipic.train.muon import Muon
from unipic.train.sharding import put, whole

Tensors = dict[str, dict[str, Tensor]]
"""Files of a checkpoint: name → tensors"""
_STEP, _MOMENTS = "step", ("exp_avg", "exp_avg_sq", "momentum")


class OptimizerConfig(Strict):
    """AdamW (paper §4.1: β 0.9 and 0.95, ε 1e-8, weight decay 0.05, cosine). Biases and gains are not decayed.

    kind: muon takes over the weights of linear and convolutional layers, at the same rate. warmup: updates over which
    the rate rises. clip: greatest norm of the gradient; null for no limit.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=100)]
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    clip: Annotated[float, Field(gt=0)] | None = 1.0


class EmaConfig(Strict):
    """decay: share of the average that is kept; less at first, (1 + n) / (10 + n) where it is the n-th time.

    every: after how many updates the average moves; before the first time it is the weights themselves.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    every: Annotated[int, Field(ge=1)] = 1


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of update `step`, counted from 0, of `steps`: a linear rise, then constant or a cosine to 0."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "constant":
        return config.lr * rise
    done = max(0, step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Weights:
    """Everything that an update changes: the trained parameters, their moments and their averages.

    modules: by component's name; those of their parameters that require gradients are trained.
    """

    def __init__(self, modules: Mapping[str, nn.Module], optimizer: OptimizerConfig, ema: EmaConfig | None) -> None:
        self.config, self.ema_config = optimizer, ema
        self.parameters = {
            component: {name: p for name, p in module.named_parameters() if p.requires_grad}
            for component, module in modules.items()
        }
        self.optimizers = _optimizers(optimizer, modules.values(), list(self.all()))
        self._owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        averaged = {} if ema is None else self.parameters
        self.averages = {c: {n: p.detach().clone() for n, p in named.items()} for c, named in averaged.items()}

    def all(self) -> Iterable[nn.Parameter]:
        return (p for named in self.parameters.values() for p in named.values())

    def update(self, step: int, steps: int, loss: float) -> tuple[float, float, bool]:
        """Apply the gradients and clear them. Returns their norm, the rate, and whether anything was changed.

        loss: of the batch; gradients of one that is not finite mean nothing, even where they are finite.
        """
        rate = learning_rate(self.config, step, steps)
        for group in (group for each in self.optimizers for group in each.param_groups):
            group["lr"] = rate
        gradients = [p.grad for p in self.all() if p.grad is not None]
        total = nn.utils.get_total_norm(gradients)
        norm = float(whole(total))
        sound = math.isfinite(norm) and math.isfinite(loss)
        if sound:
            if self.config.clip is not None:
                nn.utils.clip_grads_with_norm_(list(self.all()), self.config.clip, total)
            for each in self.optimizers:
                each.step()
            self._average(step)
        for p in self.all():
            p.grad = None
        return norm, rate, sound

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.ema_config is None:
            return
        averaged, since = divmod(step + 1, self.ema_config.every)
        if averaged and since:
            return
        decay = min(self.ema_config.decay, (1 + averaged) / (10 + averaged)) if averaged else 0.0
        for component, named in self.averages.items():
            torch._foreach_lerp_(list(named.values()), list(self.parameters[component].values()), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averages in the weights' place, where there are any: what is shown is then what a finished model is."""
        kept = {c: [p.detach().clone() for p in self.parameters[c].values()] for c in self.averages}
        for component, named in self.averages.items():
            self._put(component, list(named.values()))
        try:
            yield
        finally:
            for component, values in kept.items():
                self._put(component, values)

    @torch.no_grad()
    def _put(self, component: str, values: Sequence[Tensor]) -> None:
        for p, value in zip(self.parameters[component].values(), values, strict=True):
            p.copy_(value)

    def best(self) -> Tensors:
        """The averages where there are any, else the weights themselves: what a finished model holds."""
        return self.averages or {c: {n: p.detach() for n, p in named.items()} for c, named in self.parameters.items()}

    def tensors(self) -> Tensors:
        """All of it, as files of a checkpoint."""
        files: Tensors = {}
        for component, named in self.parameters.items():
            files[component] = {n: p.detach() for n, p in named.items()}
            files[f"optimizer/{component}"] = {
                f"{name}.{key}": value for name, p in named.items() for key, value in self._state(p).items()
            }
        return files | {f"ema/{component}": dict(named) for component, named in self.averages.items()}

    def _state(self, p: nn.Parameter) -> dict[str, Tensor]:
        """What an optimizer keeps of a parameter: it may be filled."""
        state: dict[str, Tensor] = self._owners[id(p)].state[p]
        return state

    @torch.no_grad()
    def load(self, read: Callable[[str], Mapping[str, Tensor]]) -> None:
        """Put back what `tensors` gave. read: the tensors of one file; one is in memory at a time."""
        for component, named in self.parameters.items():
            values = read(component)
            for name, p in named.items():
                p.copy_(put(values[name], p))
            moments = read(f"optimizer/{component}")
            for name, p in named.items():
                state = self._state(p)
                if f"{name}.{_STEP}" in moments:
                    state[_STEP] = moments[f"{name}.{_STEP}"].clone()
                state.update({k: put(moments[f"{name}.{k}"], p).clone() for k in _MOMENTS if f"{name}.{k}" in moments})
        for component, averages in self.averages.items():
            values = read(f"ema/{component}")
            for name, average in averages.items():
                average.copy_(put(values[name], average))


def _optimizers(
    config: OptimizerConfig, modules: Iterable[nn.Module], trained: Sequence[nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Muon, if it is wanted, for the weights of linear and convolutional layers; AdamW for all else."""
    layers = {
        id(layer.weight)
        for module in modules
        for layer in module.modules()
        if config.kind == "muon" and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    rest = [p for p in trained if id(p) not in layers]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = []
    if groups := [group for group in groups if group["params"]]:
        found.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps))
    if matrices := [p for p in trained if id(p) in layers]:
        found.append(Muon(matrices, lr=config.lr, weight_decay=config.weight_decay))
    return found
