"""A configuration as a file: written beside what it made, and compared when a run is taken up again."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from unipic.config import text
from unipic.config.strict import Key, dotted
from unipic.errors import BadInput, UnipicError
from unipic.files import sync_folder, write_whole

_ABSENT = object()


def dump(config: BaseModel) -> str:
    """YAML, in the order in which the keys are declared; read again, it gives an equal configuration."""
    return text.write(config.model_dump(mode="json"))


def save(config: BaseModel, path: Path) -> None:
    """Write `dump(config)`; the file appears whole or not at all, and survives a power cut. Raises UnipicError."""
    try:
        write_whole(path, dump(config).encode())
        sync_folder(path.parent)
    except OSError as error:
        what = "the configuration cannot be written"
        raise UnipicError(what, f"{path}: {error.strerror}", "choose another place") from None


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ between two plain mappings, or that only one of them has."""
    return [dotted(key) for key, _, _ in _differences(old, new)]


def check_same(old_path: Path, new: BaseModel, harmless: Collection[str] = ()) -> None:
    """Refuse to go on with a run under another configuration than the one saved at `old_path`.

    harmless: dotted keys that may differ, with all that is below them. Raises BadInput.
    """
    saved = text.read_file(old_path, str(old_path))
    with suppress(ValidationError):  # a setting that there was not yet had its default's effect
        saved = type(new).model_validate_json(json.dumps(saved)).model_dump(mode="json")
    for key, old, now in _differences(saved, new.model_dump(mode="json")):
        if not any(dotted(key[:length]) in harmless for length in range(1, len(key) + 1)):
            what = f"the run was started with {dotted(key)} {_shown(old)}, and now it is {_shown(now)}"
            raise BadInput(what, f"{old_path}: {dotted(key)}", "give another --run-dir, or set it back")


def _differences(old: Any, new: Any, key: Key = ()) -> Iterator[tuple[Key, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*new, *old]):
            yield from _differences(old.get(name, _ABSENT), new.get(name, _ABSENT), (*key, name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _differences(one, other, (*key, i))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield key, old, new


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
