"""What YAML files and ``--set`` say, before anyone checks it: plain values, in bounded time and memory.

The YAML is plain: keys are text and given once; no tags, and no aliases, which can stand for more than fits in memory.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

#: Bytes of a document, levels of nesting, and characters of a value that a message shows.
LARGEST, DEEPEST, SHOWN = 2**16, 32, 200
#: Whole numbers that fit 64 bits, as every library takes them.
LARGEST_NUMBER = 2**63 - 1


def read_yaml(path: Path) -> Any:
    """What a YAML file says; ``None`` if it is empty.

    Raises:
        ValueError: it is no file, no UTF-8, or none of what :func:`parse_yaml` takes.
    """
    if not os.path.isfile(path):
        raise ValueError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
    _check_size(path.stat().st_size, str(path))
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML document.

    Args:
        where: what complaints call it.

    Raises:
        ValueError: it is not YAML, has a key that is given twice or is no text, an alias or a tag, more than 64 KiB or
            more than 32 levels.
    """
    _check_size(len(text), where)
    try:
        return yaml.load(text, Loader=_Plain)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        kind = "" if isinstance(error, _NotPlain) else "not YAML: "
        raise ValueError(f"{where}: {kind}{place}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _check_size(num_bytes: int, where: str) -> None:
    if num_bytes > LARGEST:
        raise ValueError(f"{where}: {num_bytes:,} bytes, more than the {LARGEST:,} that are read of YAML")


class _NotPlain(yaml.MarkedYAMLError):
    """YAML, but more than is taken here."""


def _refuse(problem: str, at: Any) -> None:
    raise _NotPlain(problem=problem, problem_mark=at.start_mark)


class _Plain(yaml.SafeLoader):
    """Safe YAML that refuses what the file's docstring says."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node, however deep it is allowed to be."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            _refuse(f"the alias *{event.anchor} is not taken here; write the value again", event)
        if event.tag is not None:
            _refuse(f"the tag {shown(event.tag)} is not taken here; write a plain value", event)
        if self.depth == DEEPEST:
            _refuse(f"nested deeper than {DEEPEST} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()
            return value
        except (ValueError, OverflowError):  # half a surrogate pair, a date that does not exist, thousands of digits
            _refuse(f"{shown(node.value)} is no value; write it in quotes if it is text", node)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """A mapping, its keys text and all different."""
        keys = set()
        for key, _ in node.value:
            if key.tag != self.DEFAULT_SCALAR_TAG:
                written = shown(key.value) if isinstance(key.value, str) else "that is a list or mapping"
                _refuse(f"key {written} is no text; write it in quotes", key)
            if key.value in keys:
                _refuse(f"key {shown(key.value)} is given twice", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def parse_override(override: str) -> tuple[str, Any]:
    """``path.to.key=value`` as path and YAML value.

    Raises:
        ValueError: there is no ``=``, no path or one of more than 32 parts, or the value is not YAML or a number that
            no setting can have.
    """
    path, separator, text = override.partition("=")
    if not separator or not all(path.split(".")):
        raise ValueError(f"--set {shown(override)}: expected name=value")
    if path.count(".") >= DEEPEST:
        raise ValueError(f"--set {shown(override)}: more than {DEEPEST} parts in a path")
    value = parse_yaml(text, f"--set {shown(override)}")
    for where, complaint in unfit_numbers(value, path):
        raise ValueError(f"--set {where}: {complaint}")
    return path, value


def read_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Several ``path.to.key=value`` as nested mappings."""
    values: dict[str, Any] = {}
    for override in overrides:
        set_value(values, *parse_override(override))
    return values


def set_value(values: dict[str, Any], path: str, value: Any) -> None:
    """Put ``value`` where the dotted ``path`` says.

    Raises:
        ValueError: a part of the path has a value already that is no section.
    """
    *parents, last = path.split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ValueError(f"--set {path}: {parent!r} is no section")
    node[last] = value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything within mappings and lists that is neither, with its dotted path below ``path``."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if parts is None:
        yield path, value
        return
    for name, item in parts:
        yield from leaves(item, f"{path}.{name}" if path else str(name))


def unfit_numbers(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and complaint of every number within ``value`` that is not finite or does not fit 64 bits."""
    for where, leaf in leaves(value, path):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            yield where, f"expected a finite number, got {leaf}"
        elif isinstance(leaf, int) and abs(leaf) > LARGEST_NUMBER:
            yield where, f"expected a number of at most 64 bits, got {shown(leaf)}"


def shown(value: Any) -> str:
    """``value`` as a message shows it: cut short where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
