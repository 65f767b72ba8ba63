"""How options are declared, and those that many commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, show_default=more.pop("show_default", True), **more)


Json = Annotated[bool, option("print JSON", "--json")]
