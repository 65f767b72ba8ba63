"""Safetensors files, read with suspicion.

The library accepts files in which a key stands twice (the last one wins), names like `a.__class__`, NaN, and headers of
any size below 100 MB; a broken download or a hostile file should be named instead. The header is therefore read and
checked here first; the tensors are then mapped by the library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unipic.errors import BadModel

HEADER_LIMIT = 16 * 2**20  # bytes; the header of a model of 10,000 tensors takes about one million
_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_BITS |= {"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8}
METADATA = "__metadata__"
_NAME = re.compile(r"(?!__)\w+(\.(?!__)\w+)*", re.ASCII)


class Entry(NamedTuple):
    """One tensor of a file's header."""

    dtype: str
    shape: tuple[int, ...]

    def is_floating_point(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that a safetensors file says it holds; raises BadModel unless the whole header is sound."""

    def bad(what: str, mend: str = "download or save the file again") -> BadModel:
        return BadModel(what, str(path), mend)

    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise bad(f"the file is truncated: it has {size} bytes")
        (length,) = struct.unpack("<Q", start)
        if start[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
            raise bad("this is a pickle under a false name", "use the model's real .safetensors files")
        if length > HEADER_LIMIT:
            raise bad(f"its header claims {length:,} bytes; at most {HEADER_LIMIT:,} are read")
        if 8 + length > size:
            raise bad("the file is truncated within its header")
        raw = file.read(length)
    try:
        header = json.loads(
            raw.decode(), object_pairs_hook=lambda pairs: _unique(pairs, bad), parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise bad("its header is not JSON") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad("its metadata is not text")
    return _checked_entries(header, size - 8 - length, bad)


def read_metadata(path: Path) -> dict[str, str]:
    """The free texts beside the tensors of a sound file."""
    read_header(path)
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]], bad: Any) -> dict[str, Any]:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise bad(f"its header names {key!r} twice")
        seen.add(key)
    return dict(pairs)


def _checked_entries(header: dict[str, Any], data_size: int, bad: Any) -> dict[str, Entry]:
    """Names are plain; dtype, shape and byte range of each tensor agree; the ranges tile the data, without overlap."""
    entries, spans = {}, []
    for name, field in header.items():
        if not _NAME.fullmatch(name):
            raise bad(f"it names a tensor {name!r}, which no model has", "do not use this file")
        try:
            dtype, shape, (begin, end) = field["dtype"], tuple(field["shape"]), field["data_offsets"]
            numbers = (*shape, math.prod(filter(None, shape)), begin, end)
            sound = isinstance(dtype, str) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        except (KeyError, TypeError, ValueError):
            sound = False
        if (
            not sound
            or not isinstance(dtype, str)
            or dtype not in _BITS
            or (end - begin) * 8 != math.prod(shape) * _BITS[dtype]
        ):
            raise bad(f"the header's entry for {name!r} contradicts itself: {field}")
        entries[name] = Entry(dtype, shape)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise bad(f"the bytes of {name!r} {'overlap others' if begin < position else 'leave a gap'}")
        position = end
    if position != data_size:
        raise bad(f"the file is {'truncated' if position > data_size else 'longer than its header says'}")
    return entries


def read_tensors(paths: Iterable[Path], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a component's files, floating ones as `dtype`; a NaN or Inf, or a key in two files, is refused."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, tensor in _checked_tensors(path):
            if name in tensors:
                raise BadModel(
                    f"the tensor {name!r} is in two files", str(path), "remove the file that does not belong"
                )
            tensors[name] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    return tensors


def _checked_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    names = read_header(path)
    with safe_open(path, framework="pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            # The smallest and largest value carry any NaN or Inf, forty times faster than asking each element.
            ends = torch.aminmax(tensor.float() if tensor.itemsize == 1 else tensor) if tensor.numel() else ()
            if tensor.is_floating_point() and not all(end.isfinite() for end in ends):
                raise BadModel(f"the tensor {name!r} holds NaN or Inf", str(path), "this model is broken: get it anew")
            yield name, tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file. Tensors that share memory (tied weights) must be given once."""
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library makes files that only their owner may read


def check_tensors(found: Mapping[str, Tensor | Entry], expected: Mapping[str, Tensor], where: Path) -> None:
    """Refuse missing, unexpected and misshapen tensors, naming the first five."""
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise BadModel(
                f"{len(names)} {kind} tensors: {', '.join(names[:5])}{more}",
                str(where),
                "the weights do not belong to this config.json, or the download is incomplete",
            )
    for name, tensor in found.items():
        if tuple(tensor.shape) != tuple(expected[name].shape):
            raise BadModel(
                f"the tensor {name!r} has shape {list(tensor.shape)}, not {list(expected[name].shape)}",
                str(where),
                "the weights do not belong to this config.json",
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            what = f"the tensor {name!r} holds {tensor.dtype}, not {expected[name].dtype}"
            raise BadModel(what, str(where), "the weights do not belong to this config.json")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashCache:
    """SHA-256 of files, remembered by path, size and time of change: hashing 16 GB takes most of a minute."""

    def __init__(self, path: Path | None = None) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # never raises, unlike Path's
        self.path = path or home / "unipic" / "hashes.json"

    def sha256(self, path: Path) -> str:
        real = path.resolve()
        stat = real.stat()
        key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}"
        known = self._read()
        if key not in known:
            known[key] = file_sha256(real)
            stale = [k for k in known if k.startswith(f"{real}|") and k != key]
            self._write({k: v for k, v in known.items() if k not in stale})
        return known[key]

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_text())
            return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}
        except (OSError, ValueError):
            return {}

    def _write(self, known: Mapping[str, str]) -> None:
        """Best effort: a cache that cannot be written is only slow."""
        temporary = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known, indent=0))
            os.replace(temporary, self.path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
