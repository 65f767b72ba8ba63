"""PNG files written by hand: the depths, chunks and sizes that Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6  # colour types
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, body: bytes, *, depth: int = 8, colour: int = GREY) -> bytes:
    """body: the chunks between the first, IHDR, and the last, IEND."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return _SIGNATURE + chunk(b"IHDR", header) + body + chunk(b"IEND")


def png16(values: np.ndarray, colour: int, before: bytes = b"") -> bytes:
    """16-bit values, H×W or H×W×channels. before: chunks that precede the pixels."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return png(width, height, before + chunk(b"IDAT", data), depth=16, colour=colour)


def black(width: int, height: int) -> bytes:
    """A black picture of any size: one compressed row, said again and again."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    row = deflate.compress(bytes(width + 1)) + deflate.flush(zlib.Z_FULL_FLUSH)
    adler = (((width + 1) * height % 65521) << 16) | 1  # of as many zeros
    data = b"\x78\xda" + row * height + b"\x03\0" + struct.pack(">I", adler)
    return png(width, height, chunk(b"IDAT", data))


def animation(frames: int, side: int = 16) -> bytes:
    """An APNG of black frames."""
    pixels = zlib.compress(bytes((side + 1) * side))

    def control(number: int) -> bytes:
        return chunk(b"fcTL", struct.pack(">5I2HBB", number, side, side, 0, 0, 1, 10, 0, 0))

    body = [chunk(b"acTL", struct.pack(">II", frames, 0)), control(0), chunk(b"IDAT", pixels)]
    for number in range(1, 2 * frames - 1, 2):
        body += [control(number), chunk(b"fdAT", struct.pack(">I", number + 1) + pixels)]
    return png(side, side, b"".join(body))


def with_zipped_text(expanded: int) -> bytes:
    """A small picture with a zTXt chunk that expands to so many bytes."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(expanded)))
    return png(16, 16, text + chunk(b"IDAT", zlib.compress(bytes(17 * 16))))
