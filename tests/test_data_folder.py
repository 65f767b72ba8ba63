"""Folders of training data: epochs, buckets, and every fault named."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
from PIL import Image

from unipic import pictures
from unipic.data import metadata
from unipic.data.buckets import ASPECTS, fit, nearest, size_for
from unipic.data.checking import check_folder
from unipic.data.folder import FolderSource
from unipic.data.source import Draw
from unipic.errors import BadInput
from unipic.world import exporting

PHOTOS = Path(skimage.__file__).parent / "data"
CAPTIONS = {
    "astronaut.png": "an astronaut in an orange suit before a flag",
    "coffee.png": "a cup of coffee on a saucer",
    "chelsea.png": "the face of a ginger cat",
    "rocket.jpg": "a rocket on its pad at night",
    "camera.png": "a man behind a camera, in grey",
    "motorcycle_left.png": "a motorcycle in a garage",
}


def write(folder: Path, lines: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    texts = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    (folder / "metadata.jsonl").write_bytes(b"".join(text + b"\n" for text in texts))
    return folder


def painted(path: Path, size: tuple[int, int], color: str = "red", **options: Any) -> str:
    Image.new("RGB", size, color).save(path, **options)
    return path.name


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs with captions, and edits of them: grey, and mirrored."""
    folder = tmp_path_factory.mktemp("photos")
    lines: list[dict[str, Any]] = []
    for name, caption in CAPTIONS.items():
        (folder / name).write_bytes((PHOTOS / name).read_bytes())
        grey = f"{Path(name).stem}-grey.png"
        pictures.load(folder / name).convert("L").resize((320, 320)).save(folder / f"square-{grey}")
        pictures.load(folder / name).convert("L").save(folder / grey)
        lines.append({"id": name, "file_name" if name > "c" else "image": name, "text": caption, "licence": None})
        lines.append({"source": name, "instruction": "Make it grey", "target": grey})
        source = [name, f"square-{grey}"]
        lines.append({"source": source, "instruction": "Make it like the other", "target": grey})
    return write(folder, lines)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """43 little pictures to generate, in three buckets of 20, 13 and 10."""
    folder = tmp_path_factory.mktemp("squares")
    lines = []
    for i in range(43):
        size = (16, 16) if i < 20 else (24, 16) if i < 33 else (16, 24)
        lines.append({"image": painted(folder / f"{i}.png", size), "text": f"picture {i}"})
    return write(folder, lines)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_photographs_arrive_cut_to_their_buckets(photos: Path) -> None:
    source = FolderSource(photos, seed=2)
    assert source.tasks == ("generate", "edit")
    seen = set()
    for turn in range(source.epoch_length("generate", 1)):
        draw = source.draw("generate", turn, 1, 256)
        example = source.load(draw, 0)
        original = pictures.load(photos / example.id)
        assert example.text == CAPTIONS[example.id]
        assert draw.size == size_for(nearest(*original.size), 256)
        assert example.picture.mode == "RGB"
        assert example.picture.tobytes() == fit(original, draw.size).tobytes()
        seen.add(example.id)
    assert seen == set(CAPTIONS)


@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_edits_come_in_batches_of_one_size_and_as_many_references(photos: Path, resolution: int) -> None:
    source = FolderSource(photos)
    several = Counter()
    for turn in range(source.epoch_length("edit", 2)):
        draw = source.draw("edit", turn, 2, resolution)
        examples = [source.load(draw, i) for i in range(2)]
        assert {p.size for e in examples for p in (e.picture, *e.references)} == {draw.size}
        assert len({len(e.references) for e in examples}) == 1
        several[len(examples[0].references)] += 1
        for example in examples:
            first = np.asarray(example.references[0].convert("L"), float)
            assert np.abs(first - np.asarray(example.picture.convert("L"))).mean() < 2  # its own source
    assert several[1] == several[2] > 2


def test_draws_are_pure(squares: Path) -> None:
    first, again, other = FolderSource(squares, 1), FolderSource(squares, 1), FolderSource(squares, 2)
    draws = [first.draw("generate", turn, 4, 32) for turn in range(60)]
    assert [again.draw("generate", turn, 4, 32) for turn in reversed(range(60))] == draws[::-1]
    assert [other.draw("generate", turn, 4, 32) for turn in range(60)] != draws


@pytest.mark.parametrize("count", [1, 3, 4, 7, 16, 50])
def test_an_epoch_shows_every_sample(squares: Path, count: int) -> None:
    """Once, and once more only to fill up a bucket's last batch, from the start of its permutation."""
    source = FolderSource(squares)
    length = source.epoch_length("generate", count)
    assert length == sum(-(-n // count) for n in (20, 13, 10))
    epochs = []
    for epoch in range(3):
        draws = [source.draw("generate", epoch * length + i, count, 64) for i in range(length)]
        shown = Counter(key for draw in draws for key in draw.keys)
        assert set(shown) == set(range(43))
        for members in (range(20), range(20, 33), range(33, 43)):
            filled = -(-len(members) // count) * count
            assert sum(shown[i] for i in members) == filled
            assert {shown[i] for i in members} <= {filled // len(members), -(-filled // len(members))}
        for draw in draws:
            assert len({source.samples[key].bucket for key in draw.keys}) == 1
            assert draw.size == size_for(source.samples[draw.keys[0]].bucket[0], 64)
        epochs.append([draw.keys for draw in draws])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    if count == 1:  # batches of all buckets are mixed, not one bucket after the other
        assert epochs[0] != sorted(epochs[0])
        changes = sum((a[0] < 20) != (b[0] < 20) for a, b in zip(epochs[0], epochs[0][1:], strict=False))
        assert changes > 10


def test_the_last_batch_is_filled_from_the_start(squares: Path) -> None:
    source = FolderSource(squares)
    draws = [source.draw("generate", i, 8, 64).keys for i in range(source.epoch_length("generate", 8))]
    of_ten = [keys for keys in draws if keys[0] >= 33]
    (last,) = (keys for keys in of_ten if any(set(keys[2:]) <= set(other) for other in of_ten if other != keys))
    (first,) = (keys for keys in of_ten if keys != last)
    assert last[2:] == first[:6]


def test_buckets_come_as_often_as_their_samples(squares: Path) -> None:
    source = FolderSource(squares)
    found = Counter(source.draw("generate", turn, 1, 64).size for turn in range(430))
    assert found == {size_for("1:1", 64): 200, size_for("3:2", 64): 130, size_for("2:3", 64): 100}


def test_what_a_folder_has_no_samples_of(squares: Path) -> None:
    source = FolderSource(squares)
    assert source.tasks == ("generate",)
    for task, turn, count in [("edit", 0, 1), ("generate", -1, 1), ("generate", 0, 0)]:
        with pytest.raises(BadInput) as caught:
            source.draw(task, turn, count, 64)  # type: ignore[arg-type]
        assert len(str(caught.value).splitlines()) <= 3


def test_pictures_stand_upright_in_their_buckets(tmp_path: Path) -> None:
    """For each of EXIF's orientations, in each format, the header says what loading gives."""
    for format in ("PNG", "JPEG", "WEBP"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            path = tmp_path / f"{orientation}.{format.lower()}"
            Image.new("RGB", (96, 64)).save(path, format, exif=exif)
            assert (
                metadata.upright_size(path) == pictures.load(path).size == ((64, 96) if orientation > 4 else (96, 64))
            )


def test_the_worlds_export_is_read_back(tmp_path: Path) -> None:
    exporting.export(tmp_path / "world", 12, seed=3, shard_size=0)
    report = check_folder(tmp_path / "world")
    assert report.problems == ()
    assert {task: sum(by.values()) for task, by in report.counts.items()} == {"generate": 6, "edit": 6}
    source = FolderSource(tmp_path / "world")
    draw = source.draw("edit", 0, 2, 128)
    lines = {e["id"]: e for e in map(json.loads, (tmp_path / "world/metadata.jsonl").read_text().splitlines())}
    example = source.load(draw, 1)
    assert example.text == lines[example.id]["instruction"]


# --- faults -----------------------------------------------------------------------------------------------------------


def faulty(folder: Path) -> tuple[list[Any], dict[int, str]]:
    """Lines of a folder, and by number a pattern of what is to be said of each."""
    folder.mkdir()
    good = painted(folder / "good.png", (64, 64))
    wide = painted(folder / "wide.png", (128, 64))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    Image.fromarray(noise).save(folder / "whole.jpg")
    for name in ("whole.png", "whole.jpg"):
        data = (folder / name).read_bytes()
        (folder / name.replace("whole", "cut")).write_bytes(data[: len(data) * 2 // 3])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "sub.png").mkdir()
    painted(folder / "tiny.png", (7, 64))
    Image.new("1", (8008, 8000)).save(folder / "huge.png")
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    painted(folder.parent / "outside.png", (64, 64))
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "inner.png").symlink_to("good.png")
    (folder / "circle.png").symlink_to("circle.png")
    cases: list[tuple[Any, str]] = [
        ({"id": "first", "image": good, "text": "a"}, ""),
        ({"id": "linked", "image": "inner.png", "text": "a"}, ""),
        (b'{"image": "good.png", "text": }', "no JSON"),
        (b'["good.png", "a"]', "no JSON object"),
        (b'{"image": "good.png", "text": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "no JSON"),
        (b'{"text": "' + b"x" * 2**20 + b'"}', "longer than 1 MiB"),
        ({"image": good}, '"text" is missing'),
        ({"text": "a"}, 'neither "image"'),
        ({"source": good, "target": good}, '"instruction" is missing'),
        ({"source": good, "instruction": "b"}, '"target" is missing'),
        ({"image": good, "text": " "}, "text is empty"),
        ({"image": good, "text": ["a"]}, "text is not text"),
        ({"image": good, "text": "x" * 20_000}, "text is too long"),
        (b'{"image": "good.png", "text": "\\ud800"}', "not text"),
        ({"id": "first", "image": good, "text": "a"}, "same id as line 1$"),
        ({"id": 1.5, "image": good, "text": "a"}, "id is not text"),
        ({"image": "gone.png", "text": "a"}, "gone.png: there is no such picture"),
        ({"image": "text.png", "text": "a"}, "not a PNG, JPEG or WebP"),
        ({"image": "empty.png", "text": "a"}, "empty"),
        ({"image": "sub.png", "text": "a"}, "folder stands where"),
        ({"image": "cut.png", "text": "a"}, "cut.png: the picture is broken"),
        ({"image": "cut.jpg", "text": "a"}, "cut.jpg: the picture is broken"),
        ({"image": "moving.webp", "text": "a"}, "animation"),
        ({"image": "tiny.png", "text": "a"}, "too small: 7x64"),
        ({"image": "huge.png", "text": "a"}, "too large"),
        ({"image": "../outside.png", "text": "a"}, "leads out of the folder"),
        ({"image": str(folder / good), "text": "a"}, "leads out of the folder"),
        ({"image": "..\\outside.png", "text": "a"}, "leads out of the folder"),
        ({"image": "C:\\good.png", "text": "a"}, "leads out of the folder"),
        ({"image": "sub/../good.png", "text": "a"}, "leads out of the folder"),
        ({"image": "link.png", "text": "a"}, "link leads out of the folder"),
        ({"image": "circle.png", "text": "a"}, "circle.png: "),
        ({"image": "a\0b.png", "text": "a"}, "no path of a picture"),
        ({"image": "x" * 5000, "text": "a"}, "no path of a picture"),
        ({"image": 3, "text": "a"}, '"image" must name pictures'),
        ({"image": "", "text": "a"}, '"image" must name pictures'),
        ({"source": [], "instruction": "b", "target": good}, '"source" holds 0 pictures'),
        ({"source": [good, None], "instruction": "b", "target": good}, '"target" and "source" must name'),
        ({"source": [good] * 17, "instruction": "b", "target": good}, '"source" holds 17 pictures'),
        ({"source": wide, "instruction": "b", "target": good}, "differ in aspect: 128x64 and 64x64"),
        ({"source": good, "instruction": "b", "target": "cut.png"}, "cut.png: the picture is broken"),
        ({"id": "last", "source": [good, wide], "instruction": "b", "target": good}, ""),
    ]
    return [line for line, _ in cases], {i: said for i, (_, said) in enumerate(cases, 1) if said}


def test_check_names_every_broken_sample(tmp_path: Path) -> None:
    lines, wanted = faulty(tmp_path / "data")
    report = check_folder(write(tmp_path / "data", lines))
    said = {number: [p for p in report.problems if p.line == number] for number in range(len(lines) + 1)}
    for number, problems in said.items():
        if number in wanted:
            assert len(problems) == 1, problems
            assert re.search(wanted[number], problems[0].what), (problems[0], wanted[number])
            assert str(problems[0]).startswith(f"line {number}")
            assert str(problems[0]).isprintable()
        else:
            assert not problems
    assert report.counts == {"generate": {"1:1": 2}, "edit": {"1:1": 1}}


def test_one_line_may_have_several_problems(tmp_path: Path) -> None:
    write(tmp_path, [{"id": "x", "source": ["a.png", "b.png"], "instruction": "", "target": "c.png"}] * 2)
    report = check_folder(tmp_path)
    assert [p.line for p in report.problems] == [1] * 4 + [2] * 5
    assert {p.id for p in report.problems} == {"x"}


def test_training_refuses_a_broken_folder(tmp_path: Path) -> None:
    lines, wanted = faulty(tmp_path / "data")
    with pytest.raises(BadInput) as caught:
        FolderSource(write(tmp_path / "data", lines))
    said = str(caught.value).splitlines()
    assert len(said) == 3
    assert said[0].startswith("line 3: the line is no JSON")
    only_decoding = 4  # what headers do not show: three cut files' lines, and an animation
    assert said[1].endswith(f"metadata.jsonl, and {len(wanted) - only_decoding - 1} more")
    assert said[2] == f"run `unipic data check {tmp_path / 'data'}`"


def test_no_metadata_and_no_samples(tmp_path: Path) -> None:
    for open_it in (FolderSource, check_folder):
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(BadInput, match="cannot be read"):
                open_it(folder)
    write(tmp_path, [b"", b"  "])
    assert [p.what for p in check_folder(tmp_path).problems] == ["there are no samples"]
    with pytest.raises(BadInput, match="there are no samples"):
        FolderSource(tmp_path)


def test_a_picture_that_breaks_or_leads_out_later_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, [{"image": painted(folder / "a.png", (64, 64)), "text": "a"}])
    painted(tmp_path / "outside.png", (64, 64))
    source = FolderSource(folder)
    draw = source.draw("generate", 0, 1, 64)
    assert source.load(draw, 0).picture.size == (64, 64)
    (folder / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadInput):
        source.load(draw, 0)
    (folder / "a.png").unlink()
    (folder / "a.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(BadInput, match="leads out"):
        source.load(draw, 0)


def test_a_byte_order_mark_blank_lines_and_ids_of_numbers(tmp_path: Path) -> None:
    line = json.dumps({"id": 7, "image": painted(tmp_path / "a.png", (64, 64)), "text": "é"}, ensure_ascii=False)
    write(tmp_path, [b"\xef\xbb\xbf" + line.encode(), b"", json.dumps({"file_name": "a.png", "text": "b"}).encode()])
    samples, problems = metadata.read(tmp_path)
    assert not problems
    assert [(s.line, s.id, s.text) for s in samples] == [(1, "7", "é"), (3, "3", "b")]
    assert FolderSource(tmp_path).load(Draw("generate", (32, 32), (1,)), 0).id == "3"


def test_check_doubts_what_would_be_blown_up_or_cut_away(tmp_path: Path) -> None:
    lines = [
        {"image": painted(tmp_path / "fine.png", (256, 256)), "text": "a"},
        {"image": painted(tmp_path / "small.png", (255, 255)), "text": "a"},
        {"image": painted(tmp_path / "strip.png", (1280, 320)), "text": "a"},
    ]
    report = check_folder(write(tmp_path, lines), resolution=512)
    assert report.problems == ()
    assert [(w.line, w.what.split(" of it")[0].split(" pixels")[0]) for w in report.warnings] == [
        (2, "small.png: 255x255"),
        (3, "strip.png: 44%"),
    ]
    assert [w.line for w in check_folder(tmp_path).warnings] == [3]
    assert set(report.counts["generate"]) == {"1:1", "16:9"} <= set(ASPECTS)


def test_training_reads_headers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a folder decodes no picture, whatever its format."""
    for format in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64)).save(buffer, format)
        (tmp_path / format).write_bytes(buffer.getvalue())
    write(tmp_path, [{"image": format, "text": "a"} for format in ("PNG", "JPEG", "WEBP")])
    decoded: list[Any] = []
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: decoded.append(self))
    assert len(FolderSource(tmp_path).samples) == 3
    assert decoded == []
