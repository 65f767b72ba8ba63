"""Pictures in and out, each conversion against one computed by other means."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from tests.reference import png
from unipic import BadInput, UnipicError, pictures
from unipic.pictures import SETTINGS_KEY, load, png_bytes, save_png, settings_of, working_size

SIZE = (24, 16)
COLOURS = np.random.default_rng(0).integers(0, 256, (16, 24, 4), dtype=np.uint8)
PICTURE = Image.fromarray(COLOURS[..., :3])
UPRIGHT = {  # EXIF's orientations: how the stored array is turned to stand upright
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source: pictures.PictureLike) -> np.ndarray:
    """H×W×3, as numbers that can be subtracted."""
    picture = load(source)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def three(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1).astype(int)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def assert_within(got: np.ndarray, wanted: np.ndarray, levels: float) -> None:
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= levels


# What comes in


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_keep_every_pixel(format: str, options: dict[str, Any]) -> None:
    assert (pixels(encoded(PICTURE, format, **options)) == COLOURS[..., :3]).all()


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_stay_near(format: str) -> None:
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:250:16j, 0:250:24j], 128), axis=-1).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), format, quality=100, **({"subsampling": 0} if format == "JPEG" else {}))
    assert_within(pixels(data), smooth, 12)


def test_paths_bytes_and_pictures_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(PICTURE))
    for source in (path, str(path), path.read_bytes(), PICTURE):
        assert load(source).tobytes() == PICTURE.tobytes()


def test_a_given_picture_is_not_touched() -> None:
    load(PICTURE).putpixel((0, 0), (1, 2, 3))
    assert (np.asarray(PICTURE) == COLOURS[..., :3]).all()


def test_grey_and_one_bit() -> None:
    grey = COLOURS[..., 0]
    assert (pixels(encoded(Image.fromarray(grey))) == three(grey)).all()
    assert (pixels(encoded(Image.fromarray(grey > 127))) == three((grey > 127) * 255)).all()


def test_sixteen_bit_grey_is_divided_by_257() -> None:
    every = np.arange(2**16).reshape(256, 256)
    wanted = three(np.rint(every / 257))
    assert (pixels(png.png16(every, png.GREY)) == wanted).all()
    assert (pixels(Image.fromarray(every.astype(np.uint16))) == wanted).all()


@pytest.mark.parametrize("colour", [png.RGB, png.GREY_ALPHA, png.RGBA], ids=["RGB", "LA", "RGBA"])
def test_other_sixteen_bit_pictures_are_within_a_level(colour: int) -> None:
    """Pillow itself reads these as 8 bits."""
    every = np.arange(2**16).reshape(256, 256)
    channels = [every] if colour == png.GREY_ALPHA else [every, every.T, every[::-1]]
    solid = [np.full_like(every, 65535)] if colour != png.RGB else []
    wanted = np.stack(channels * (3 // len(channels)), axis=-1) / 257
    assert_within(pixels(png.png16(np.stack([*channels, *solid], axis=-1), colour)), wanted, 1)


def test_transparency_lies_on_white() -> None:
    wanted = on_white(COLOURS[..., :3], COLOURS[..., 3])
    assert_within(pixels(encoded(Image.fromarray(COLOURS))), wanted, 1)
    assert_within(pixels(encoded(Image.fromarray(COLOURS), "WEBP", lossless=True, exact=True)), wanted, 1)
    grey = Image.fromarray(COLOURS[..., [0, 3]], mode="LA")
    assert_within(pixels(encoded(grey)), on_white(three(COLOURS[..., 0]), COLOURS[..., 3]), 1)


def test_palette_with_and_without_transparency() -> None:
    palette = COLOURS[0, :16, :3]
    indices = COLOURS[..., 0] % 16
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(palette.tobytes())
    colours = palette[indices]
    assert (pixels(encoded(picture)) == colours).all()

    alpha = np.linspace(0, 255, 16).astype(np.uint8)
    assert_within(pixels(encoded(picture, transparency=alpha.tobytes())), on_white(colours, alpha[indices]), 1)
    assert_within(pixels(encoded(picture, transparency=3)), on_white(colours, (indices != 3) * 255), 0)


@pytest.mark.parametrize("kind", ["one-bit", "grey", "sixteen-bit", "colour"])
def test_a_transparent_colour_lies_on_white(kind: str) -> None:
    """PNG can name one colour that is not there (tRNS)."""
    grey = COLOURS[..., 0] // 128 * 255
    stored: dict[str, tuple[Image.Image, Any]] = {
        "one-bit": (Image.fromarray(grey > 0), 0),
        "grey": (Image.fromarray(grey), 0),
        "sixteen-bit": (Image.fromarray(grey.astype(np.uint16) * 257), 0),
        "colour": (Image.fromarray(three(grey).astype(np.uint8)), (0, 0, 0)),
    }
    picture, transparent = stored[kind]
    assert (pixels(encoded(picture, transparency=transparent)) == 255).all()


def test_cmyk() -> None:
    """A JPEG of flat blocks (as printers' programs write it), and the picture itself."""
    inks = np.random.default_rng(1).integers(0, 256, (3, 3, 4)).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)
    wanted = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:].astype(float)) / 255
    picture = Image.fromarray(inks, mode="CMYK")
    assert_within(pixels(picture), wanted, 1)
    assert_within(pixels(encoded(picture, "JPEG", quality=100, subsampling=0)), wanted, 3)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_orientation(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURE, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    wanted = UPRIGHT[orientation](COLOURS[..., :3])
    assert (pixels(data) == wanted).all()
    assert (pixels(load(data)) == wanted).all(), "turned twice"


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"])
def test_a_photograph_with_broken_exif_is_taken_as_it_lies(exif: bytes) -> None:
    assert load(encoded(PICTURE, "JPEG", exif=exif)).size == SIZE


def test_a_multi_picture_jpeg_is_its_first_picture() -> None:
    first, second = Image.new("RGB", SIZE, (200, 0, 0)), Image.new("RGB", SIZE, (0, 0, 200))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert_within(pixels(data), np.asarray(first, dtype=int), 3)


@pytest.mark.parametrize(
    ("mode", "levels"), [("YCbCr", 3), ("HSV", 3), ("LAB", 6), ("RGBX", 0), ("RGBA", 0), ("CMYK", 1)]
)
def test_pictures_in_other_colour_spaces(mode: str, levels: int) -> None:
    muted = COLOURS[..., :3] // 2 + 64  # inside the gamut of all of them
    assert_within(pixels(Image.fromarray(muted).convert(mode)), muted, levels)


@pytest.mark.parametrize(("mode", "plain"), [("RGBa", "RGBA"), ("La", "LA")])
def test_pictures_multiplied_by_their_transparency(mode: str, plain: str) -> None:
    picture = Image.fromarray(COLOURS).convert(plain)
    assert_within(pixels(picture.convert(mode)), pixels(picture), 2)


@pytest.mark.parametrize("mode", ["L", "LA", "F"])
def test_pictures_in_grey_modes(mode: str) -> None:
    luma = COLOURS[..., :3] @ [0.299, 0.587, 0.114]
    assert_within(pixels(PICTURE.convert(mode)), three(luma), 2)


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
def test_pictures_of_wide_whole_numbers(mode: str) -> None:
    values = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.int32)
    stored = Image.fromarray(values) if mode == "I" else Image.frombytes(mode, SIZE, _packed(values, mode))
    assert (pixels(stored) == three(np.rint(values / 257))).all()


def _packed(values: np.ndarray, mode: str) -> bytes:
    return values.astype(">u2" if mode.endswith("B") else "<u2").tobytes()


def test_whole_numbers_beyond_sixteen_bits_are_clipped() -> None:
    values = np.array([-1, 0, 65535, 2**20], dtype=np.int32).repeat(16).reshape(8, 8)
    assert pixels(Image.fromarray(values))[..., 0].ravel().tolist() == [0] * 32 + [255] * 32


@pytest.mark.parametrize("data", [png.black(30_000, 30_000), png.black(8_001, 8_000)], ids=["900 MP", "64 MP"])
def test_a_bomb_is_refused_before_it_is_decoded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(BadInput, match="too large"):
        load(data)


def test_sizes_at_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 8 * 10)
    for picture, refusal in (((8, 10), None), ((10, 8), None), ((9, 9), "too large"), ((7, 10), "too small")):
        for source in (Image.new("RGB", picture), encoded(Image.new("RGB", picture))):
            if refusal is None:
                assert load(source).size == picture
            else:
                with pytest.raises(BadInput, match=refusal):
                    load(source)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    path.write_bytes(encoded(PICTURE))
    os.truncate(path, pictures.MAX_BYTES + 1)
    with pytest.raises(BadInput, match="larger than 256 MiB"):
        load(path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "locked.png"
    path.write_bytes(encoded(PICTURE))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(BadInput, match=r"cannot be read\n.*locked\.png\n.*Permission denied"):
        load(path)


def test_a_broken_picture_that_pillow_has_only_opened() -> None:
    data = encoded(PICTURE)
    with pytest.raises(BadInput, match="broken"):
        load(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_file_is_read_or_refused(format: str) -> None:
    """Whatever the damage, nothing but BadInput comes out."""
    random = np.random.default_rng(2)
    data = encoded(PICTURE, format)
    for _ in range(200):
        damaged = np.frombuffer(data, dtype=np.uint8).copy()
        damaged[random.integers(0, len(data), random.integers(1, 6))] = random.integers(0, 256)
        cut = int(random.integers(1, len(data) + 1)) if random.random() < 0.3 else len(data)
        with contextlib.suppress(BadInput):
            assert load(damaged[:cut].tobytes()).mode == "RGB"


# The size of an edit


@pytest.mark.parametrize("longer", [64, 512, 1024])
def test_working_size_is_the_published_formula(longer: int) -> None:
    for width, height in itertools.product((300, 333, 480, 512, 640, 777, 1000, 1080), repeat=2):
        if width >= height:
            wanted = longer, round(height * (longer / width) / 32) * 32
        else:
            wanted = round(width * (longer / height) / 32) * 32, longer
        assert working_size((width, height), longer) == wanted


@pytest.mark.parametrize(("shorter", "wanted"), [(6, 64), (10, 64), (14, 128), (18, 128), (22, 192), (64, 512)])
def test_halves_go_to_the_even_multiple(shorter: int, wanted: int) -> None:
    """1.5 → 2, 2.5 → 2, 3.5 → 4, 4.5 → 4, 5.5 → 6 times 32."""
    assert working_size((64, shorter), 512) == (512, wanted)
    assert working_size((shorter, 64), 512) == (wanted, 512)


@pytest.mark.parametrize("size", [(64, 2), (1000, 10), (9, 1000), (10_000, 8)])
def test_an_elongated_picture_is_refused_with_a_size_that_would_do(size: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="elongated") as refusal:
        working_size(size, 512)
    advised = int(re.findall(r"\d+", refusal.value.mend)[-1])
    assert min(working_size(size, -(-advised // 32) * 32)) == 32


# What goes out


def with_settings(text: str) -> Image.Image:
    picture = PICTURE.copy()
    picture.info[SETTINGS_KEY] = text
    return picture


def test_the_same_picture_gives_the_same_bytes() -> None:
    assert png_bytes(with_settings('{"seed": 1}')) == png_bytes(with_settings('{"seed": 1}'))
    assert png_bytes(with_settings('{"seed": 1}')) != png_bytes(with_settings('{"seed": 2}'))


@pytest.mark.parametrize(
    "prompt", ["a red ball", "日本語 🎈 שלום e\u0301", "two\nlines\ttab", '"quoted" \\ {}', "\x01\x7f", "long " * 3000]
)
@pytest.mark.parametrize("ascii", [True, False])
def test_settings_come_back(prompt: str, ascii: bool, tmp_path: Path) -> None:
    settings = {"prompt": prompt, "seed": 2**64 - 1, "guidance_scale": 3.5, "none": None}
    save_png(with_settings(json.dumps(settings, ensure_ascii=ascii)), tmp_path / "out.png")
    assert settings_of(tmp_path / "out.png") == settings
    assert load(tmp_path / "out.png").tobytes() == PICTURE.tobytes()


@pytest.mark.parametrize(
    "text", [None, "", "no JSON", "[1, 2]", "7", "[" * 100_000, '{"a":' * 50_000], ids=lambda text: str(text)[:10]
)
def test_a_picture_without_settings_is_told_so(text: str | None, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_itxt(SETTINGS_KEY, text)
    PICTURE.save(tmp_path / "foreign.png", pnginfo=info)
    with pytest.raises(BadInput, match="carries no settings"):
        settings_of(tmp_path / "foreign.png")


def test_saving_makes_folders_and_keeps_to_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "out.png"
    mask = os.umask(0o027)
    try:
        save_png(PICTURE, path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_bytes() == png_bytes(PICTURE)


@pytest.mark.parametrize("letter", ["a", "ü", "字", "🟥"])
def test_names_as_long_as_a_file_system_takes(letter: str, tmp_path: Path) -> None:
    path = tmp_path / (letter * (251 // len(letter.encode())) + ".png")
    save_png(PICTURE, path)
    assert content(path) == {path.name: png_bytes(PICTURE)}


@pytest.fixture(params=[None, b"what stood there before"], ids=["new", "replacing"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a picture shall be written: nothing is there, or a file."""
    path = tmp_path / "out.png"
    if request.param is not None:
        path.write_bytes(request.param)
    return path


def content(path: Path) -> dict[str, bytes]:
    """All files beside a path, temporary ones included."""
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "unipic.pictures.png_bytes"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_failing_save_leaves_everything_as_it_was(
    target: Path, where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    before = content(target)
    monkeypatch.setattr(where, fail)
    with pytest.raises(UnipicError if isinstance(error, OSError) else type(error)) as raised:
        save_png(PICTURE, target)
    assert content(target) == before
    if isinstance(error, OSError):
        assert str(raised.value).splitlines()[1] == f"{target}: No space left on device"


def test_a_full_disk_leaves_everything_as_it_was(target: Path) -> None:
    """A real write that stops midway: the process may not write files of more than 512 bytes."""
    script = (
        "import resource, sys; from PIL import Image; from unipic.pictures import save_png\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
        "save_png(Image.effect_noise((64, 64), 90).convert('RGB'), sys.argv[1])"
    )
    before = content(target)
    done = subprocess.run([sys.executable, "-c", script, str(target)], capture_output=True, text=True, timeout=60)
    assert "UnipicError: the picture cannot be written" in done.stderr
    assert content(target) == before
