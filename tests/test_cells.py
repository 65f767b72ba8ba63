"""The second loss of the tiny language model's eye, and of the tiny DiT: what is in the cell of each token."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.test_train_stages import STAGES, draws_of, stage
from unipic.train.cells import LABELS, NOTHING, UNKNOWN, CellHead, cell_loss, cell_targets
from unipic.world.scene import Scene, sample

ROWS, COLUMNS = 4, 4


def painted(scene: Scene, rows: int, columns: int) -> list[set[int]]:
    """Of each cell the objects, by index, with most of its pixels: of those with a tenth of it or their own."""
    owner = np.full((scene.height, scene.width), -1)
    for i, o in enumerate(scene.objects):
        left, top, right, bottom = o.box
        owner[top:bottom, left:right] = i
    areas = [int((owner == i).sum()) for i in range(len(scene.objects))]
    found = []
    for strip in np.split(owner, rows, axis=0):
        for cell in np.split(strip, columns, axis=1):
            counts = {i: int((cell == i).sum()) for i in range(len(scene.objects))}
            counts = {i: n for i, n in counts.items() if n and n >= 0.1 * min(cell.size, areas[i])}
            found.append({i for i, n in counts.items() if n == max(counts.values())})
    return found


@pytest.mark.parametrize("size", [(64, 64), (128, 96)])
def test_a_cell_holds_what_covers_most_of_its_pixels(size: tuple[int, int]) -> None:
    held = 0
    for seed in range(100):
        scene = sample(seed, "train", size=size)
        labels, places = cell_targets(scene, ROWS, COLUMNS)
        for owners, row, place in zip(painted(scene, ROWS, COLUMNS), labels.tolist(), places.tolist(), strict=True):
            told = [values[i] if i != UNKNOWN else None for values, i in zip(LABELS.values(), row, strict=True)]
            known = [(o.shape, o.color, o.size, o.texture) for o in (scene.objects[i] for i in owners)]
            middles = [[o.x / scene.width, o.y / scene.height] for o in (scene.objects[i] for i in owners)]
            assert told[:2] == [scene.background, scene.tone]
            assert tuple(told[2:]) in (known or [(NOTHING, None, None, None)])
            assert any(place == pytest.approx(middle) for middle in middles or [[0, 0]])
            held += bool(owners)
    assert held > 300


def test_the_loss_is_that_of_a_slow_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    head = CellHead(16)
    tokens = torch.randn(ROWS * COLUMNS, 16, generator=generator)
    labels, places = cell_targets(sample(3, "train"), ROWS, COLUMNS)
    assert 0 < int((labels[:, -1] != UNKNOWN).sum()) < len(labels)
    loss = float(cell_loss(head(tokens), labels, places).detach())
    assert loss == pytest.approx(float(slow_loss(head, tokens, labels, places)), rel=1e-5)


def slow_loss(head: CellHead, tokens: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """In float64, a cell and a label at a time."""
    weight, bias = head.linear.weight.detach().double(), head.linear.bias.detach().double()
    parts: dict[str, list[Tensor]] = {}
    for token, row, place in zip(tokens.double(), labels.tolist(), places.double(), strict=True):
        told, start = weight @ token + bias, 0
        for (name, values), wanted in zip(LABELS.items(), row, strict=True):
            logits = told[start : start + len(values)]
            start += len(values)
            if wanted != UNKNOWN:
                parts.setdefault(name, []).append(logits.exp().sum().log() - logits[wanted])
        if row[-1] != UNKNOWN:
            parts.setdefault("place", []).append(10 * ((told[-2:] - place).abs().sum() / 2))
    return torch.stack([sum(part[1:], start=part[0]) / len(part) for part in parts.values()]).sum()


def test_visual_tokens_are_those_of_their_cells() -> None:
    """Without attention, a change within a cell of the picture changes its token alone."""
    made = stage(STAGES["mllm"])
    visual = made.mllm.model.model.visual
    for block in visual.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.attn.proj.bias)
    grey = np.full((112, 112, 3), 100, np.uint8)
    patches, grid = made.mllm.pixels(Image.fromarray(grey), 112 * 112)
    rows, columns = (int(n) // made.mllm.image_processor.merge_size for n in grid[1:])
    (before,) = made.mllm.see([(patches, grid)])
    for row, column in ((0, 0), (1, 2), (3, 1)):
        marked = grey.copy()
        height, width = 112 // rows, 112 // columns
        marked[row * height + 5 : (row + 1) * height - 5, column * width + 5 : (column + 1) * width - 5] = 250
        (after,) = made.mllm.see([made.mllm.pixels(Image.fromarray(marked), 112 * 112)])
        moved = [i for i, change in enumerate((after - before).abs().amax(1).tolist()) if change > 1e-6]
        assert moved == [row * columns + column]


def test_the_stage_adds_it_for_samples_with_a_picture() -> None:
    plain, eyed = (
        stage(STAGES["mllm"], data={"foresee": 0.7}, batch=12),
        stage(STAGES["mllm"], data={"foresee": 0.7}, batch=12, cells=0.5),
    )
    (micro,) = eyed.batch(0, range(12))
    without, with_cells = (s.losses(micro, draws_of(micro)) for s in (plain, eyed))
    flat = [bool(u < 0.5) for u in draws_of(micro).uniform()]
    _, _, seen = eyed.predict(micro.asked, flat)
    assert {a.picture is None for a in micro.asked} == {True, False}
    for a, view, less, more in zip(micro.asked, seen, without.tolist(), with_cells.tolist(), strict=True):
        if view is None:
            assert a.picture is None
            assert more == less
            continue
        tokens, rows, columns = view
        labels, places = cell_targets(a.scene, rows, columns)
        own = slow_loss(eyed.head, tokens.detach(), labels, places)
        assert more - less == pytest.approx(0.5 * float(own), rel=1e-4)
        assert math.isfinite(more)
    with_cells.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in eyed.head.parameters())
    assert set(eyed.trained) == {"mllm", "head"}
    assert set(plain.trained) == {"mllm"}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", ["generate", "edit"])
@pytest.mark.parametrize("kind", ["kontext", "joint"])
def test_image_tokens_of_a_dit_are_told_their_cells(kind: str, task: str, checkpointing: bool) -> None:
    """References' tokens those of the source, the target's those of the result; at every noise."""
    data, more = (
        {"tasks": [task], "phases": [{"resolution": 80}]},
        {"noises": 2, "gradient_checkpointing": checkpointing},
    )
    plain, taught = (stage(STAGES[kind], data=data, **more, cells=weight) for weight in (0.0, 0.25))
    (micro,) = taught.batch(2, range(4))
    width, height = micro.size
    states: list[Tensor] = []
    tapped = taught.transformer.transformer_blocks[len(taught.transformer.transformer_blocks) * 2 // 3 - 1]
    hook = tapped.register_forward_hook(lambda block, given, made: states.append(made[1].detach()))
    without, with_cells = (s.losses(micro, draws_of(micro)) for s in (plain, taught))
    hook.remove()
    (tokens,) = states
    head = taught.teachers["cells"]
    for i, (less, more_) in enumerate(zip(without.tolist(), with_cells.tolist(), strict=True)):
        shown = [micro.scenes[i][-1]] if task == "generate" else [micro.scenes[i][0], micro.scenes[i][1]]
        targets = [cell_targets(scene, height // 16, width // 16) for scene in shown]
        labels, places = (torch.cat(column).repeat(2, 1) for column in zip(*targets, strict=True))
        own = slow_loss(head, torch.cat([tokens[i], tokens[4 + i]]), labels, places)
        assert more_ - less == pytest.approx(0.25 * float(own), rel=1e-4)
    with_cells.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    assert set(taught.trained) - set(plain.trained) == {"cells"}


def test_pictures_of_unknown_scenes_teach_no_cells() -> None:
    plain, taught = (stage(STAGES["kontext"], cells=weight) for weight in (0.0, 0.25))
    (micro,) = taught.batch(0, range(4))
    unknown = replace(micro, scenes=((), *micro.scenes[1:]))
    less, more = (s.losses(unknown, draws_of(unknown)).tolist() for s in (plain, taught))
    assert less[0] == more[0]
    assert all(a < b for a, b in zip(less[1:], more[1:], strict=True))


def test_a_reference_that_the_dit_does_not_see_has_no_cells() -> None:
    data = {"tasks": ["edit"], "phases": [{"resolution": 80}]}
    taught = stage(STAGES["joint"], cells=0.25, reference="mllm", data=data)
    (micro,) = taught.batch(0, range(4))
    assert torch.isfinite(taught.losses(micro, draws_of(micro))).all()


def test_align_teaches_cells_by_a_head_that_learns() -> None:
    taught = stage(STAGES["align"], cells=0.25)
    assert set(taught.trained) == {"conditioner", "cells"}
