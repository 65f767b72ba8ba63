"""What a judge's reply says, read strictly: marks that are numbers from 0 to 10, as many as asked for, or nothing; and
the words that ask for it.

A reply in another order, or within a Markdown fence, says the same and is taken. All else that is not as asked is a
`BadReply`: HTML, half a JSON, "9.5/10", NaN, 11 of 10, a mark or a choice too few, no choice at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unipic.rewards.judge_templates import REASONS

_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n[ \t]*```\s*", re.DOTALL)


class BadReply(Exception):
    """The judge answered, but not as it was asked to; it may do better when asked again."""


class Declined(Exception):
    """The judge will not judge this sample, however often it is asked."""


@dataclass(frozen=True)
class Verdict:
    """marks: by name, 0 to 10; None where the judge says that it cannot tell."""

    marks: dict[str, float | None]
    reasons: str


@dataclass(frozen=True)
class Usage:
    """Tokens that a call has used."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Completion:
    """A reply's choices, as it has them; usage: None if it does not say."""

    choices: Sequence[Any]
    usage: Usage | None

    def verdicts(self, marks: Iterable[str], n: int) -> list[Verdict]:
        """Of all n choices, in their order. Raises BadReply, Declined."""
        if len(self.choices) != n:
            raise BadReply(f"{len(self.choices)} choices of {n}")
        if not all(isinstance(choice, dict) for choice in self.choices):
            raise BadReply("a choice is no object")
        places = [choice.get("index") for choice in self.choices]
        if sorted(place for place in places if type(place) is int) != list(range(n)):
            raise BadReply("the choices are not numbered")
        ordered = sorted(self.choices, key=lambda choice: int(choice["index"]))
        return [verdict_of(_content(choice), marks) for choice in ordered]


def completion_of(body: bytes) -> Completion:
    """A reply's frame. Raises BadReply."""
    reply = _strict_json(body)
    if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
        raise BadReply("the reply is no completion")
    return Completion(reply["choices"], _usage(reply.get("usage")))


def form_in_words(marks: Mapping[str, str]) -> str:
    """What the schema of an answer says. Many servers hold a judge to the schema without showing it, or ignore it."""
    lines = [f'"{REASONS}": a text, one or two short sentences']
    lines += [f'"{name}": a number, 0 to 10. {means}' for name, means in marks.items()]
    return "\n".join(["Answer with one JSON object and nothing else, with exactly these keys, in this order.", *lines])


def verdict_of(content: str, marks: Iterable[str]) -> Verdict:
    """What a choice says. Raises BadReply."""
    fenced = _FENCE.fullmatch(content)
    said = _strict_json(fenced[1] if fenced else content)
    if not isinstance(said, dict) or said.keys() != {REASONS, *marks}:
        raise BadReply("the answer has not the properties that were asked for")
    reasons = said[REASONS]
    if not isinstance(reasons, str):
        raise BadReply("the reasons are no text")
    return Verdict({name: _mark(said[name]) for name in marks}, reasons)


def _content(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadReply("a choice has no message")
    if message.get("refusal") or choice.get("finish_reason") == "content_filter":
        raise Declined("the judge refuses to judge this")
    content = message.get("content")
    if not isinstance(content, str):
        raise BadReply("a message has no text")
    return content


def _mark(value: Any) -> float | None:
    """A number from 0 to 10; texts, true and false are none. null is the judge's own word that it cannot tell."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= 10:  # nor is NaN, or infinity, which 1e999 is read as
        raise BadReply("a mark is no number from 0 to 10")
    return float(value)


def _usage(said: Any) -> Usage | None:
    if not isinstance(said, dict):
        return None
    prompt, completion = said.get("prompt_tokens"), said.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int or not (0 <= prompt < 2**53 and 0 <= completion < 2**53):
        return None
    return Usage(prompt, completion)


def _strict_json(text: str | bytes) -> Any:
    """JSON without NaN, without a key that comes twice."""
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadReply("this is not JSON") from None


def _no_number(name: str) -> float:
    raise ValueError(name)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found
