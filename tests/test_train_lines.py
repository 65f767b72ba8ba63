"""The log of a run: a crash costs at most its last line, and no step stands in it twice."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from unipic.errors import BadInput, UnipicError
from unipic.train.disk import CannotSave
from unipic.train.lines import append_line, read_lines, truncate_after

RECORDS = [{"step": step, "loss": 1 / (step + 1), "note": "first\nsecond – ü"} for step in range(4)]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    for record in RECORDS:
        append_line(path, record)
    return path


def test_a_log_cut_at_any_byte_loses_at_most_its_last_line(log: Path) -> None:
    raw = log.read_bytes()
    for length in range(len(raw) + 1):
        log.write_bytes(raw[:length])
        whole = raw[:length].count(b"\n")
        assert read_lines(log) == RECORDS[:whole]
        append_line(log, {"step": 9}, sync=length % 50 == 0)
        assert read_lines(log) == [*RECORDS[:whole], {"step": 9}]


@pytest.mark.parametrize("step", [-1, 0, 2, 3, 99])
def test_a_resumed_run_writes_no_step_twice(log: Path, step: int) -> None:
    append_line(log, {"event": "resumed"})
    with log.open("ab") as file:
        file.write(b'{"step": 1, "lo')
    truncate_after(log, step)
    assert read_lines(log) == [*RECORDS[: step + 1], {"event": "resumed"}]
    assert log.read_bytes().endswith(b"\n")
    assert [p.name for p in log.parent.iterdir()] == [log.name]


def test_truncating_is_atomic(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, order, fsync, replace = log.read_bytes(), [], os.fsync, os.replace

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(CannotSave, match="the disk is full"):
                truncate_after(log, 1)
        assert log.read_bytes() == raw
        assert [p.name for p in log.parent.iterdir()] == [log.name]
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    truncate_after(log, 1)
    assert order == ["fsync", "replace", "fsync"]
    assert read_lines(log) == RECORDS[:2]
    truncate_after(log, 1)  # nothing to do
    assert len(order) == 3


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    truncate_after(tmp_path / "log.jsonl", 5)
    assert read_lines(tmp_path / "log.jsonl") == []
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_one_write(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, write = [], os.write
    monkeypatch.setattr(os, "write", lambda handle, data: sizes.append(len(data)) or write(handle, data))
    before = log.stat().st_size
    append_line(log, {"step": 4, "text": "x" * 100_000})
    assert sizes == [log.stat().st_size - before]


def test_a_disk_that_fills_up_within_a_line_costs_that_line_alone(log: Path) -> None:
    size = log.stat().st_size
    pid = os.fork()
    if not pid:
        code = 99
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, size + 10))
            append_line(log, {"step": 4, "text": "longer than ten bytes"})
        except CannotSave as error:
            code = error.exit_code
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert log.stat().st_size == size + 10
    assert read_lines(log) == RECORDS
    append_line(log, {"step": 4})
    assert read_lines(log) == [*RECORDS, {"step": 4}]


def test_a_bad_step_is_logged_in_strict_json(log: Path) -> None:
    append_line(log, {"step": 4, "loss": float("nan"), "norm": float("inf")})
    assert read_lines(log) == [*RECORDS, {"step": 4, "loss": None, "norm": None}]
    raw = log.read_bytes()
    with pytest.raises(BadInput, match=r"(?s)JSON has no set.*record\['samples'\]"):
        append_line(log, {"step": 5, "samples": {1}})
    assert log.read_bytes() == raw


@pytest.mark.parametrize("line", [b"{", b"[]", b"", b"\0\0\0", b"\xff"])
def test_a_broken_line_within_is_named(log: Path, line: bytes) -> None:
    raw = log.read_bytes()
    log.write_bytes(line + b"\n" + raw)
    with pytest.raises(UnipicError, match=r"(?s)no JSON object.*line 1"):
        read_lines(log)
