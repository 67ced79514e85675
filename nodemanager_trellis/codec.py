"""Frozen dataclasses ↔ plain JSON values, by their annotations. Used for the store and for ``--json``."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """Dataclasses, enums and tuples → dicts, text and lists, ready for :func:`json.dumps`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (list, tuple, frozenset)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def from_plain(cls: type[T], value: Any) -> T:
    """The inverse of :func:`to_plain` for a dataclass; unknown members are ignored, missing ones take their default.

    :raises ValueError: a member is missing that has no default, or a value has the wrong shape
    """
    return typing.cast(T, _build(cls, value))


def _build(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _build(options[0], value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"expected a list, got {type(value).__name__}")
        args = typing.get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_build(args[0], v) for v in value)
        if len(args) != len(value):
            raise ValueError(f"expected {len(args)} members, got {len(value)}")
        return tuple(_build(a, v) for a, v in zip(args, value, strict=True))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint(value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ValueError(f"{hint.__name__}: expected a struct, got {type(value).__name__}")
        hints = _hints(hint)
        known = {f.name: _build(hints[f.name], value[f.name]) for f in dataclasses.fields(hint) if f.name in value}
        try:
            return hint(**known)
        except TypeError as err:
            raise ValueError(f"{hint.__name__}: {err}") from err
    return value
