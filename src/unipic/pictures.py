"""Pictures in and out: PNG, JPEG and WebP files become RGB; results become PNGs that carry their settings.

A picture that comes in is turned as its EXIF says, laid on white where it is transparent, and converted from palette,
grey, 16-bit or CMYK to 8-bit RGB. Its size is checked before a pixel is decoded. Animations are refused.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from unipic.errors import BadInput, UnipicError
from unipic.files import write_whole

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20
MIN_SIDE = 8
SETTINGS_KEY = "unipic"  # of the PNG's text chunk

PictureLike = str | os.PathLike[str] | bytes | Image.Image
"""A path, a file's bytes, or a picture."""


def as_list(pictures: PictureLike | Sequence[PictureLike]) -> list[PictureLike]:
    """One picture or several, as a list."""
    return [pictures] if isinstance(pictures, str | os.PathLike | bytes | Image.Image) else list(pictures)


def load(source: PictureLike) -> Image.Image:
    """An RGB picture from a path, a file's bytes, or a PIL picture. Raises BadInput for what is none."""
    if isinstance(source, Image.Image):
        _check_size(source, "the given picture")
        try:
            return to_rgb(source)
        except Exception as error:
            raise BadInput(
                "the picture is broken", f"the given picture: {error}", "save it anew from its source"
            ) from None
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), "the given bytes", len(source))
    path = checked_path(source)
    try:
        with path.open("rb") as file:
            return _decode(file, str(path), path.stat().st_size)
    except OSError as error:
        raise BadInput("the picture cannot be read", str(path), f"check the file ({error.strerror})") from None


def checked_path(source: str | os.PathLike[str]) -> Path:
    """The path of a regular file that exists."""
    path = Path(source)
    try:
        if path.is_dir():
            raise BadInput("a folder stands where a picture is needed", str(path), "give one of the files in it")
        if not path.exists():
            raise BadInput("there is no such picture", str(path), "check the path")
        if not path.is_file():
            raise BadInput("this is no regular file", str(path), "give a PNG, JPEG or WebP file")
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise BadInput("this is no path of a picture", str(path), f"check the path ({error})") from None
    return path


def _decode(file: Any, where: str, size: int) -> Image.Image:
    """Open, check, then decode. Pillow's decoders raise many kinds of exception for broken files."""
    if not 0 < size <= MAX_BYTES:
        why = "is empty" if size == 0 else f"is larger than {MAX_BYTES // 2**20} MiB"
        raise BadInput(f"the picture {why}", where, "give a PNG, JPEG or WebP file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own caps are stricter than Pillow's warnings
            with Image.open(file, formats=FORMATS) as picture:
                _check_size(picture, where)
                # A camera's multi-picture JPEG is one photograph and its previews: the first is taken.
                if picture.format != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:
                    raise BadInput(f"the picture is an animation of {frames} frames", where, "save one frame of it")
                picture.load()
                return to_rgb(picture)
    except UnipicError:
        raise
    except UnidentifiedImageError:
        raise BadInput("the file is not a PNG, JPEG or WebP picture", where, "convert it to one of these") from None
    except Image.DecompressionBombError:
        raise _too_large(where) from None
    except Exception as error:
        raise BadInput("the picture is broken", f"{where}: {error}", "save it anew from its source") from None


def _check_size(picture: Image.Image, where: str) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise _too_large(where)
    if min(width, height) < MIN_SIDE:
        raise BadInput(
            f"the picture is too small: {width}x{height} pixels", where, f"each side needs at least {MIN_SIDE} pixels"
        )


def _too_large(where: str) -> BadInput:
    return BadInput("the picture is too large", where, f"scale it down to at most {MAX_PIXELS // 10**6} million pixels")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Upright 8-bit RGB; transparency on white, 16-bit grey divided by 257.

    Of 16-bit colour Pillow keeps the high byte: at most one level off.
    """
    picture = ImageOps.exif_transpose(picture)  # a copy, turned or not
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        values = np.asarray(picture)
        grey = (values.clip(0, 65535) / 257).round().astype(np.uint8)
        missing = values == picture.info.get("transparency")
        picture = Image.fromarray(np.where(missing, np.uint8(255), grey))
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")


def working_size(size: tuple[int, int], longer_side: int, multiple: int = 32) -> tuple[int, int]:
    """Width and height of an edit: the longer side as asked, the other in proportion, to the nearest `multiple`.

    Rounds as the published scripts do (Python's round, halves to even).
    """
    width, height = size
    ratio = longer_side / max(width, height)
    shorter = round(min(width, height) * ratio / multiple) * multiple
    if shorter == 0:
        least = multiple * (max(size) // (2 * min(size)) + 1)
        raise BadInput(
            f"the picture is too elongated to edit at a longer side of {longer_side}",
            f"{width}x{height} pixels",
            f"crop it, or raise the image size to {least} or more",
        )
    return (longer_side, shorter) if width >= height else (shorter, longer_side)


def png_bytes(picture: Image.Image) -> bytes:
    """The PNG file of a picture, with its settings if it carries any. The same picture gives the same bytes."""
    text = PngImagePlugin.PngInfo()
    if settings := picture.info.get(SETTINGS_KEY):
        text.add_itxt(SETTINGS_KEY, settings)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()


def save_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Write a picture and its settings; the file appears whole or not at all."""
    try:
        write_whole(Path(path), png_bytes(picture))
    except OSError as error:
        raise UnipicError(
            "the picture cannot be written", f"{path}: {error.strerror}", "choose another place"
        ) from None


def check_replaceable(path: Path, inputs: Sequence[str]) -> None:
    """Refuse to write where a file stands that could not be made again: an input, anything but a PNG of ours."""
    try:
        if path.is_dir():
            raise BadInput("a folder stands where the picture should be written", str(path), "give a file name")
        if path.exists():
            if any(Path(i).exists() and path.samefile(i) for i in inputs):
                raise BadInput("the result would replace its own source", str(path), "give another --output")
            _check_ours(path)
        home = next(parent for parent in path.absolute().parents if parent.exists())
        if not home.is_dir() or not os.access(home, os.W_OK):
            raise BadInput("nothing can be written there", str(home), "give another --output")
    except (OSError, ValueError) as error:
        raise BadInput("this is no path to write to", str(path), f"give another --output ({error})") from None


def _check_ours(path: Path) -> None:
    try:
        settings_of(path)
    except BadInput:
        raise BadInput(
            "a file that unipic did not make stands there", str(path), "give another --output, or move that file"
        ) from None


def settings_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a PNG of ours carries. Raises BadInput if it has none."""
    path = checked_path(path)
    load(path)  # all checks of a picture that comes in
    with Image.open(path, formats=FORMATS) as picture:
        picture.load()
        text = picture.info.get(SETTINGS_KEY)
    try:
        settings = json.loads(text) if isinstance(text, str) else None
        json.dumps(settings, ensure_ascii=False).encode()  # no lone surrogates
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise BadInput("the picture carries no settings of unipic", str(path), "only PNGs that unipic wrote have them")
    return settings
