"""docs/rewards.md: its examples run as they stand there, its links lead somewhere, and it leaves no reward out."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from tests.runs import SMALL_PDTR
from unipic.evals.agreement import agreement
from unipic.rewards.configs import RewardConfig
from unipic.rewards.reward import Sample
from unipic.train.stages import read, run_recipe

PAGE = Path(__file__).parents[1] / "docs" / "rewards.md"
TEXT = PAGE.read_text()
SMALL = [*SMALL_PDTR, "evaluate=null"]
pytestmark = pytest.mark.filterwarnings("ignore::unipic.errors.PromptCut")


def example(name: str) -> str:
    """The block that begins with its own file name."""
    blocks = re.findall(r"```\w+\n(.*?)```", TEXT, re.DOTALL)
    (found,) = (block for block in blocks if re.match(rf'("""|# ){re.escape(name)}', block))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All examples as files, at a port that is free."""
    made = tmp_path_factory.mktemp("examples")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("kept.py", "kept.yaml", "agree.py"):
        (made / name).write_text(example(name).replace("8002", str(port)))
    return made


@pytest.fixture
def served(folder: Path) -> Iterator[None]:
    """`python kept.py`, as the page says."""
    (url,) = re.findall(r'"(http://[^"]+)"', (folder / "kept.yaml").read_text())
    server = subprocess.Popen([sys.executable, "kept.py"], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        assert "listens at" in server.stderr.readline()
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                assert b"kept, tolerance 12" in urllib.request.urlopen(f"{url}/health").read()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait()


def test_the_example_scores_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    from kept import Kept

    source = np.full((8, 8, 3), 100, np.uint8)
    half, near = source.copy(), source + np.uint8(12)
    half[:, :4] = 200
    pictures = [Image.fromarray(p) for p in (source, half, near, 255 - source)]
    samples = [Sample("Keep it", p, pictures[0]) for p in pictures]
    samples += [Sample("a ring", pictures[0]), Sample("Enlarge it", Image.new("RGB", (16, 8)), pictures[0])]
    assert Kept().score(samples) == [1.0, 0.5, 1.0, 0.0, None, None]
    assert Kept(11).score(samples)[2] == 0.0


def test_the_example_is_learnt_from_in_the_recipe_of_the_page(folder: Path, served: None) -> None:
    config = read(str(folder / "kept.yaml"), SMALL)
    run_recipe(config, folder / "run")
    (line,) = [json.loads(line) for line in (folder / "run" / "1-edit" / "log.jsonl").read_text().splitlines()]
    assert line["missing"] == 0
    assert 0 < line["reward/kept"] < 1
    assert line["reward"] == pytest.approx(line["reward/world"] + 0.3 * line["reward/kept"])
    assert 0 <= line["held_out/right"] <= 1


def test_the_figures_of_agreement_are_those_that_the_example_prints(folder: Path) -> None:
    printed = subprocess.run([sys.executable, "agree.py"], cwd=folder, capture_output=True, text=True, check=True)
    lines = printed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(agreement([0, 1, 2], [0, 1, 1], [0, 0, 0]))
    assert "\n".join(lines) in TEXT


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", TEXT) if "://" not in link]
    assert len(links) > 5
    assert not [link for link in links if not (PAGE.parent / link).exists()]
    scripts = re.findall(r"(?:benchmarks|scripts|tests)/\w+\.py", TEXT)
    assert not [script for script in scripts if not (PAGE.parents[1] / script).exists()]
    pages = ("README.md", "docs/architecture.md")
    assert all("rewards.md)" in (PAGE.parents[1] / page).read_text() for page in pages)


def test_every_kind_of_reward_is_told() -> None:
    kinds = [get_args(each.model_fields["kind"].annotation)[0] for each in get_args(get_args(RewardConfig)[0])]
    assert len(kinds) > 6
    table = TEXT.split("## Those that are there")[1].split("## On other machines")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(kinds)
