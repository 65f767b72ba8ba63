"""The world as files: pictures beside a metadata.jsonl, which training reads back, and WebDataset tars of the same.

Even samples are for generation (picture, prompt, dense description, questions), odd ones are edits (source,
instruction, target). Every line carries the scenes, so that nothing about a picture need be guessed, and says which
held-out combination its text or its edit is about (`novelty`; that of a scene may be another).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unipic.errors import BadInput, UnipicError
from unipic.pictures import png_bytes
from unipic.world import edits, language, scene
from unipic.world.questions import questions
from unipic.world.render import render

Pictures = dict[str, bytes]  # PNG files, by the key of a line that names them


def export(folder: Path, count: int, *, seed: int = 0, split: str = "train", shard_size: int = 1000) -> dict[str, int]:
    """Write a new folder; it appears whole or not at all. Returns how much of what it holds.

    shard_size: samples in each tar of `shards/`; 0 makes none. The same arguments give the same bytes.
    """
    folder = folder.resolve()  # "new/.." is what stands there, not a folder to make
    if folder.exists():
        raise BadInput("something stands where the folder should be made", str(folder), "give another name")
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        (aside / "pictures").mkdir(parents=True)
        shards = _write(aside, count, seed, split, shard_size)
        os.replace(aside, folder)
    except OSError as error:
        raise UnipicError(
            "the folder cannot be written", f"{folder}: {error.strerror}", "choose another place"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {"samples": count, "shards": shards}


def _write(folder: Path, count: int, seed: int, split: str, shard_size: int) -> int:
    """Returns the number of shards."""
    tar: tarfile.TarFile | None = None
    with open(folder / "metadata.jsonl", "w") as metadata:
        for i, (line, pictures) in enumerate(samples(count, seed, split)):
            metadata.write(json.dumps(line) + "\n")
            for role, png in pictures.items():
                (folder / line[role]).write_bytes(png)
            if shard_size and i % shard_size == 0:
                if tar:
                    tar.close()
                (folder / "shards").mkdir(exist_ok=True)
                tar = tarfile.open(folder / "shards" / f"{split}-{i // shard_size:06d}.tar", "w")  # noqa: SIM115
            if tar:
                _add(tar, line, pictures)
    if tar:
        tar.close()
    return -(-count // shard_size) if shard_size else 0


def samples(count: int, seed: int, split: str) -> Iterator[tuple[dict[str, Any], Pictures]]:
    """Lines of metadata.jsonl, and the pictures that they name."""
    for i in range(count):
        yield (_edit if i % 2 else _generate)(seed + i // 2, split, f"{split}-{seed + i // 2:08d}")


def _generate(seed: int, split: str, name: str) -> tuple[dict[str, Any], Pictures]:
    shown = scene.sample(seed, split)
    rng = np.random.default_rng([scene.SPLITS.index(split), seed, 1])
    prompt, dense = language.prompts(shown, rng), language.dense(shown, rng)
    line = {
        "id": name,
        "image": f"pictures/{name}.png",
        "text": prompt.text,
        "novelty": prompt.novelty,
        "geneval": prompt.metadata(),
        "dense": dense.text,
        "dense_questions": [
            {"id": q.id, "question": q.text, "dependencies": q.dependencies, "category": q.category}
            for q in dense.questions
        ],
        "caption": language.caption(shown),
        "questions": [asdict(qa) for qa in questions(shown, rng)],
        "scene": _told(shown),
    }
    return line, {"image": png_bytes(render(shown))}


def _edit(seed: int, split: str, name: str) -> tuple[dict[str, Any], Pictures]:
    edit = edits.sample(seed, split)
    line = {
        "id": f"{name}-edit",
        "source": f"pictures/{name}-source.png",
        "instruction": edit.instruction,
        "target": f"pictures/{name}-target.png",
        "type": edit.type,
        "novelty": edit.novelty,
        "free": edit.free,
        "regions": edit.regions,
        "scenes": {"source": _told(edit.source), "target": _told(edit.target)},
    }
    return line, {"source": png_bytes(render(edit.source)), "target": png_bytes(render(edit.target))}


def _told(shown: scene.Scene) -> dict[str, Any]:
    return asdict(shown) | {"novelty": shown.novelty}


def _add(tar: tarfile.TarFile, line: dict[str, Any], pictures: Pictures) -> None:
    """WebDataset's form: members of one sample share what stands before the first dot. No times, no owners."""
    parts = {"png" if role == "image" else f"{role}.png": png for role, png in pictures.items()}
    parts["json"] = json.dumps(line).encode()
    for suffix, data in parts.items():
        member = tarfile.TarInfo(f"{line['id']}.{suffix}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
