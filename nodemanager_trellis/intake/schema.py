"""``schemas/*.json``, loaded once, and errors that a person can read."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Iterable
from typing import Any

import jsonschema

from nodemanager_trellis.errors import InvalidInput

MAX_DEPTH = 16

_KINDS: tuple[tuple[Any, str], ...] = (
    (type(None), "null"),
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    ((list, tuple), "array"),
    (dict, "object"),
)
_WORDS = {"object": "struct", "array": "list", "string": "text"}


def kind(value: Any) -> str:
    """What a value is, in JSON's word: ``integer``, ``string``, ``object`` …"""
    return next((word for types, word in _KINDS if isinstance(value, types)), type(value).__name__)


def quote(value: Any) -> str:
    """A value as at most 60 printable characters of a message; containers by kind only."""
    if isinstance(value, str):
        return ascii(value[:57]) + ("…" if len(value) > 57 else "")
    word = kind(value)
    return repr(value) if word in ("null", "boolean", "integer", "number") else f"a {_WORDS.get(word, word)}"


def path_text(parts: Iterable[Any], root: str = "$") -> str:
    """``["slivers", 2, "name"]`` → ``$.slivers[2].name``."""
    return root + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)


def check_plain(value: Any, max_depth: int = MAX_DEPTH) -> None:
    """Refuse what no wire format of ours carries: other types, keys that are no text, integers beyond 64 bit, depth.

    Afterwards recursion over ``value``, ``repr`` and ``json.dumps`` of it are safe.

    :raises InvalidInput: with the path of the first such thing
    """
    level: list[tuple[tuple[Any, ...], Any]] = [((), value)]
    for _ in range(max_depth):
        below: list[tuple[tuple[Any, ...], Any]] = []
        for path, item in level:
            if isinstance(item, dict):
                below += [((*path, name), member) for name, member in item.items()]
            elif isinstance(item, (list, tuple)):
                below += [((*path, i), member) for i, member in enumerate(item)]
            elif isinstance(item, int):
                if not -(2**63) <= item < 2**64:
                    raise InvalidInput("an integer beyond 64 bit", path_text(path))
            elif item is not None and not isinstance(item, (str, float)):
                raise InvalidInput(f"a {type(item).__name__} is not a plain value", path_text(path))
            if isinstance(item, dict) and not all(isinstance(name, str) for name in item):
                raise InvalidInput("a member's name is not text", path_text(path))
        if not below:
            return
        level = below
    raise InvalidInput(f"values nested deeper than {max_depth}", "$")


@functools.cache
def _validator(name: str) -> Any:
    if not re.fullmatch(r"[a-z_]+", name):
        raise ValueError(f"{name!r} is not the name of a schema")
    folder = importlib.resources.files("nodemanager_trellis").joinpath("schemas")
    base = jsonschema.Draft202012Validator
    # JSON Schema calls 1.0 an integer; our models do not.
    strict = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    content = json.loads(folder.joinpath(f"{name}.schema.json").read_text("utf-8"))
    base.check_schema(content)
    return jsonschema.validators.extend(base, type_checker=strict)(content, format_checker=jsonschema.FormatChecker())


def _message(error: Any) -> str:
    """One sentence without the path; jsonschema's own repeats whole documents."""
    if error.validator == "type":
        value = error.validator_value
        wanted: list[str] = value if isinstance(value, list) else [value]
        got = kind(error.instance)
        return f"expected {' or '.join(_WORDS.get(w, w) for w in wanted)}, got {_WORDS.get(got, got)}"
    if error.validator == "required":
        return f"missing: {', '.join(name for name in error.validator_value if name not in error.instance)}"
    if error.validator in ("minItems", "maxItems"):
        return f"expected {error.schema.get('title', 'a list')}, got {len(error.instance)} members"
    if "title" in error.schema:
        return f"{quote(error.instance)} is not {error.schema['title']}"
    return str(error.message)[:200]


def validate(name: str, value: Any) -> list[tuple[str, str]]:
    """All errors of ``value`` against ``schemas/<name>.schema.json``: (JSON path, sentence), in document order.

    Arrays are lists; ``1.0`` is not an integer. Too deep a document is one error, never a ``RecursionError``.
    """
    try:
        check_plain(value)
    except InvalidInput as err:
        return [(err.path, err.message)]
    errors = list(_validator(name).iter_errors(value))
    errors.sort(key=lambda error: [(isinstance(part, str), part) for part in error.absolute_path])
    # One error a missing member comes from the library, each with the same sentence here.
    return list(dict.fromkeys((path_text(error.absolute_path), _message(error)) for error in errors))
