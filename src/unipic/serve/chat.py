"""OpenAI's chat completions over HTTP: what a request may hold, what a completion and an error look like."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unipic.errors import BadInput
from unipic.pictures import load

MOST_PIXELS = 1 << 18  # of a picture; the world's have 12 thousand
MOST_PARTS = 256  # messages, and parts of a message
MOST_CHOICES = 8


class _Form(BaseModel):
    model_config = ConfigDict(strict=True)  # what it does not name is ignored


class TextPart(_Form):
    type: Literal["text"]
    text: str


class ImageURL(_Form):
    url: str


class ImagePart(_Form):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Form):
    role: str
    content: str | Annotated[list[Part], Field(max_length=MOST_PARTS, fail_fast=True)] | None = None


class JSONSchema(_Form):
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(_Form):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class Chat(_Form):
    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_PARTS, fail_fast=True)]
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    response_format: ResponseFormat | None = None

    def parts(self, *roles: str) -> list[TextPart | ImagePart]:
        """Of the messages of these roles."""
        said = [m.content for m in self.messages if m.role in roles and m.content is not None]
        return [part for c in said for part in ([TextPart(type="text", text=c)] if isinstance(c, str) else c)]


class Refused(Exception):
    """A request that is not served, in OpenAI's terms. param: the field at fault."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def parsed(body: bytes) -> Chat:
    """A request from JSON. Raises Refused."""
    try:
        chat = Chat.model_validate_json(body)
    except ValidationError as error:
        worst = max(error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"]))
        field = ".".join(str(step) for step in worst["loc"])
        raise Refused(f"{field or 'the body'}: {worst['msg']}", field or None) from None
    if chat.stream:
        raise Refused("answers are not streamed; leave out stream, or give false", "stream")
    return chat


def picture(url: str) -> Image.Image:
    """RGB. Raises Refused for all but data URLs of PNG, JPEG and WebP files."""
    head, _, data = url.partition(",")
    if head not in ("data:image/png;base64", "data:image/jpeg;base64", "data:image/webp;base64"):
        raise Refused("pictures are read from data:image/(png|jpeg|webp);base64 URLs only", "image_url")
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise Refused("the picture is not base64", "image_url") from None
    try:
        shown = load(content)
    except BadInput as error:
        raise Refused("; ".join(str(error).splitlines()), "image_url") from None
    if shown.width * shown.height > MOST_PIXELS:
        raise Refused(f"the picture has more than {MOST_PIXELS} pixels; scale it down", "image_url")
    return shown


def completion(call: int, model: str, asked: Sequence[str], choices: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """asked: the texts of the request. choices: index and content of each. Its usage counts words, for tokens."""
    words_in, words_out = (sum(len(text.split()) for text in texts) for texts in (asked, [c for _, c in choices]))
    return {
        "id": f"chatcmpl-{call}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
            for index, content in choices
        ],
        "usage": {"prompt_tokens": words_in, "completion_tokens": words_out, "total_tokens": words_in + words_out},
    }
