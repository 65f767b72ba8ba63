"""YAML text → plain values (maps, lists, texts, numbers, true, false, null), and back.

Read as YAML 1.2 has it: `1e-4` is a number, `no` and `on` are texts, `010` is ten. Only its plain part is read: no tags
but those of plain values, no anchors and aliases, no key twice, no more than a recipe could hold. Keys are texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from unipic.errors import BadInput

MAX_BYTES, MAX_NODES, MAX_DEPTH = 2**20, 10_000, 32

_CORE = "tag:yaml.org,2002:"
_NUMBER = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {  # unquoted text is the first that matches
    _CORE + "null": (re.compile(r"(~|null|Null|NULL|)\Z"), lambda _: None),
    _CORE + "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), lambda text: text.lower() == "true"),
    _CORE + "int": (
        re.compile(r"([-+]?[0-9]+|0o[0-7]{1,16}|0x[0-9a-fA-F]{1,16})\Z"),
        lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    ),
    _CORE + "float": (
        re.compile(rf"({_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"),
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
}
_UNQUOTED = {None: [(tag, pattern) for tag, (pattern, _) in _SCALARS.items()]}  # None: whatever the first letter
_SCALARS[_CORE + "str"] = (re.compile(r"[^\ud800-\udfff]*\Z"), str)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _UNQUOTED
    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):  # an alias has its anchor's name
            raise _problem("anchors and aliases are not read", event, "write the value out, or share it with base:")
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH:
            mend = f"keep to {MAX_NODES:,} values, {MAX_DEPTH} levels deep"
            raise _problem("this is more than a recipe holds", event, mend)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _UNQUOTED

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def one_line_if_flat(self, items: list[Any]) -> yaml.Node:
        flat = not any(isinstance(item, dict | list) for item in items)
        return self.represent_sequence(_CORE + "seq", items, flow_style=flat)

    def exact(self, number: float) -> yaml.Node:
        return self.represent_scalar(_CORE + "float", repr(number))

    def escaped_if_odd(self, text: str) -> yaml.Node:
        return self.represent_scalar(_CORE + "str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.escaped_if_odd)
_Dumper.add_representer(list, _Dumper.one_line_if_flat)
_Dumper.add_representer(float, _Dumper.exact)


def write(value: Any) -> str:
    """The YAML of a plain value, in its own order. Floats are finite; reading it again gives the same value."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")))


def read(text: str, where: str) -> Any:
    """The value of a YAML text; None if it is empty. Raises BadInput with the line and column."""
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _value(node)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n"), len(before) - before.rfind("\n") - 1
        what, mend = f"there is a character that is not text: {chr(error.character)!a}", "remove it"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        what, mend = error.problem or "", error.note or ""
        if not mend:  # the library's own complaint
            what = f"this is not YAML: {what.removeprefix('but ')}"
            tabs = re.match(r"\s*\t", text.split("\n")[min(line, text.count("\n"))])
            mend = "indent with spaces, not with tabs" if tabs else "correct it (a text with signs in it needs quotes)"
    raise BadInput(what, f"{where}: line {line + 1}, column {column + 1}", mend)


def read_file(path: Path, where: str) -> dict[str, Any]:
    """A file that holds a map. Raises BadInput, which calls the file `where`."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadInput(f"the file cannot be read: {error.strerror}", where, "give a file that you may read") from None
    if len(data) > MAX_BYTES:
        raise BadInput(f"the file is larger than {MAX_BYTES // 2**20} MiB", where, "this is no recipe")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput("the file is not UTF-8", f"{where}: line {line}", "save it as UTF-8") from None
    content = read(text, where)
    if not isinstance(content, dict):
        what = "the file is empty" if content is None else f"a map of keys is wanted, the file is {shown(content)}"
        raise BadInput(what, where, "write lines of key: value")
    return content


def shown(value: object) -> str:
    """A value, as a message calls it."""
    if isinstance(value, dict | list):
        return "a map" if isinstance(value, dict) else "a list"
    return f"the text {value!r}" if isinstance(value, str) else json.dumps(value)


def is_number(text: str) -> bool:
    """Whether a text would be a number without its quotes."""
    return any(_SCALARS[_CORE + kind][0].match(text) for kind in ("int", "float"))


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
        return _mapping(node)
    if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
        return [_value(item) for item in node.value]
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
        raise _problem(f"the tag {node.tag.replace(_CORE, '!!')} is not read", node, "write plain YAML, without tags")
    pattern, make = _SCALARS[node.tag]
    with suppress(ValueError):  # thousands of digits
        if pattern.match(node.value):
            return make(node.value)
    raise _problem(f"{node.value!r} is no {node.tag.removeprefix(_CORE)}", node, "correct it")


def _mapping(node: yaml.MappingNode) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in _SCALARS:
            raise _problem("a key is not plain text", key, "write key: value")
        if key.value in content:
            raise _problem(f'the key "{key.value}" stands there twice', key, "remove one of them")
        content[key.value] = _value(value)
    return content


def _problem(what: str, at: Any, mend: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=at.start_mark, note=mend)
