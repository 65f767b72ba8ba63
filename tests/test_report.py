"""Report pages: what is written can be read, by browsers and by people, and nothing in it acts or loads."""

from __future__ import annotations

import base64
import errno
import io
import math
import os
import random
import re
import stat
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unipic.errors import BadInput, UnipicError
from unipic.report import Page, Picture, from_log
from unipic.report.axes import Axis, axis_of
from unipic.report.curves import HEIGHT, MARKED, WIDTH, thin
from unipic.report.page import MAX_SIDE
from unipic.report.texts import number
from unipic.world.render import render
from unipic.world.scene import sample

VOID = {"meta", "img"}
HOSTILE = [
    "<script>alert(1)</script>",
    "\" onload='x' ",
    "]]></style></svg><img src=x>",
    "\ud800 lone \udfff",
    "nul \0 and \x1b[31m",
    "mark \u200f override \u202e txt.exe \u2066",
    "<!-- -->&amp;&#0;",
    "صورة 图片 🧑‍🎨",
    "\ufffe\uffff",
]


class Reader(HTMLParser):
    """The tree of a page, refusing tags that do not match."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page.html())
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # elsewhere HTML ignores the stroke
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def of(self, tag: str) -> list[str]:
        return [text for place, text in self.texts if place == tag]


def drawings(page: Page) -> list[ElementTree.Element]:
    """The charts of a page, each read as XML."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox.*?</svg>", page.html(), re.DOTALL)]


def strokes(page: Page, kind: str) -> list[list[tuple[float, float]]]:
    """The drawn lines of a kind, as points."""
    paths = [p.get("d", "") for svg in drawings(page) for p in svg.iter("path") if p.get("class", "").startswith(kind)]
    numbers = [[float(n) for n in re.findall(r"-?[\d.]+", part)] for d in paths for part in d.split("M")[1:]]
    return [list(zip(line[::2], line[1::2], strict=True)) for line in numbers]


def dots(page: Page) -> list[tuple[float, float]]:
    found = [p.get("d", "") for svg in drawings(page) for p in svg.iter("path") if "-dots" in p.get("class", "")]
    return [(float(x), float(y)) for d in found for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", d)]


def full() -> Page:
    points = [(float(i), math.sin(i / 9)) for i in range(200)]
    picture = Picture(render(sample(0, "train", size=(64, 64))), "a ring", ok=True)
    page = Page("run 7").text("one\n\ntwo", "What it is").table("scores", ["task", "share"], [["counting", 0.25]])
    page.curves("loss", {"train": points, "test": points[::10]}, "step", "loss", smooth=True)
    page.curves("rate", {"rate": [(i, 10.0**-i) for i in range(9)]}, log_y=True)
    return page.pictures("samples", [("prompt", [picture, Picture(picture.image)])]).settings({"train": {"lr": 1e-4}})


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_page_is_whole_and_keeps_its_order() -> None:
    read = Reader(full())
    assert read.of("h1") == ["run 7"]
    assert read.of("h2") == ["What it is", "scores", "loss", "rate", "samples", "Settings"]
    assert read.of("p")[:2] == ["one", "two"]
    assert {"0.25", "1e-4", "0.0001"} <= {*read.of("td"), *read.of("th"), *read.of("text")}
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) == 4
    assert len(drawings(full())) == 2


def test_nothing_loads_and_nothing_acts() -> None:
    page = full()
    read = Reader(page)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
    for _, attributes in read.tags:
        assert not any(name.startswith("on") or name in {"href", "srcset", "action"} for name in attributes)
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
    assert not re.search(r"https?:|@import|url\(", page.html())
    policy = next(a["content"] for _, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


@pytest.mark.parametrize("text", HOSTILE)
def test_every_text_is_escaped(text: str, tmp_path: Path) -> None:
    calm = Page("x").text("x", "x").curves("x", {"x": [(0, 1), (1, None)]}, "x", "x", log_y=True)
    page = Page(text).text(text, text).curves(text, {text: [(0, 1), (1, None)]}, text, text, log_y=True)
    for p, t in ((calm, "x"), (page, text)):
        image = Image.new("RGB", (8, 8))
        p.table(t, [t, "n"], [[t, 1]]).pictures(t, [(t, [Picture(image, t, ok=False), Picture(image)])])
        p.settings({t: {t: t, "list": [t]}}, t)
    assert [tag for tag, _ in Reader(page).tags] == [tag for tag, _ in Reader(calm).tags]
    assert [sorted(a) for _, a in Reader(page).tags] == [sorted(a) for _, a in Reader(calm).tags]
    assert len(drawings(page)) == 1
    page.write(tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0e-\x1f\u202a-\u202e\u2066-\u2069\ufffe\uffff]", written)
    if text.isprintable():
        assert Reader(page).of("h1") == [text]


def test_characters_that_no_page_can_hold_are_spelled() -> None:
    assert Reader(Page("a\0b\ud800c\u202ed\u200fe")).of("h1") == ["a\\x00b\\ud800c\\u202ed\u200fe"]


def test_table_cells() -> None:
    rows = [["ours", 12_000, 0.83333, True], ["theirs", None, np.float32(1e-5), False]]
    read = Reader(Page("t").table("", ["name", "n", "share", "right"], rows))
    assert read.of("td") == ["ours", "12,000", "0.8333", "yes", "theirs", "–", "1e-5", "no"]
    assert [a.get("class") for tag, a in read.tags if tag == "th"] == [None, "n", "n", None]
    with pytest.raises(BadInput, match="1 cells for 2 columns"):
        Page("t").table("scores", ["a", "b"], [[1, 2], [1]])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (0.000123456, "0.0001235"),
        (1e10, "1e10"),
        (2e-300, "2e-300"),
        (-0.5, "-0.5"),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
        (np.int64(7), "7"),
        (10**9, "1,000,000,000"),
        ("0.50 ± 0.1", "0.50 ± 0.1"),
    ],
)
def test_numbers(value: object, said: str) -> None:
    assert number(value) == said


def test_settings_are_exact_and_dotted() -> None:
    read = Reader(Page("t").settings({"train": {"lr": 1e-4, "betas": [0.9, 0.999]}, "ema": None, "extra": {}}))
    assert list(zip(read.of("th"), read.of("td"), strict=True)) == [
        ("train.lr", "0.0001"),
        ("train.betas", "[0.9, 0.999]"),
        ("ema", "null"),
        ("extra", "{}"),
    ]


# --- pictures ---------------------------------------------------------------------------------------------------------


def embedded(page: Page) -> list[tuple[Image.Image, dict[str, str | None]]]:
    tags = [a for tag, a in Reader(page).tags if tag == "img"]
    return [(Image.open(io.BytesIO(base64.b64decode((a["src"] or "").split(",")[1]))), a) for a in tags]


def test_small_pictures_are_kept_exactly_and_shown_larger() -> None:
    image = render(sample(3, "train", size=(64, 64)))
    image.info |= {"unipic": "a secret prompt", "icc_profile": b"a camera's"}
    ((inside, tag),) = embedded(Page("t").pictures("", [("", [Picture(image, "caption")])]))
    assert np.array_equal(np.asarray(inside.convert("RGB")), np.asarray(image))
    assert (tag["width"], tag["class"], tag["alt"]) == ("192", "pixels", "caption")
    assert not inside.info


def test_large_and_odd_pictures() -> None:
    images = [
        Image.new("RGB", (2048, 1024)),
        Image.new("RGBA", (8, 8)),
        Image.new("1", (1, 1)),
        Image.new("CMYK", (9, 9)),
    ]
    sizes = [inside.size for inside, _ in embedded(Page("t").pictures("", [("", [Picture(i) for i in images])]))]
    assert sizes == [(MAX_SIDE, MAX_SIDE // 2), (8, 8), (1, 1), (9, 9)]
    with pytest.raises(BadInput, match="picture of the page is broken"):
        Page("t").pictures("", [("", [Picture(Image.new("RGB", (0, 0)))])])


def test_verdicts_are_said_by_more_than_colour() -> None:
    image = Image.new("RGB", (8, 8))
    read = Reader(Page("t").pictures("", [("", [Picture(image, "a", ok=True), Picture(image, "b", ok=False)])]))
    assert read.of("b") == ["✓", "✗"]


def test_a_page_of_200_pictures_fits_into_a_mail() -> None:
    rng = np.random.default_rng(0)
    shown = []
    scenes = [np.asarray(render(sample(seed, "train", size=(64, 64)))) for seed in range(20)]
    for seed in range(200):
        pixels = scenes[seed % 20] + rng.normal(0, 4, (64, 64, 3))
        shown.append(Picture(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), f"picture {seed}"))
    assert len(Page("t").pictures("", [("", shown)]).html().encode()) < 3_000_000


# --- curves -----------------------------------------------------------------------------------------------------------


def test_thinning_keeps_every_spike() -> None:
    noise = random.Random(0)
    points = [(float(i), noise.random()) for i in range(100_000)]
    for i in range(500, 100_000, 9_973):
        points[i] = (float(i), 9.0 + i / 1e6)
    page = Page("t").curves("loss", {"loss": points})
    ((*line,),) = strokes(page, "line")
    assert len(line) <= 4 * WIDTH
    assert len(page.html()) < 100_000
    axis = axis_of([y for _, y in points], HEIGHT - 44, 28, pad=True)
    drawn = {y for _, y in line}
    for i in range(500, 100_000, 9_973):
        assert round(axis.place(points[i][1]), 1) in drawn
    assert min(drawn) == round(axis.place(max(y for _, y in points)), 1)
    assert max(drawn) == round(axis.place(min(y for _, y in points)), 1)


def test_thinning_is_first_least_greatest_last_in_order() -> None:
    column = [(5.0, 3.0, 0), (5.1, 1.0, 0), (5.2, 2.0, 0), (5.3, 9.0, 0), (5.4, 4.0, 0), (5.5, 5.0, 0), (6.0, 1.0, 0)]
    assert thin(column) == [column[i] for i in (0, 1, 3, 5, 6)]


def test_gaps() -> None:
    points = [(i, None if i == 20 else math.nan if i in (40, 42) else float(i)) for i in range(60)]
    page = Page("t").curves("", {"a": points})
    lines = strokes(page, "line c")
    assert [len(line) for line in lines] == [20, 19, 17]
    assert len(dots(page)) == 1  # the point between two gaps
    assert "3 missing or not finite" in page.html()


def test_many_gaps_do_not_make_a_large_page() -> None:
    points = [(i, float(i % 7) if i % 2 else math.nan) for i in range(100_000)]
    page = Page("t").curves("", {"a": points})
    assert len(page.html()) < 100_000
    assert len(dots(page)) <= 1  # a gap within a pixel breaks no line; the last point may have a column of its own


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    page = Page("t").curves(
        "", {"a": [(i, 10.0 ** (i % 9 - 4)) for i in range(40)] + [(40, 0.0), (41, -3)]}, log_y=True
    )
    assert "a: 2 not above zero" in page.html()
    assert {"1e-4", "0.01", "1", "100", "10,000"} <= set(Reader(page).of("text"))
    ((*line,),) = strokes(page, "line c")
    heights = sorted({y for _, y in line})
    assert max(np.diff(heights)) - min(np.diff(heights)) < 0.3  # equal factors are equally far apart


def test_the_moving_average() -> None:
    level = [(i, 5.0) for i in range(600)]
    noise = random.Random(1)
    noisy = [(x, y + noise.gauss(0, 1)) for x, y in level]
    page = Page("t").curves("", {"a": noisy}, smooth=True)
    (raw,), (bold,) = strokes(page, "raw c"), strokes(page, "line c")
    spread = [float(np.std([y for _, y in line])) for line in (raw, bold)]
    assert spread[1] < spread[0] / 2
    few = Page("t").curves("", {"a": noisy[:MARKED]}, smooth=True)
    assert not strokes(few, "raw")
    assert len(dots(few)) == MARKED
    ((*flat,),) = strokes(Page("t").curves("", {"a": level}, smooth=True), "line c")
    assert len({y for _, y in flat}) == 1  # no bias at its start


@pytest.mark.parametrize("log_y", [False, True])
@pytest.mark.parametrize(
    "points",
    [
        [],
        [(10, 0.5)],
        [(10, 5e-324)],
        [(0, 0.0), (1, 0.0)],
        [(i, 7.25) for i in range(50)],
        [(0, 1e300), (1, -1e300), (2, 1.8e308)],
        [(0, 5e-324), (1, 1e-320)],
        [(0, 1.0), (1, 1.0 + 2**-52)],
        [(1e300, 1), (-1e300, 2)],
        [(0, math.inf), (math.nan, 1), (None, 2), (3, -math.inf)],
        [(0, 10**400), (1, 3)],
        [(2, 1), (0, 5), (1, 3)],
        [(np.int64(0), np.float64(1)), (np.int64(1), np.float64(2))],
    ],
)
def test_odd_series(points: list[tuple[float, float]], log_y: bool) -> None:
    page = Page("t").curves("", {"a": points, "empty": []}, log_y=log_y, smooth=True)
    Reader(page)
    assert not re.search(r'(d|x|y)="[^"]*(nan|inf)', page.html())
    drawn = [spot for line in strokes(page, "line c") for spot in line] + dots(page)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)
    drawable = any(
        None not in (x, y) and abs(x) <= 1e300 and abs(y) <= 1e300 and (y > 0 or not log_y) for x, y in points
    )
    assert bool(drawn) == bool(drawings(page)) == drawable


def test_points_are_joined_in_the_order_of_x() -> None:
    ((*line,),) = strokes(Page("t").curves("", {"a": [(2, 1), (0, 5), (1, 3)]}), "line c")
    assert line == sorted(line)


@pytest.mark.parametrize("value", ["0.5", 1j, [1.0]])
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(BadInput, match="no number"):
        Page("t").curves("", {"a": [(0, value)]})  # type: ignore[list-item]


def test_the_legend_tells_curves_apart_and_says_that_a_run_has_failed() -> None:
    series = {f"s{i}": [(0, 1.0), (7, math.nan)] for i in range(24)}
    page = Page("t").curves("", series)
    looks = re.findall(r'class="line (c\d d\d)" d="M1 5H33"', page.html())
    assert len(set(looks)) == 24
    assert Reader(page).of("td")[:5] == ["7", "NaN", "1", "1", "1"]


def test_a_drawing_tells_its_story() -> None:
    (svg,) = drawings(Page("t").curves("", {"loss": [(0, 3.0), (1, 1.0), (2, 2.0)]}, "step", "nats"))
    title, story = svg.find("title"), svg.find("desc")
    assert title is not None
    assert story is not None
    assert title.text == "nats by step"
    assert story.text == "loss: 3 points from 1 to 3, the last 2."


# --- axes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-3, 42, ["0", "10", "20", "30", "40"]),
        (0.1, 0.3, ["0.1", "0.15", "0.2", "0.25", "0.3"]),
        (0, 100_000, ["0", "20,000", "40,000", "60,000", "80,000", "100,000"]),
        (0, 1e-6, ["0", "2e-7", "4e-7", "6e-7", "8e-7", "1e-6"]),
        (-2e7, 2e7, ["-2e7", "-1e7", "0", "1e7", "2e7"]),
    ],
)
def test_marks_are_round(low: float, high: float, marks: list[str]) -> None:
    assert [text for _, text in Axis(low, high, 0, 1).ticks(5)] == marks


def test_marks_of_any_range() -> None:
    rng = random.Random(0)
    for _ in range(2_000):
        low = rng.uniform(-1, 1) * 10 ** rng.uniform(-290, 290)
        axis = axis_of([low, low + abs(low) * 10 ** rng.uniform(-11, 9)], 50, 700, pad=rng.random() < 0.5)
        marks = axis.ticks(5)
        assert 2 <= len(marks) <= 8
        assert len({text for _, text in marks}) == len(marks)
        assert all(49.9 <= place <= 700.1 for place, _ in marks)


def test_marks_of_any_logarithmic_range() -> None:
    rng = random.Random(1)
    for _ in range(2_000):
        low = 10 ** rng.uniform(-300, 200)
        axis = axis_of([low, low * 10 ** rng.uniform(0.01, 90)], 256, 28, log=True, pad=True)
        marks = axis.ticks(5)
        assert 2 <= len(marks) <= 9
        assert len({text for _, text in marks}) == len(marks)
        assert all(27.9 <= place <= 256.1 for place, _ in marks)


# --- logs and files ---------------------------------------------------------------------------------------------------


def test_curves_of_a_log() -> None:
    lines = [
        {"version": "0.1"},
        {"step": 1, "loss": 0.5, "kind": "train", "done": False, "reward": {"quality": 8.0, "alignment": None}},
        {"step": 2, "loss": math.nan, "reward": {"quality": None}},
        {"step": 3, "share": 1},
    ]
    curves = from_log(lines)
    assert set(curves) == {"loss", "reward.quality", "share"}
    assert curves["reward.quality"] == [(1, 8.0), (2, None)]
    assert curves["share"] == [(3, 1)]
    assert math.isnan(curves["loss"][1][1] or 0)


def test_a_written_page_has_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    full().write(path)
    (tmp_path / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)
    assert path.read_text() == full().html()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_page(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    Page("old").write(path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(UnipicError, match="No space left"):
        Page("new").write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["folder", "nul\0", "file/page.html"])
def test_places_that_take_no_page(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UnipicError, match="cannot be written"):
        Page("t").write(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
