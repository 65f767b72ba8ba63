"""Rendered text as a reward: what is asked for, how near it is, and real pictures of right, wrong and no text."""

from __future__ import annotations

import random
import socket
import sys
from functools import lru_cache
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from unipic.errors import BadInput, UnipicError
from unipic.rewards.ocr import OcrReward, distance, wanted
from unipic.rewards.reward import Sample

GREY = Image.new("RGB", (64, 64), "gray")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "Open"', "Open"),
        ("a sign that says “Open late”", "Open late"),
        ("ein Schild: „Offen“", "Offen"),
        ("une affiche «Ouvert»", "Ouvert"),
        ("the word 'don't' on a wall", "don't"),
        ("a poster with 'SALE' in it", "SALE"),
        ('"One" above "Two words"', "One Two words"),
        ("the dog's bone and the cats' house", None),
        ("a sign without words", None),
        ('an empty sign ""', None),
        ('blank " "', None),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, text: str | None) -> None:
    assert wanted(Sample(prompt, GREY)) == text


def test_a_spec_tells_before_the_prompt() -> None:
    assert wanted(Sample('says "no"', GREY, None, {"text": "yes"})) == "yes"
    assert wanted(Sample('says "no"', GREY, None, {"text": 3})) == "no"


def slow_distance(a: str, b: str) -> int:
    """By its definition."""

    @lru_cache(None)
    def of(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


def test_the_distance_is_levenshteins() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("abc", k=rng.randrange(9))) for _ in range(2))
        assert distance(a, b) == slow_distance(a, b)
        parts = (b[i:j] for i in range(len(b) + 1) for j in range(i, len(b) + 1))
        assert distance(a, b, anywhere=True) == min(slow_distance(a, part) for part in parts)


@pytest.mark.parametrize(
    ("read", "likeness", "exact", "anywhere"),
    [
        ("Open Late", 1, 1, 1),
        ("OPEN  late", 1, 5 / 9, 1),
        ("OpenLate", 1, 8 / 9, 1),
        ("Open", 0.5, 4 / 9, 0.5),
        ("", 0, 0, 0),
        ("now open late!", 8 / 12, 7 / 14, 1),
        ("ＯＰＥＮ ＬＡＴＥ", 1, 3 / 9, 1),
        ("zzzzzzzzzzzzzzzzzzzz", 0, 0, 0),
    ],
)
def test_likeness(read: str, likeness: float, exact: float, anywhere: float) -> None:
    reward = OcrReward.__new__(OcrReward)  # without a recogniser
    for settings, score in (
        ((True, True, False), likeness),
        ((False, False, False), exact),
        ((True, True, True), anywhere),
    ):
        reward.ignore_case, reward.ignore_spaces, reward.anywhere = settings
        assert reward.likeness("Open Late", read) == pytest.approx(score, abs=1e-9)


def test_without_the_recogniser_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UnipicError, match=r'pip install "unipic\[ocr\]"'):
        OcrReward()


def test_bad_settings_are_refused() -> None:
    from unipic.config import resolve
    from unipic.rewards.configs import OcrRewardConfig

    for fields in ({"threads": 0}, {"ignore_case": "yes"}, {"language": "en"}):
        with pytest.raises(BadInput):
            resolve(OcrRewardConfig, {"kind": "ocr", **fields}, "recipe")


# --- real pictures ----------------------------------------------------------------------------------------------------


def lettered(*lines: str, size: int = 40, ground: str = "white", ink: str = "black") -> Image.Image:
    picture = Image.new("RGB", (448, 192), ground)
    for i, line in enumerate(lines):
        draw = ImageDraw.Draw(picture)
        draw.text((24, 24 + 72 * i), line, fill=ink, font=ImageFont.load_default(size))
    return picture


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("the recogniser opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.mark.usefixtures("offline")
def test_text_in_pictures_is_read() -> None:
    pytest.importorskip("rapidocr")
    reward = OcrReward()
    prompt = 'a sign that says "HELLO WORLD"'
    shown = [
        lettered("HELLO WORLD"),
        lettered("Hello", "World", ground="navy", ink="yellow"),
        lettered("HELLO WARLD"),
        lettered("GOODBYE"),
        lettered(),
    ]
    right, in_lines, nearly, wrong, blank = reward.score([Sample(prompt, picture) for picture in shown])
    assert right == in_lines == 1
    assert nearly == pytest.approx(0.9)
    assert wrong is not None
    assert wrong < 0.5
    assert blank == 0
    assert reward.score([Sample("a sign", shown[0])]) == [None]
    assert "torchvision" not in sys.modules
    strict = OcrReward(ignore_case=False)
    strict.engine = reward.engine
    assert strict.score([Sample('"hello world"', shown[0])]) == [0.0]
    assert strict.score([Sample("", shown[0], None, {"text": "HELLO WORLD"})]) == [1.0]
