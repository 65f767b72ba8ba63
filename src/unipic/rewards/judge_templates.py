"""What a judge is asked, and the form of its answer: templates for edits and for text-to-image, ours or a user's.

A file of one's own has the form of judge_templates.yaml, beside this one.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Annotated, Any

from PIL.Image import Image
from pydantic import Field, model_validator

from unipic.config import Strict, resolve
from unipic.config.text import read_file
from unipic.rewards.reward import Sample

STANDARD = "standard"
REASONS = "reasons"
_PLACES = re.compile(r"\{(text|source|picture)\}")


class Template(Strict):
    """system, user: what is said; in `user`, {text}, {source} and {picture} stand for what a sample has.

    marks: what the judge gives, 0 to 10, by name, each with its meaning. It also gives reasons, before the marks.
    """

    system: str
    user: str
    marks: Annotated[dict[Annotated[str, Field(pattern="^[a-z][a-z_]*$")], str], Field(min_length=1)]

    @model_validator(mode="after")
    def reasons_are_no_mark(self) -> Template:
        if REASONS in self.marks:
            raise ValueError(f'"{REASONS}" is given beside the marks; call this mark something else')
        return self

    def places(self) -> list[str]:
        return _PLACES.findall(self.user)

    def form(self) -> dict[str, Any]:
        """Of the answer, as JSON Schema in the strict form: every property is required, and there are no others."""
        marks = {name: {"type": "number", "description": f"0 to 10. {means}"} for name, means in self.marks.items()}
        properties = {REASONS: {"type": "string", "description": "one or two short sentences"}, **marks}
        return {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": False,
        }

    def messages(self, sample: Sample, detail: str) -> list[dict[str, Any]]:
        """For a chat endpoint. Pictures travel as PNG within the message; detail: how closely the judge looks."""
        parts: list[dict[str, Any]] = []
        said = ""
        for i, piece in enumerate(_PLACES.split(self.user)):
            if i % 2 and piece != "text":
                picture = sample.picture if piece == "picture" else sample.source
                parts += [{"type": "text", "text": said}] if said.strip() else []
                parts.append({"type": "image_url", "image_url": {"url": data_url(picture), "detail": detail}})
                said = ""
            else:
                said += sample.text.encode(errors="replace").decode() if i % 2 else piece  # lone surrogates
        parts += [{"type": "text", "text": said}] if said.strip() else []
        return [{"role": "system", "content": self.system}, {"role": "user", "content": parts}]


class Templates(Strict):
    """By what is judged; a sample of a task that has no template has no score."""

    edit: Template | None = None
    generate: Template | None = None

    @model_validator(mode="after")
    def each_place_stands_once(self) -> Templates:
        if self.edit is None and self.generate is None:
            raise ValueError("there is no template; give edit, generate, or both")
        for name, template, wanted in (
            ("edit", self.edit, ["picture", "source", "text"]),
            ("generate", self.generate, ["picture", "text"]),
        ):
            if template is not None and sorted(template.places()) != wanted:
                needed = ", ".join("{" + place + "}" for place in wanted)
                raise ValueError(f"{name}.user needs {needed}, each once")
        return self

    def of(self, sample: Sample) -> Template | None:
        return self.generate if sample.source is None else self.edit

    def marks(self) -> dict[str, set[str]]:
        """The names of the marks of each task that has a template."""
        return {task: {*each.marks} for task, each in (("edit", self.edit), ("generate", self.generate)) if each}


def read_templates(name_or_path: str) -> Templates:
    """Our own ("standard"), or those of a .yaml file. Raises BadInput."""
    path = Path(__file__).with_suffix(".yaml") if name_or_path == STANDARD else Path(name_or_path).expanduser()
    where = f"template {name_or_path}"
    return resolve(Templates, read_file(path, where), where)


def data_url(picture: Image | None) -> str:
    """A picture as text: RGB, as PNG, without loss."""
    if picture is None:
        raise ValueError("an edit's template for a sample without a source")
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
