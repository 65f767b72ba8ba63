"""What a training step of the paper's size costs, for docs/training-costs.md: parameters, memory, operations.

    python scripts/step_costs.py                                      counted on tensors that have no memory
    python scripts/step_costs.py --measure kontext [--side 512] …     run on a CUDA device, with random weights

The models are built from the published settings, and the stages' own code is run on them: operations are counted as
they are dispatched, saved activations as autograd saves them under autocast. Not counted: temporaries, the allocator's
gaps, the update.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from step_cases import BF16, CLIP, T5, Case, Models, qwen, settings
from step_counting import Saved, count, counter, norms_in_float32, operations, weight_bytes, without_memory
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_position_ids

from unipic.train.optim import OptimizerConfig, Weights

GIB, TERA = 2**30, 1e12
SIDES = (512, 1024)
CARDS = (24, 48, 80, 141)  # GiB, of which a tenth is left for what is not counted


@dataclass(frozen=True)
class Frozen:
    """What makes latents and conditions, and never changes. operations: by side in pixels, of one sample."""

    text_weights: int
    vae_weights: int
    text: int
    vae: dict[int, int]
    vision: dict[int, int]

    def of(self, case: Case) -> int:
        """Operations of encoding a sample of a case, where no cache has it."""
        if case.stage == "kontext":
            return self.text + self.vae[case.side] * (1 + case.edit)
        return self.vae[case.side] * (1 + case.edit) + self.vision[case.side] * case.edit

    def weights(self, case: Case) -> int:
        """Bytes in bf16."""
        return 2 * (self.vae_weights + (self.text_weights if case.stage == "kontext" else 0))


@torch.no_grad()
def encoders() -> Frozen:
    """CLIP-L, CLIP-G and T5, the autoencoder and the language model's vision tower, counted."""
    with torch.device("meta"):
        clips = [
            CLIPTextModelWithProjection(CLIPTextConfig(**settings(f"kontext/text_encoder{n}"))) for n in ("", "_2")
        ]
        texts = [*clips, T5EncoderModel(T5Config(**settings("kontext/text_encoder_3")))]
        vae, visual = AutoencoderKL(**settings("kontext/vae")), qwen().model.visual
        ids = [torch.zeros(1, length, dtype=torch.long) for length in (CLIP, CLIP, T5)]
        pixels = {side: torch.empty(1, 3, side, side) for side in SIDES}

    def see(side: int) -> Any:
        patches = side * 28 // 32 // 14  # along a side; see MLLM._prompts
        grid = torch.tensor([[1, patches, patches]])
        places = get_vision_position_ids(grid, 2, kwargs={}).to("meta")
        return visual(torch.empty(patches**2, 3 * 2 * 14**2, dtype=BF16, device="meta"), grid, position_ids=places)

    return Frozen(
        count(texts),
        count([vae]),
        operations(lambda: [encoder(i) for encoder, i in zip(texts, ids, strict=True)]),
        {side: operations(lambda side=side: vae.encode(pixels[side])) for side in SIDES},
        {side: operations(lambda side=side: see(side)) for side in SIDES},
    )


@dataclass(frozen=True)
class Cost:
    """trained, total: parameters. weights: bytes of the stage's models. saved: bytes of a sample; block: of them, what
    the DiT's first block saves, which has both attentions. copies: bytes of bf16 casts of weights that autograd keeps
    beside the samples' own. forward, backward: operations of a sample.
    """

    trained: int
    total: int
    weights: int
    saved: int
    block: int
    copies: int
    forward: int
    backward: int


def counted(case: Case) -> Cost:
    """A step of one sample, and the forward of two: what is saved of each is the difference."""
    models = Models(case, torch.device("meta"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in models.modules():
            without_memory(module)
            norms_in_float32(module)
        with counter() as flops:
            losses, one, block_of_one = kept(models, 1)
            forward = flops.get_total_flops()
            losses.sum().backward()
        _, two, block_of_two = kept(models, 2)
    modules, saved = models.modules(), two - one
    trained, total, backward = count(modules, trained=True), count(modules), flops.get_total_flops() - forward
    sizes = (weight_bytes(modules), saved, block_of_two - block_of_one, one - saved)
    return Cost(trained, total, *sizes, forward, backward)


def kept(models: Models, batch: int) -> tuple[Tensor, int, int]:
    """Losses, the bytes that autograd keeps for their backward, and those of the DiT's first block."""
    saved, marks = Saved(models.modules()), []
    block = models.transformer.transformer_blocks[0]
    hooks = [
        block.register_forward_pre_hook(lambda *_: marks.append(saved.bytes())),
        block.register_forward_hook(lambda *_: marks.append(saved.bytes())),
    ]
    with torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda t: t), torch.autocast("cpu", BF16):
        losses = models.losses(batch)
    for hook in hooks:
        hook.remove()
    return losses, saved.bytes(), marks[1] - marks[0]


def cases() -> Iterator[Case]:
    """Those of the tables."""
    for side, edit, lora, checkpointing in itertools.product(SIDES, (False, True), (False, True), (False, True)):
        yield Case("kontext", side, edit, lora, checkpointing)
    for side, checkpointing in itertools.product(SIDES, (False, True)):
        yield Case("align", side, checkpointing=checkpointing)
    for side, edit, checkpointing in itertools.product(SIDES, (False, True), (False, True)):
        yield Case("joint", side, edit, checkpointing=checkpointing)


def fixed_bytes(case: Case, costs: dict[Case, Cost], frozen: Frozen) -> int:
    """Memory before the first sample: weights, gradients, moments, frozen encoders and bf16 casts.

    With checkpointing autograd keeps no casts, but autocast does, of trained weights, until the forward's end.
    """
    cost, full = costs[case], costs[replace(case, checkpointing=False)]
    copies = cost.copies if case.lora else full.copies
    return cost.weights + frozen.weights(case) + 12 * cost.trained + copies


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def memory_table(costs: dict[Case, Cost], frozen: Frozen) -> str:
    head = ["stage", "trains", "trained", "in all", "weights", "frozen encoders", "gradients", "moments", "bf16 casts"]
    rows = []
    for case, cost in costs.items():
        if case.side == SIDES[0] and not case.edit and not case.checkpointing:
            sizes = (cost.weights, frozen.weights(case), 4 * cost.trained, 8 * cost.trained, cost.copies)
            all_parameters = cost.total + frozen.weights(case) // 2
            counts = [f"{cost.trained / 1e6:,.0f} M", f"{all_parameters / 1e9:.2f} B"]
            rows.append([*case.names[:2], *counts, *(f"{size / GIB:.1f}" for size in sizes)])
    return table(head, rows)


def step_table(costs: dict[Case, Cost], frozen: Frozen) -> str:
    """With checkpointing, a block's activations come back while its backward runs."""
    head = ["stage", "trains", "side", "task", "checkpointing", "saved, GiB", "encode", "forward", "backward"]
    head += ["backward's share", *(f"{card} GiB" for card in CARDS)]
    rows = []
    for case, cost in costs.items():
        work = (frozen.of(case), cost.forward, cost.backward)
        again = costs[replace(case, checkpointing=False)].block if case.checkpointing else 0
        room = [max(0, 0.9 * card * GIB - fixed_bytes(case, costs, frozen)) for card in CARDS]
        fit = [int(bytes // (cost.saved + again)) for bytes in room]
        numbers = [f"{cost.saved / GIB:.2f}", *(f"{n / TERA:.1f}" for n in work), f"{cost.backward / sum(work):.0%}"]
        rows.append([*case.names, *numbers, *(n or "–" for n in fit)])
    return table(head, rows)


def measure(case: Case, batch: int, steps: int = 5) -> str:
    """A line on real steps, updates included, encoders left out: median time, peak memory, share of the ceiling."""
    device = torch.device("cuda")
    cost, seconds = counted(case), []
    models = Models(case, device)
    weights = Weights(models.trained, OptimizerConfig(lr=1e-6), None)
    for step in range(steps + 2):
        if step == 2:  # kernels have been chosen, moments are there
            torch.cuda.reset_peak_memory_stats()
        start = synchronised()
        with torch.autocast("cuda", BF16):
            losses = models.losses(batch)
        losses.mean().backward()
        weights.update(step, steps + 2, float(losses.detach().mean()))
        seconds.append(synchronised() - start)
    median, peak = statistics.median(seconds[2:]), torch.cuda.max_memory_allocated()
    done, ceiling = batch * (cost.forward + cost.backward) / median, matmul_ceiling(device)
    return (
        f"{', '.join(case.names)}; batch {batch}, {torch.cuda.get_device_name()}, torch {torch.__version__}\n"
        f"{median:.3f} s a step, {batch / median:.2f} samples/s, peak {peak / GIB:.1f} GiB, {done / TERA:.0f} TFLOP/s, "
        f"{done / ceiling:.0%} of {ceiling / TERA:.0f} that a matrix product reaches (bf16, 8192³)"
    )


def matmul_ceiling(device: torch.device, side: int = 8192) -> float:
    """Operations a second of a large bf16 matrix product, the best of twenty."""
    a, b = torch.randn(2, side, side, device=device, dtype=BF16)
    seconds = []
    for _ in range(20):
        start = synchronised()
        _ = a @ b
        seconds.append(synchronised() - start)
    return 2 * side**3 / min(seconds)


def synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step of the paper's size costs.")
    parser.add_argument("--measure", choices=("kontext", "align", "joint"), help="run this stage on a CUDA device")
    parser.add_argument("--side", type=int, default=512, help="pixels; a multiple of 32")
    parser.add_argument("--batch", type=int, default=1)
    for name in ("edit", "lora", "checkpointing"):
        parser.add_argument(f"--{name}", action="store_true")
    given = parser.parse_args()
    if given.measure:
        if not torch.cuda.is_available():
            parser.error("--measure needs a CUDA device")
        case = Case(given.measure, given.side, given.edit, given.lora, given.checkpointing)
        print(measure(case, given.batch))
        return
    costs, frozen = {case: counted(case) for case in cases()}, encoders()
    print(f"## Memory before the first sample, in GiB\n\n{memory_table(costs, frozen)}\n")
    print(f"## A sample, in TFLOP, and how many fit into a forward\n\n{step_table(costs, frozen)}")


if __name__ == "__main__":
    main()
