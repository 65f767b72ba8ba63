"""Checkpoints of a training run, which survive kill -9, a full disk and flipped bits.

A checkpoint is `step_00000120/`: safetensors files, `state.json`, and `manifest.json` with the size and
SHA-256 of every other file. It is written aside, forced to the disk, and only then renamed to its name, so it is there
whole or not at all; it is read only if every hash agrees. While a step is saved anew, the older form of it is called
`step_00000120.replaced`, and is as good as any.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from unipic.errors import BadInput, CheckpointSkipped, UnipicError
from unipic.files import sync_folder, write_file
from unipic.models.weights import file_sha256, read_header
from unipic.train.disk import CannotSave, json_bytes, locked, refusals
from unipic.train.lines import append_line, read_lines, truncate_after

__all__ = ["BrokenCheckpoint", "CannotSave", "Checkpoint", "CheckpointSkipped", "Checkpoints", "open_checkpoint"]
__all__ += ["append_line", "locked", "read_lines", "truncate_after"]  # all that a run needs to outlive a crash

FORMAT_VERSION = 1
_FOLDER = re.compile(r"step_(\d{8,})(\.replaced)?", re.ASCII)
_ASIDE = re.compile(r"\.(?:partial|removed)-.+-(\d{1,9})", re.ASCII)
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", re.ASCII)
_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_CODES |= {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"}
_CODES |= {torch.uint8: "U8", torch.bool: "BOOL"}


class BrokenCheckpoint(UnipicError):
    """A checkpoint that is damaged, incomplete, or of a newer version."""


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint: its tensors by file name, and its state."""

    step: int
    path: Path
    state: dict[str, Any]
    _names: tuple[str, ...] = field(repr=False)

    def names(self) -> tuple[str, ...]:
        return self._names

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU, bit for bit as saved. Raises BadInput for a name it does not have."""
        if name not in self._names:
            raise BadInput(f"the checkpoint holds no {name!r}", str(self.path), f"it holds {', '.join(self._names)}")
        path = self.path / f"{name}.safetensors"
        read_header(path)
        return load_file(path, backend="pread")  # a copy: a mapped file would be gone from under us when pruned


class Checkpoints:
    """A folder of a run's checkpoints, of which the last `keep` stay. One process at a time may save: see `locked`."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise BadInput("a run keeps at least one checkpoint", f"keep = {keep}", "give 1 or more")
        self.folder, self.keep = folder, keep
        self._skipped: set[Path] = set()  # they do not count as kept, and are not ours to delete

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint, after a CheckpointSkipped warning for each newer one that is broken.

        None if the run has none. Raises BrokenCheckpoint if it has some, all broken. Reads only.
        """
        newest: BrokenCheckpoint | None = None
        for path in reversed(self._published()):
            try:
                return open_checkpoint(path)
            except BrokenCheckpoint as error:
                newest = newest or error
                self._skipped.add(path)
                reason = f"{path.name} is skipped: {error.what} ({error.where})"
                warnings.warn(reason, CheckpointSkipped, stacklevel=2)
        if newest:
            what = f"no checkpoint of this run is intact; of the newest, {newest.what}"
            raise BrokenCheckpoint(what, newest.where, "restore it from a copy, or start anew in another folder")
        return None

    def named(self) -> str:
        """For a message: where the run can go on from."""
        ours = [path for path in self._published() if path not in self._skipped]
        return f"the last checkpoint is {ours[-1]}" if ours else "there is no checkpoint yet"

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write, publish, and only then delete what is older than the last `keep`.

        tensors: file name without suffix (`optimizer/transformer`) → name → tensor; tied ones are written each.
        state: what strict JSON holds; tuples come back as lists. Returns the checkpoint's folder.
        Raises BadInput for a state or name that could not be read back, CannotSave if the disk refuses.
        """
        text = json_bytes(state, "state", indent=1)
        for name in tensors:
            if not _NAME.fullmatch(name):
                raise BadInput("a checkpoint cannot have a file of this name", repr(name), "use letters, digits and /")
        final = self.folder / f"step_{step:08d}"
        partial = self._aside("partial", final)
        with refusals(self.folder, self.named):
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True)
                sync_folder(self.folder.parent)
            self._sweep()
            try:
                _write_checkpoint(partial, step, tensors, text)
                self._publish(partial, final)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            self._prune(final)
        return final

    def _published(self) -> list[Path]:
        """Oldest first; the replaced form of a step before the step."""
        if not self.folder.is_dir():
            return []
        found = [(_step(p), "." not in p.name, p) for p in self.folder.iterdir() if _FOLDER.fullmatch(p.name)]
        return [path for *_, path in sorted(found)]

    def _publish(self, partial: Path, final: Path) -> None:
        """A folder cannot be renamed over another; the old one keeps a name that `latest` knows."""
        if final in self._skipped:
            self._remove(final)
            self._skipped.discard(final)
        if _exists(final):
            self._remove(_replaced(final))
            os.rename(final, _replaced(final))
        os.rename(partial, final)
        sync_folder(self.folder)

    def _prune(self, new: Path) -> None:
        ours = [path for path in self._published() if path not in self._skipped]
        kept = {_step(new), *sorted({_step(path) for path in ours})[-self.keep :]}
        for path in ours:
            if _step(path) not in kept or path == _replaced(new):
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Out of sight at once, so that a kill while deleting leaves no half checkpoint."""
        if _exists(path):
            aside = self._aside("removed", path)
            os.rename(path, aside)
            _delete(aside)

    def _aside(self, what: str, path: Path) -> Path:
        return self.folder / f".{what}-{path.name}-{os.getpid()}"

    def _sweep(self) -> None:
        """What dead processes left half written or half deleted; our own number is a dead one's, in a container."""
        for path in self.folder.iterdir():
            match = _ASIDE.fullmatch(path.name)
            if match and (int(match[1]) == os.getpid() or not _alive(int(match[1]))):
                _delete(path)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's folder after all its files are hashed; raises BrokenCheckpoint, naming the file and why."""
    try:
        match = _FOLDER.fullmatch(path.name)
        if not match or path.is_symlink() or not path.is_dir():
            raise _broken("it is no folder of a checkpoint", path)
        manifest = _read_json(_regular(path, "manifest.json"))
        version, files = manifest.get("format_version"), manifest.get("files")
        if type(version) is not int or version < 1 or not isinstance(files, dict) or "state.json" not in files:
            raise _broken("it is no manifest of a checkpoint", path / "manifest.json")
        if version > FORMAT_VERSION:
            raise BrokenCheckpoint("a newer unipic wrote it", str(path / "manifest.json"), "update unipic")
        if manifest.get("step") != int(match[1]):
            raise _broken("the manifest is of another step", path / "manifest.json")
        for name, entry in files.items():
            _check_file(path, name, entry)
        state = _read_json(path / "state.json")
    except OSError as error:
        raise _broken(f"it cannot be read: {error.strerror}", path) from None
    names = sorted(name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors"))
    return Checkpoint(int(match[1]), path, state, tuple(names))


def _check_file(folder: Path, name: str, entry: Any) -> None:
    if not _NAME.fullmatch(name) or not isinstance(entry, dict):
        raise _broken(f"the manifest lists {name!r}, which is no file of a checkpoint", folder / "manifest.json")
    path = _regular(folder, name)
    if path.stat().st_size != entry.get("size"):
        raise _broken("the file has not the size that its manifest says", path)
    if file_sha256(path) != entry.get("sha256"):
        raise _broken("the file is not the one that its manifest names", path)


def _regular(folder: Path, name: str) -> Path:
    """A file that lies in the folder itself, behind no link."""
    path = folder / name
    if not _exists(path):
        raise _broken("a file is missing", path)
    if os.path.realpath(path) != os.path.join(os.path.realpath(folder), name) or not path.is_file():
        raise _broken("a link or a folder stands in place of a file", path)
    return path


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise _broken("the file is not JSON", path) from None
    if not isinstance(content, dict):
        raise _broken("the file is not a JSON object", path)
    return content


def _broken(what: str, where: Path) -> BrokenCheckpoint:
    return BrokenCheckpoint(what, str(where), "restore it from a copy, or use an older checkpoint")


def _write_checkpoint(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: bytes) -> None:
    """All files, then the manifest, then their folders: when this returns, all of it is on the disk."""
    folder.mkdir()
    written, folders = {}, {folder}
    for name, group in tensors.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        folders |= {parent for parent in path.parents if parent.is_relative_to(folder)}
        written[f"{name}.safetensors"] = write_file(path, _safetensors(group))
        read_header(path)  # a tensor that could not be read back is refused now
    written["state.json"] = write_file(folder / "state.json", [state])
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in written.items()}
    manifest = {"format_version": FORMAT_VERSION, "step": step, "files": files}
    write_file(folder / "manifest.json", [json_bytes(manifest, "manifest", indent=1)])
    for inner in sorted(folders, reverse=True):  # the innermost first
        sync_folder(inner)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file, piece by piece: one tensor at a time is copied to the CPU, and each is hashed as it goes.

    The library's writer refuses tied tensors, wants all of them on the CPU at once, and names no errno.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))  # largest first: all are aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in ordered:
        end = position + tensor.numel() * tensor.itemsize
        if tensor.dtype not in _CODES:
            raise BadInput(f"a checkpoint cannot hold {tensor.dtype}", name, "convert the tensor first")
        header[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _step(path: Path) -> int:
    return int(path.name.removesuffix(".replaced").removeprefix("step_"))


def _replaced(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced")


def _exists(path: Path) -> bool:
    """Also for a link to nowhere."""
    return os.path.lexists(path)


def _delete(path: Path) -> None:
    """What cannot be deleted now is out of the way, and is tried again at the next save."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
