"""UniPic 2.0: one model that generates, edits and understands pictures.

from unipic import UniPic
pictures = UniPic.from_pretrained("tiny").generate("a red circle")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unipic.errors import BadInput, BadModel, UnipicError

if TYPE_CHECKING:
    from unipic.pictures import save_png
    from unipic.system import UniPic
    from unipic.types import Request

__all__ = ["BadInput", "BadModel", "Request", "UniPic", "UnipicError", "__version__", "save_png"]
__version__ = "0.1.0"

_HOMES = {"UniPic": "unipic.system", "Request": "unipic.types", "save_png": "unipic.pictures"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes seconds, `unipic --help` should not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'unipic' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
