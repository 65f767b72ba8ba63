"""The world's contact sheet and its export."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unipic.cli import main
from unipic.errors import BadInput, UnipicError
from unipic.world import edits, exporting, scene, verify
from unipic.world.questions import KINDS
from unipic.world.sheet import sheet


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["world", *arguments])
    return int(ended.value.code or 0)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_sheet_is_a_function_of_its_seed() -> None:
    first, again, other = sheet(3, "train"), sheet(3, "train"), sheet(4, "train")
    assert first.tobytes() == again.tobytes()
    assert first.size != other.size or first.tobytes() != other.tobytes()


def test_show_writes_a_picture_and_replaces_only_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sheet.png"
    assert run("show", "--seed", "1", "--output", str(output)) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert run("show", "--seed", "1", "--output", str(output)) == 0
    Image.new("RGB", (8, 8)).save(output)
    assert run("show", "--seed", "1", "--output", str(output)) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) <= 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "--split", "validation"),
        ("show", "--seed", "-1"),
        ("show", "--output", "sheet.jpg"),
        ("export", "x", "--count", "0"),
        ("export", "x", "--shard-size", "-1"),
        ("judge", "--port", "70000"),
        ("judge", "--faults", "1.5"),
        ("judge", "--faults", "nan"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(*(a if a != "x" else str(tmp_path / "x") for a in arguments)) == 2
    said = capsys.readouterr()
    assert 1 <= len(said.err.strip().splitlines()) <= 3
    assert not list(tmp_path.iterdir())


def test_export_holds_what_it_says_and_the_same_again(tmp_path: Path) -> None:
    assert exporting.export(tmp_path / "a", 30, seed=5, split="test", shard_size=8) == {"samples": 30, "shards": 4}
    exporting.export(tmp_path / "b", 30, seed=5, split="test", shard_size=8)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    lines = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == 30
    assert {q["kind"] for line in lines for q in line.get("questions", ())} <= set(KINDS)
    for line in lines:
        for role in ("image", "source", "target"):
            if role in line:
                told = line["scene"] if role == "image" else line["scenes"][role]
                picture = Image.open(tmp_path / "a" / line[role])
                assert picture.size == (told["width"], told["height"])
                seen = {(o.shape, o.color, o.size) for o in verify.objects(picture)}
                assert seen == {(o["shape"], o["color"], o["size"]) for o in told["objects"]}
        if "image" in line:
            assert verify.prompt(picture, line["geneval"]).correct


def test_export_tells_what_is_asked_and_what_is_new(tmp_path: Path) -> None:
    exporting.export(tmp_path / "a", 60, seed=5, split="test", shard_size=0)
    lines = [json.loads(line) for line in (tmp_path / "a/metadata.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        seed = 5 + i // 2
        if "image" in line:
            shown = scene.sample(seed, "test")
            asked = line["dense_questions"]
            assert line["scene"]["novelty"] == shown.novelty
            assert [q["id"] for q in asked] == list(range(1, len(asked) + 1))
            assert all(set(q["dependencies"]) <= set(range(q["id"])) for q in asked)
            assert {q["category"].split(" - ")[0] for q in asked} >= {"global", "entity", "attribute"}
            assert {q["question"].removesuffix("?") for q in asked} > {f"Is the background {shown.background}"}
            color = next(q for q in line["questions"] if q["kind"] == "background")
            assert f"{shown.background} background" in color["accepted"]
        else:
            edit = edits.sample(seed, "test")
            assert (line["instruction"], line["novelty"]) == (edit.instruction, edit.novelty)
            assert line["scenes"]["target"]["novelty"] == edit.target.novelty
    assert {line["novelty"] for line in lines if "image" in line} == set(scene.NOVELTIES)


def test_tars_hold_the_same_samples(tmp_path: Path) -> None:
    exporting.export(tmp_path / "a", 10, shard_size=4)
    lines = {line["id"]: line for line in map(json.loads, (tmp_path / "a/metadata.jsonl").read_text().splitlines())}
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "a/shards").iterdir()):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                assert member.isfile()
                assert member.mtime == 0
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[suffix] = file.read()
    assert set(found) == set(lines)
    for key, parts in found.items():
        assert json.loads(parts["json"]) == lines[key]
        roles = {"image": "png"} if "image" in lines[key] else {"source": "source.png", "target": "target.png"}
        for role, suffix in roles.items():
            assert parts[suffix] == (tmp_path / "a" / lines[key][role]).read_bytes()


def test_export_never_writes_over_anything_nor_leaves_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(BadInput):
        exporting.export(tmp_path / "mine", 2)
    drawn = 0

    def full(picture: Image.Image) -> bytes:
        nonlocal drawn
        drawn += 1
        if drawn > 3:
            raise OSError(28, "No space left on device")
        return np.asarray(picture).tobytes()

    for there in (tmp_path / "mine" / "..", tmp_path / "nowhere" / ".."):
        with pytest.raises(BadInput, match="something stands"):
            exporting.export(there, 2)
    monkeypatch.setattr(exporting, "png_bytes", full)
    with pytest.raises(UnipicError, match="No space left"):
        exporting.export(tmp_path / "new", 10)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
