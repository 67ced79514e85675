"""PLCAPI's filter language (planetlab.md §5.3): a list of ids and names, or ``{modifiers + field: value(s)}``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from nodemanager_trellis.plc.classes import CLASSES
from nodemanager_trellis.plc.faults import invalid
from nodemanager_trellis.plc.records import View, default_fields, handles, view
from nodemanager_trellis.plc.types import STR, Array, Mixed, Type, array, either, struct

_MODIFIERS = "~<>[]-&|"


@dataclass(frozen=True)
class Query:
    """What a filter means: a condition, an order and a window."""

    where: tuple[Any, ...] = ()
    order: tuple[Any, ...] = ()
    limit: int | None = None
    offset: int | None = None


def filter_type(name: str) -> Mixed:
    """Type of the filter argument of ``Get<Class>s``."""
    v = view(name)
    names = [*(f.name for f in v.cls.fields), *v.columns]
    members = {n: _value_or_list(kind) for n in names if (kind := v.type_of(n)) is not None}
    key = Type(int, f"{v.cls.key} to match")
    text = Type(str, f"{v.cls.natural} to match")
    scalars = (text, key) if v.cls.natural else (key,)
    return either(array(either(*scalars)), *scalars, struct(members, "Attribute filter"), nullok=True)


def _value_or_list(kind: Type) -> Mixed:
    return either(kind, array(kind))


def compile_filter(name: str, argument: str, wanted: Any) -> Query:
    """The query of a filter that has passed the check of :func:`filter_type`."""
    if wanted is None:
        return Query()
    if isinstance(wanted, (int, str)):
        wanted = [wanted]
    if isinstance(wanted, list):
        return Query(where=(handles(name, wanted),))
    return _compile_struct(view(name), argument, wanted)


def _compile_struct(v: View, argument: str, wanted: dict[str, Any]) -> Query:
    """Conditions joined by AND, or by OR if there is a ``-OR``."""
    conditions: list[Any] = []
    order: list[Any] = []
    window: dict[str, int] = {}
    union = False
    for key, value in wanted.items():
        name = key.lstrip(_MODIFIERS)
        modifiers = key[: len(key) - len(name)]
        if "-" not in modifiers:
            conditions.append(_condition(v, f"{argument}['{key}']", name, modifiers, value))
        elif name == "SORT":
            items = value if isinstance(value, list) else [value]
            order += [_order(v, f"{argument}['-SORT']", item) for item in items]
        elif name in ("LIMIT", "OFFSET"):
            Type(int, least=0).check(f"{argument}['-{name}']", value)
            window[name.lower()] = value
        elif name in ("OR", "AND"):
            union = union or (name == "OR" and bool(value))
        else:
            raise invalid(f"Invalid filter, unknown sort and clip field {name!r}")
    where = (sa.or_(*conditions),) if union and conditions else tuple(conditions)
    return Query(where, tuple(order), **window)


def _order(v: View, where: str, item: Any) -> Any:
    """One member of ``-SORT``."""
    STR.check(where, item)
    name = item.lstrip("+") if item.startswith("+") else item.removeprefix("-")
    if name not in v.columns or v.type_of(name) is None:
        raise invalid(f"Invalid field {name!r} in SORT filter")
    column = v.columns[name]
    return column.desc() if item.startswith("-") else column.asc()


def _condition(v: View, where: str, name: str, modifiers: str, value: Any) -> Any:
    """The condition of one ``modifiers + field: value``."""
    kind = v.type_of(name)
    if kind is None:
        raise invalid(f"Invalid filter field '{name}'")
    if isinstance(kind, Array):
        clause = _list_condition(v, where, name, kind, modifiers, value)
    else:
        # Without a modifier the declared type has been checked already, nulls with it; with one, null is always asked.
        if modifiers and value is not None:
            _value_or_list(kind).check(where, value)
        clause = _scalar_condition(v.columns[name], modifiers, value)
    return sa.not_(clause) if "~" in modifiers else clause


def _scalar_condition(column: Any, modifiers: str, value: Any) -> Any:
    """A comparison with a value, a pattern or a list."""
    if "&" in modifiers or "|" in modifiers:
        value = value if isinstance(value, list) else [value]
    if isinstance(value, list):
        return column.in_(value) if value else sa.false()
    if value is None:
        return column.is_(None)
    if isinstance(value, str) and ("*" in value or "%" in value):
        escaped = value.replace("\\", "\\\\").replace("_", "\\_").replace("*", "%")
        return column.ilike(escaped, escape="\\")
    if "<" in modifiers:
        return column < value
    if ">" in modifiers:
        return column > value
    if "[" in modifiers:
        return column <= value
    if "]" in modifiers:
        return column >= value
    return column == value


def _list_condition(v: View, where: str, name: str, kind: Array, modifiers: str, value: Any) -> Any:
    """``&``: the list field has all the values; ``|``: any of them. With no values: the list is empty."""
    if "&" not in modifiers and "|" not in modifiers:
        raise invalid(f"the list field '{name}' needs one of the modifiers & and |", where)
    values = value if isinstance(value, list) else [value]
    for item in values:
        kind.item.check(where, item)
    source = v.lists[name]
    if source is None:
        return sa.false() if values else sa.true()
    relation, own, item_column = source
    mine = sa.select(own).select_from(relation).where(own == v.key).correlate(v.table)
    if not values:
        return sa.not_(mine.exists())
    if "&" in modifiers:
        return sa.and_(*(mine.where(item_column == item).exists() for item in values))
    return mine.where(item_column.in_(values)).exists()


def return_fields(name: str, wanted: list[str] | None, privileged: bool) -> list[str]:
    """The fields to return; an unknown one, or one the caller may not see, is a fault."""
    if wanted is None:
        return default_fields(name, privileged)
    v = view(name)
    hidden = {f.name for f in CLASSES[name].fields if f.secret or (f.admin and not privileged)}
    known = (set(v.columns) | set(v.lists)) - hidden
    unknown = [field for field in wanted if field not in known]
    if unknown:
        raise invalid(f"unknown column(s) specified {unknown!r} in {name}")
    return wanted


