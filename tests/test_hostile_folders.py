"""Broken and hostile model folders are refused in three lines; none runs code, opens a socket, or is read beyond."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, suppress
from pathlib import Path

import pytest

from tests.hostile import ACCEPTED, HARMLESS, LIMIT, REFUSED, Case, TooLong, stage, use
from unipic import BadInput, BadModel


def cases(of: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", of, ids=[case.name for case in of])


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, without the user's caches."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/cache")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{folder}/hub")
        yield Path()


def attempt(case: Case, place: Path) -> None:
    model = stage(case, place)
    try:
        use(model, case.job)
    except TooLong:
        pytest.fail(f"not done after {LIMIT} seconds", pytrace=False)
    finally:
        assert not (place / "canary").exists(), "code from the folder has run"


@cases(REFUSED)
def test_refused(case: Case, place: Path) -> None:
    with pytest.raises((BadModel, BadInput)) as refusal:
        attempt(case, place)
    text = str(refusal.value)
    assert [said for said in case.says if said not in text] == [], text
    assert len(text.splitlines()) <= 3


@cases(ACCEPTED)
def test_accepted(case: Case, place: Path) -> None:
    attempt(case, place)


@cases(HARMLESS)
def test_harmless(case: Case, place: Path) -> None:
    with suppress(BadModel, BadInput):
        attempt(case, place)


def test_names_are_unique() -> None:
    names = [case.name for case in (*REFUSED, *ACCEPTED, *HARMLESS)]
    assert len(names) == len(set(names))


def test_nothing_runs_connects_or_reads_elsewhere(tmp_path: Path) -> None:
    """All of them, under an audit hook; such a hook stays, so in a process of its own, which may use the network."""
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "RUST_BACKTRACE")}
    environment["HF_HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.hostile_watch"]
    root = Path(__file__).parents[1]
    child = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    report = json.loads(child.stdout)
    control = {event.split()[0] for event in report.pop("control")}
    assert control >= {"open", "exec", "compile", "pickle.find_class", "subprocess.Popen", "os.system", "canary"}
    assert any(event.startswith("socket.") for event in control)
    assert report == {}
