"""Converts YAML text to plain values safely: the core schema of YAML 1.2, with limits on size and nesting.

Differences from PyYAML's `safe_load`: `1e-3` is a number; only true and false are booleans, so `on` and `no` are text;
`010` is ten; dates are text; duplicate keys are an error; there are no merge keys (`<<`) and no tags beyond the core
schema.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.resolver import BaseResolver

MAX_BYTES = 1 << 20
MAX_NESTING = 32
MAX_ALIASES = 100
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TRUTH = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")


class YamlError(ValueError):
    """The text cannot be read. The message says what is wrong and, if known, in which line."""


class _Resolver(BaseResolver):
    """Decides which plain scalars are numbers, booleans or null. The first pattern that matches a whole scalar wins."""


def _resolved_as(kind: str, *patterns: re.Pattern[str]) -> None:
    whole = re.compile("|".join(f"(?:{pattern.pattern})\\Z" for pattern in patterns))
    _Resolver.add_implicit_resolver(f"{_TAG}{kind}", whole, None)


_resolved_as("null", _NULL)
_resolved_as("bool", _TRUTH)
_resolved_as("int", _INTEGER)
_resolved_as("float", _DECIMAL, _SPECIAL)


class _Reader(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, _Resolver):
    """PyYAML's loader without its constructors, which checks the limits while it reads."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        _Resolver.__init__(self)
        self._depth = 0
        self._aliases = 0
        self._nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES:
                raise YamlError(f"has more than {MAX_ALIASES} aliases (*name), write the values out")
        if self._depth >= MAX_NESTING and self.check_event(yaml.CollectionStartEvent):
            place = _line(self.peek_event().start_mark)  # type: ignore[no-untyped-call]
            raise YamlError(f"is nested more than {MAX_NESTING} levels deep ({place})")
        self._depth += 1
        self._nodes += 1
        if self._nodes > MAX_VALUES:
            raise YamlError(f"has more than {MAX_VALUES:,} values")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def read_yaml(text: str) -> Any:
    """Return the value of the single document in the text; None if it is empty.

    Raises:
        YamlError: The text is not YAML, uses a feature that is not allowed here, or exceeds a limit.
    """
    try:
        root = _Reader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        place = f" ({_line(error.problem_mark)})" if error.problem_mark is not None else ""
        raise YamlError(f"is not YAML: {error.problem or error.context}{place}") from None
    except yaml.YAMLError as error:
        raise YamlError(f"is not YAML: {str(error).splitlines()[0]}") from None
    return None if root is None else _Values().of(root)


class _Values:
    """Converts nodes to values and counts them: an alias counts as many values as its target."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[Node] = []

    def of(self, node: Node) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlError(f"has more than {MAX_VALUES:,} values once its aliases are written out")
        if node in self._open:
            raise YamlError(f"contains a value that contains itself through an alias ({_line(node.start_mark)})")
        if isinstance(node, ScalarNode):
            return _scalar(node)
        self._open.append(node)
        try:
            if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
                return self._mapping(node)
            if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
                return [self.of(item) for item in node.value]
        finally:
            self._open.pop()
        raise _unknown_tag(node)

    def _mapping(self, node: MappingNode) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        values = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise YamlError(f"has a list or mapping as a key ({_line(key_node.start_mark)})")
            key, line = _scalar(key_node), key_node.start_mark.line + 1
            if key in lines:
                raise YamlError(f"has the key '{key}' twice in one mapping (lines {lines[key]} and {line}), remove one")
            lines[key] = line
            values[key] = self.of(value_node)
        return values


def _scalar(node: ScalarNode) -> Any:
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "str":
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise YamlError(f"has half of a surrogate pair, which is not a character ({_line(node.start_mark)})")
        return text
    if kind == "null" and _NULL.fullmatch(text):
        return None
    if kind == "bool" and _TRUTH.fullmatch(text):
        return text.lower() == "true"
    if kind == "int" and _INTEGER.fullmatch(text):
        return _integer(node)
    if kind == "float" and (_DECIMAL.fullmatch(text) or _SPECIAL.fullmatch(text)):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise _unknown_tag(node)


def _integer(node: ScalarNode) -> int:
    text = node.value
    try:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    except ValueError:  # Python rejects numbers with thousands of digits
        raise YamlError(f"has a number with too many digits ({_line(node.start_mark)})") from None


def _unknown_tag(node: Node) -> YamlError:
    tag = node.tag.replace(_TAG, "!!")
    return YamlError(f"has a value with the tag '{tag}', which cannot be read here ({_line(node.start_mark)})")


def _line(mark: Any) -> str:
    return f"line {mark.line + 1}"
