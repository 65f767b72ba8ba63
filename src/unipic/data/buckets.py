"""Aspect buckets: the paper's four ratios in both orientations, at any resolution; and pictures cut to them."""

from __future__ import annotations

import math
from itertools import product

from PIL import Image, ImageOps

from unipic.data.source import Size
from unipic.errors import BadInput

_RATIOS = ((1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9), (9, 16))
ASPECTS = {f"{w}:{h}": w / h for w, h in _RATIOS}
"""Width to height, by name."""
MULTIPLE = 32  # pixels; the VAE's 8, the transformer's patch of 2, and the language model's merged patches


def size_for(aspect: str, resolution: int, multiple: int = MULTIPLE) -> Size:
    """Width and height of a bucket: multiples of `multiple`, never more than resolution² pixels in all.

    Of the sizes next to the exact one it is the closest in aspect, so at low resolutions some buckets are alike.
    """
    if resolution < multiple:
        where = f"resolution {resolution}, sides in multiples of {multiple}"
        raise BadInput("the resolution is too low", where, f"give at least {multiple}")
    ratio = ASPECTS[aspect]
    exact = [resolution * math.sqrt(r) / multiple for r in (ratio, 1 / ratio)]
    around = [{max(1, math.floor(side)), math.ceil(side)} for side in exact]
    fitting = [(w, h) for w, h in product(*around) if w * h * multiple**2 <= resolution**2]
    width, height = min(fitting, key=lambda size: (abs(math.log(size[0] / size[1] / ratio)), -size[0] * size[1]))
    return width * multiple, height * multiple


def nearest(width: int, height: int) -> str:
    """The name of the aspect closest to a picture's, as a ratio."""
    return min(ASPECTS, key=lambda name: abs(math.log(width / height / ASPECTS[name])))


def kept(size: Size, target: Size) -> float:
    """The share of a picture's area that `fit` leaves of it."""
    stretch = size[0] / size[1] * target[1] / target[0]
    return min(stretch, 1 / stretch)


def fit(picture: Image.Image, size: Size) -> Image.Image:
    """The picture's middle in the aspect of `size`, scaled to it (up, too) with Lanczos' filter."""
    return picture if picture.size == size else ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
