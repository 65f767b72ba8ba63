"""Where a model's parts live, in which precision, and when they leave memory."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args

import torch
from torch import nn

from unipic.errors import BadInput

Offload = Literal["none", "model", "group"]
Quantize = Literal["none", "fp8", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """device: where parts compute. dtype: in what. offload: `none` keeps every loaded part on the device; `model` keeps
    only the part at work there, and forgets encoders after use; `group` streams layers to it, one after another (on a
    CPU, which has one memory, the encoders are forgotten and that is all).
    quantize: weights of the large parts in 8 bits.
    """

    device: torch.device
    dtype: torch.dtype
    offload: Offload = "none"
    quantize: Quantize = "none"

    @classmethod
    def choose(
        cls, device: str = "auto", dtype: str = "auto", offload: str = "none", quantize: str = "none"
    ) -> Placement:
        """From the words of the command line; raises BadInput for what this machine cannot do."""
        place = _device(device)
        if dtype not in ("auto", *DTYPES):
            raise BadInput(f"unknown dtype {dtype!r}", "--dtype", f"choose auto, {', '.join(DTYPES)}")
        if offload not in get_args(Offload):
            raise BadInput(f"unknown offload {offload!r}", "--offload", f"choose {', '.join(get_args(Offload))}")
        if quantize not in get_args(Quantize):
            raise BadInput(
                f"unknown quantization {quantize!r}", "--quantize", f"choose {', '.join(get_args(Quantize))}"
            )
        # bf16 is 8 to 158 times slower than fp32 on CPUs without matrix units.
        auto = {"cuda": torch.bfloat16, "mps": torch.bfloat16}.get(place.type, torch.float32)
        return cls(place, auto if dtype == "auto" else DTYPES[dtype], offload, quantize)  # type: ignore[arg-type]


def _device(name: str) -> torch.device:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "cpu" and device.index):
        raise BadInput(f"unknown device {name!r}", "--device", "choose auto, cpu, cuda or mps")
    if (device.type == "cuda" and not (cuda and (device.index or 0) < torch.cuda.device_count())) or (
        device.type == "mps" and not mps
    ):
        raise BadInput(f"this machine, or this build of torch, has no {name}", "--device", "use --device cpu or auto")
    return device


class Part(Generic[T]):
    """One part of a model: loaded when first used, placed as asked.

    load: makes it, on the CPU. modules: its torch modules. quantize: whether it is large enough for 8-bit weights.
    """

    def __init__(
        self,
        load: Callable[[], T],
        modules: Callable[[T], list[nn.Module]],
        placement: Placement,
        *,
        quantize: bool = False,
    ) -> None:
        self._load, self._modules, self._placement, self._quantize = load, modules, placement, quantize
        self._part: T | None = None

    @property
    def loaded(self) -> T | None:
        return self._part

    @contextmanager
    def use(self, *, release: bool = False) -> Iterator[T]:
        """The part, on its device; with `model` offloading it leaves the device afterwards.

        release: with any offloading, forget it afterwards: an encoder has done its work before sampling starts.
        """
        part = self._get()
        moves = self._placement.offload == "model" and self._placement.device.type != "cpu"
        try:
            if moves:
                self._move(part, self._placement.device)
            yield part
        finally:
            if self._placement.offload != "none" and release:
                self._part = None
                del part
                gc.collect()
            elif moves:
                self._move(part, torch.device("cpu"))
            if moves and self._placement.device.type == "cuda":
                torch.cuda.empty_cache()

    def _get(self) -> T:
        if self._part is None:
            part = self._load()
            for module in self._modules(part):
                self._place(module)
            self._part = part
        return self._part

    def _place(self, module: nn.Module) -> None:
        if self._quantize and self._placement.quantize != "none":
            quantize_weights(module, self._placement.quantize, self._placement.dtype)
        if self._placement.offload == "none":
            module.to(self._placement.device)
        elif self._placement.offload == "group" and self._placement.device.type != "cpu":
            from diffusers.hooks import apply_group_offloading

            device, cpu = self._placement.device, torch.device("cpu")
            stream = device.type == "cuda"
            apply_group_offloading(module, device, cpu, offload_type="leaf_level", use_stream=stream)

    def _move(self, part: T, device: torch.device) -> None:
        for module in self._modules(part):
            module.to(device)


def quantize_weights(module: nn.Module, how: Quantize, compute_dtype: torch.dtype) -> None:
    """Store a module's linear weights in 8 bits: fp8 by diffusers' layerwise casting, int8 by torchao."""
    if how == "fp8":
        from diffusers.hooks import apply_layerwise_casting

        keep: Any = ("pos_embed", "patch_embed", "norm", "embed_tokens", "shared", "lm_head")
        apply_layerwise_casting(module, torch.float8_e4m3fn, compute_dtype, skip_modules_pattern=keep)
        return
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise BadInput(
            "int8 needs torchao, which is not installed", "--quantize int8", "pip install 'unipic[quant]'"
        ) from None
    quantize_(module, Int8WeightOnlyConfig())
