"""docs/finetune.md as it stands: its recipe and its commands, as real processes, from photographs to a picture."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from unipic.config import resolve, text
from unipic.data import metadata
from unipic.train.stages import AnyConfig

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "finetune.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run(command: str, folder: Path) -> str:
    """A line of the page in a folder of its own: our interpreter in place of an installed one."""
    program, *arguments = shlex.split(command)
    if program == "python":
        arguments = [str(ROOT / arguments[0]), *arguments[1:]]
    else:
        assert program == "unipic"
        arguments = ["-m", "unipic.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder in which all of the page's commands were run, and what they said."""
    folder = tmp_path_factory.mktemp("finetune")
    (folder / "photos.yaml").write_text(blocks("yaml")[0])
    (commands,) = blocks("sh")
    return folder, [run(command, folder) for command in commands.splitlines()]


def test_the_folder_is_sound(walked: tuple[Path, list[str]]) -> None:
    assert "edit: 18 sound samples" in walked[1][1]
    assert "generate: 6 sound samples" in walked[1][1]
    assert "broken" not in walked[1][1]
    assert "doubtful" not in walked[1][1]


def test_training_leaves_what_the_page_names(walked: tuple[Path, list[str]]) -> None:
    folder = walked[0] / "runs" / "photos"
    for name in ("model/manifest.json", "report.html", "config.yaml", "lora/pytorch_lora_weights.safetensors"):
        assert (folder / name).stat().st_size
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps[-1] == 20


def test_merged_and_beside_the_model_the_adapter_draws_the_same(walked: tuple[Path, list[str]]) -> None:
    """And not what the model draws without it."""
    folder = walked[0]
    run('unipic edit photos/chelsea.jpg "make it black and white" --model tiny-kontext --output plain.png', folder)
    edited, adapted, plain = (
        np.asarray(Image.open(folder / name), int) for name in ("edited.png", "adapted.png", "plain.png")
    )
    assert np.abs(edited - adapted).max() <= 1
    assert np.abs(edited - plain).max() > 8


def test_the_same_command_again_goes_on_where_it_stopped(walked: tuple[Path, list[str]]) -> None:
    before = (walked[0] / "runs/photos/log.jsonl").read_bytes()
    assert run("unipic train photos.yaml --run-dir runs/photos", walked[0]) == "runs/photos/model\n"
    assert (walked[0] / "runs/photos/log.jsonl").read_bytes().startswith(before)


@pytest.mark.parametrize("recipe", blocks("yaml"))
def test_the_pages_recipes_are_sound(recipe: str) -> None:
    config = resolve(TypeAdapter(AnyConfig), text.read(recipe, "docs/finetune.md"), "docs/finetune.md")
    assert config.data.sources[0].path == "photos"


def test_the_pages_metadata_is_read_as_it_says(tmp_path: Path) -> None:
    (lines,) = blocks("json")
    (tmp_path / metadata.NAME).write_text(lines)
    for name in ("boat.jpg", "boat-night.jpg", "me.jpg", "me-in-boat.jpg"):
        Image.new("RGB", (96, 64), "red").save(tmp_path / name)
    samples, problems = metadata.read(tmp_path)
    assert problems == []
    assert [(sample.task, len(sample.references)) for sample in samples] == [("generate", 0), ("edit", 1), ("edit", 2)]
