"""What goes over the wire between a remote reward and its server: JSON and PNG files, as multipart/form-data.

    request   a part `request`, JSON: {"samples": [{"text": "…", "picture": 0, "source": null, "spec": null}, …]},
              then parts `picture`, image files; `picture` and `source` count them from 0. spec: see `specs`
    reply     JSON: {"scores": [0.5, null, …]}, one a sample in their order; null where it cannot be had
    error     JSON: {"error": {"message": "…", "code": null}}. Status 429: there is no room now. Code try_later: the
              reward waits for something, such as a judge. After either the same request is sent again, later

Pictures are PNGs that hold their pixels uncompressed: on a CPU, deflating a picture takes longer than sending it.
"""

from __future__ import annotations

import json
import re
import secrets
import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

from PIL.Image import Image
from pydantic import Field, TypeAdapter, ValidationError

from unipic.config import Strict
from unipic.errors import BadInput
from unipic.pictures import load, to_rgb
from unipic.rewards import specs
from unipic.rewards.reward import Sample

MOST_BODY = 64_000_000  # bytes of a request
MOST_PIXELS = 1 << 25  # of a request's pictures
MOST_SAMPLES = 64  # in a request
MOST_REPLY = 100_000  # bytes
LONGEST_HEAD = 1000  # bytes, of a part
BLOCK = 65_535  # bytes, the most that deflate stores in one
KEPT = 31 << 20  # bytes
BUSY = 429  # status
TRY_LATER = "try_later"  # code
_BOUNDARY = re.compile(r'multipart/form-data; ?boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?', re.IGNORECASE)
_NAME = re.compile(rb'content-disposition: ?form-data; ?name="?(\w{1,20})"?(?:;|\r\n|$)', re.IGNORECASE)


class _Sample(Strict):
    text: str
    picture: Annotated[int, Field(ge=0)]
    source: Annotated[int, Field(ge=0)] | None = None
    spec: dict[str, Any] | None = None


class _Request(Strict):
    samples: Annotated[tuple[_Sample, ...], Field(min_length=1, max_length=MOST_SAMPLES)]


class _Reply(Strict):
    scores: tuple[float | None, ...]


_REQUEST, _REPLY = TypeAdapter(_Request), TypeAdapter(_Reply)


# --- requests ---------------------------------------------------------------------------------------------------------


def request(samples: Sequence[Sample]) -> tuple[str, bytes]:
    """Content type and body. A picture that several samples share is sent once. Raises BadInput for a spec."""
    shown: dict[int, Image] = {}
    for sample in samples:
        shown |= {id(p): p for p in (sample.picture, sample.source) if p is not None}
    number = {key: i for i, key in enumerate(shown)}
    said = [
        {
            "text": s.text,
            "picture": number[id(s.picture)],
            "source": None if s.source is None else number[id(s.source)],
            "spec": specs.told(s.spec),
        }
        for s in samples
    ]
    boundary = f"{secrets.randbits(64):064b}"  # long, of few letters: soon searched for
    pieces: list[bytes | memoryview] = [
        _part(boundary, 'name="request"', "application/json"),
        json.dumps({"samples": said}).encode(),
    ]
    for i, picture in enumerate(shown.values()):
        pieces += [_part(boundary, f'name="picture"; filename="{i}.png"', "image/png"), *_png(picture)]
    pieces.append(f"\r\n--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(pieces)


def _part(boundary: str, disposition: str, kind: str) -> bytes:
    head = f"\r\n--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\nContent-Type: {kind}\r\n\r\n"
    return head.encode()


def _png(picture: Image) -> list[bytes | memoryview]:
    """The pieces of a PNG file of its pixels, and of nothing else that it carries."""
    picture = picture if picture.mode == "RGB" else to_rgb(picture)
    width, height = picture.size
    # Pillow ends each row with a zero: before the next one it says that that is unfiltered
    rows = memoryview(picture.tobytes("raw", "RGB", 3 * width + 1))[:-1]
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = _stored([memoryview(b"\0"), rows])
    return [b"\x89PNG\r\n\x1a\n", *_chunk(b"IHDR", [header]), *_chunk(b"IDAT", data), *_chunk(b"IEND", [])]


def _stored(data: Sequence[memoryview]) -> list[bytes | memoryview]:
    """As a zlib stream of blocks that are not compressed (RFC 1950, 1951); the last one is empty."""
    blocks = [piece[start : start + BLOCK] for piece in data for start in range(0, len(piece), BLOCK)]
    pieces: list[bytes | memoryview] = [b"\x78\x01"]
    check = 1
    for block in (*blocks, memoryview(b"")):
        check = zlib.adler32(block, check)
        pieces += [struct.pack("<BHH", not block, len(block), len(block) ^ 0xFFFF), block]
    return [*pieces, struct.pack(">I", check)]


def _chunk(name: bytes, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    check = zlib.crc32(name)
    for piece in pieces:
        check = zlib.crc32(piece, check)
    return [struct.pack(">I", sum(map(len, pieces))), name, *pieces, struct.pack(">I", check)]


def samples(content_type: str, body: bytes) -> list[Sample]:
    """Of a request, whoever wrote it. Raises BadInput."""
    (name, head), *others = _parts(content_type, body)
    if name != "request" or any(other != "picture" for other, _ in others):
        raise BadInput("the parts are others than wanted", "the form", "give `request`, then each `picture`")
    try:
        asked = _REQUEST.validate_json(head)
    except ValidationError as error:
        worst = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, worst["loc"])) or "the part"
        raise BadInput("the part `request` is not as wanted", f"{where}: {worst['msg']}", "correct it") from None
    shown: list[Image] = []
    for _, content in others:
        shown.append(load(content))
        if sum(p.width * p.height for p in shown) > MOST_PIXELS:
            raise BadInput(f"the pictures have more than {MOST_PIXELS} pixels", "the form", "send fewer at once")
    for number in (n for s in asked.samples for n in (s.picture, s.source) if n is not None):
        if number >= len(shown):
            raise BadInput(f"there is no picture {number}", "the part `request`", f"{len(shown)} came, from 0")
    return [
        Sample(
            s.text,
            shown[s.picture],
            None if s.source is None else shown[s.source],
            None if s.spec is None else specs.read(s.spec),
        )
        for s in asked.samples
    ]


def _parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Name and content of each part of a form."""
    boundary = _BOUNDARY.fullmatch(content_type.strip())
    if boundary is None:
        raise BadInput("this is no form", f"Content-Type: {content_type}", "send multipart/form-data")
    edge = b"\r\n--" + boundary[1].encode()
    at = 0 if body.startswith(edge) else -2  # the first line break may be missing
    found: list[tuple[str, bytes]] = []
    whole = body.startswith(edge[-at:])
    at += len(edge)
    while whole and body.startswith(b"\r\n", at) and len(found) <= 2 * MOST_SAMPLES + 1:
        blank = body.find(b"\r\n\r\n", at, at + LONGEST_HEAD)
        end = body.find(edge, blank + 2) if blank >= 0 else -1
        name = _NAME.search(body[at : max(blank, at)])
        if end < 0 or name is None:
            raise BadInput("a part of the form is cut, or has no name", f"part {len(found)}", "give name=… to each")
        found.append((name[1].decode(), body[blank + 4 : end]))
        at = end + len(edge)
    if not found or body[at:] not in (b"--", b"--\r\n"):
        raise BadInput("the form is broken", "multipart/form-data", "send it whole, and nothing around it")
    return found


# --- replies ----------------------------------------------------------------------------------------------------------


def reply(scores: Sequence[float | None]) -> bytes:
    """scores: finite."""
    return json.dumps({"scores": list(scores)}, allow_nan=False).encode()


def scores(content: bytes, count: int) -> list[float | None]:
    """Of a reply to `count` samples. Raises ValueError for anything else: a score is never made up."""
    try:
        found = _REPLY.validate_json(content).scores
    except ValidationError as error:
        raise ValueError(f"its reply is not as wanted: {error.errors(include_url=False)[0]['msg']}") from None
    if len(found) != count:
        raise ValueError(f"it sent {len(found)} scores for {count} samples")
    return list(found)


# --- keys -------------------------------------------------------------------------------------------------------------


def checked_key(key: str, where: str) -> str:
    """Without what surrounds it. Raises BadInput, which does not show it, for what no header can carry."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise BadInput("what is given is no key", where, "set it anew: ASCII letters, digits and signs, no blanks")
    return key


# --- memory -----------------------------------------------------------------------------------------------------------


def keep_memory() -> None:
    """Let the process keep what pictures leave behind, for the next ones.

    glibc gives large blocks back to the system at once, and to get them anew page by page takes as long as all else
    that is done with a picture; but it keeps blocks up to the size of the largest that it has given back.
    """
    bytes(KEPT)
