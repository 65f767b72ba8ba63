"""What frozen models made of a sample, kept as long as nothing changes it: in memory, and on disk if asked.

Text is kept once for all samples that share it: T5's states take 2.6 MiB a prompt. A file is the SHA-256 of its rest,
32 bytes, and then safetensors: of one that was cut, or that the disk has changed, nothing is read.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

Made = tuple[Tensor, ...]
"""Of one sample, without a batch dimension"""
_DIGEST = hashlib.sha256().digest_size


class Cache:
    """limit: bytes of the CPU's memory; what was not used for longest leaves first. folder: on disk, if any.

    scope: what the results depend on beside the key, such as the hash of the model that makes them.
    """

    def __init__(self, limit: int, folder: Path | None = None, scope: str = "") -> None:
        self.limit, self.folder, self.scope, self.size = limit, folder, scope, 0
        self._memory: OrderedDict[str, Made] = OrderedDict()

    @property
    def keeps(self) -> bool:
        """Whether anything can be kept at all; if not, nobody needs to find keys."""
        return self.limit > 0 or self.folder is not None

    def get(
        self, keys: Sequence[str | None], make: Callable[[list[int]], Sequence[Made]], device: torch.device
    ) -> Made:
        """The results of a batch, stacked, on `device`. make: gives those at the indices that are not known.

        What has no key is never kept, and is made in one batch; so is everything where nothing can be kept. What has a
        key is made alone, also when several are missing: the last bits of a result depend on the size of the batch that
        it was made in, and must not depend on what was known by then (a resumed run begins with an empty memory). With
        caches and without, results therefore agree up to last bits; with caches of any two sizes, to the bit.
        """
        if not self.keeps:
            keys = [None] * len(keys)
        found = [self._find(key) for key in keys]
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key is not None}  # each is made once
        missing = [i for i, key in enumerate(keys) if found[i] is None and (key is None or first[key] == i)]
        fresh = [i for i in missing if keys[i] is None]
        for group in [*([i] for i in missing if keys[i] is not None), *([fresh] if fresh else [])]:
            for i, made in zip(group, make(group), strict=True):
                found[i] = made
                self._keep(keys[i], made)
        rows = [made if made is not None else found[first[key or ""]] for made, key in zip(found, keys, strict=True)]
        return tuple(
            torch.stack([t.to(device) for t in column]) for column in zip(*(r or () for r in rows), strict=True)
        )

    def _find(self, key: str | None) -> Made | None:
        if key is None:
            return None
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        if self.folder is None:
            return None
        try:
            stored = self._path(key).read_bytes()
        except OSError:  # not there
            return None
        if hashlib.sha256(stored[_DIGEST:]).digest() != stored[:_DIGEST]:  # cut or changed: made again
            return None
        tensors = load(stored[_DIGEST:])
        made = tuple(tensors[str(i)] for i in range(len(tensors)))
        self._remember(key, made)
        return made

    def _keep(self, key: str | None, made: Made) -> None:
        if key is None:
            return
        made = tuple(t.detach().cpu() for t in made)  # a GPU's memory is the models'
        self._remember(key, made)
        if self.folder is None:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{secrets.token_hex(8)}")  # its own also among processes of several machines
        try:
            content = save({str(i): t.contiguous() for i, t in enumerate(made)})
            aside.write_bytes(hashlib.sha256(content).digest() + content)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _remember(self, key: str, made: Made) -> None:
        self._memory[key] = made
        self.size += _bytes(made)
        while self.size > self.limit and self._memory:
            _, gone = self._memory.popitem(last=False)
            self.size -= _bytes(gone)

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(f"{self.scope}\0{key}".encode()).hexdigest()
        return (self.folder or Path()) / name[:2] / f"{name}.kept"


def _bytes(made: Made) -> int:
    return sum(t.numel() * t.itemsize for t in made)
