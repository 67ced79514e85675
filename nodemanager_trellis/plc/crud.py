"""Get, Add, Update and Delete methods made from ``classes`` and the lines of ``RULES`` below; tags of all classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nodemanager_trellis.plc import rules
from nodemanager_trellis.plc.calls import ALL_PERSONS, Arg, Context, Method, Registry
from nodemanager_trellis.plc.classes import CLASSES, ObjectClass
from nodemanager_trellis.plc.faults import denied, invalid
from nodemanager_trellis.plc.filters import compile_filter, filter_type, return_fields
from nodemanager_trellis.plc.members import set_members
from nodemanager_trellis.plc.records import TAG_VALUE, Record, delete, insert, select, update
from nodemanager_trellis.plc.tagtypes import ACCESSORS
from nodemanager_trellis.plc.types import INT, STR, Type, array, either, struct

_EVERYBODY = (*ALL_PERSONS, "node", "anonymous")
_TECHS = ("admin", "pi", "tech")
_OWNERS = ("admin", "pi", "user")
_ADMIN = ("admin",)


@dataclass(frozen=True)
class Rule:
    """Who may do what with a class. No roles: there is no such method.

    :param parent: class of the record that a new one belongs to, the first argument of Add
    :param values: checks and completes new values
    :param may: raises if the caller may not change the record
    :param sees: conditions on what Get shows to the caller
    :param lists: members of a slice that Update may set
    """

    cls: str
    get: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    update: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    parent: str = ""
    values: rules.Values = rules.any_values
    may: rules.May = rules.may_all
    sees: rules.Sees = rules.sees_all
    lists: tuple[str, ...] = ()


RULES: tuple[Rule, ...] = (
    Rule("Site", _EVERYBODY, _ADMIN, ("admin", "pi"), _ADMIN, values=rules.site_values, may=rules.may_site),
    Rule("Person", (*ALL_PERSONS, "node"), ("admin", "pi"), ALL_PERSONS, ALL_PERSONS,
         values=rules.person_values, may=rules.may_person, sees=rules.sees_persons),
    Rule("Key", (*ALL_PERSONS, "node"), (), ALL_PERSONS, ALL_PERSONS,
         values=rules.key_values, may=rules.may_key, sees=rules.sees_keys),
    Rule("Node", _EVERYBODY, _TECHS, _TECHS, _TECHS, "Site", rules.node_values, rules.may_node),
    Rule("Interface", _EVERYBODY, _TECHS, _TECHS, _TECHS, "Node", rules.interface_values, rules.may_interface),
    Rule("Slice", (*_OWNERS, "node"), ("admin", "pi"), _OWNERS, _OWNERS,
         values=rules.slice_values, may=rules.may_slice, sees=rules.sees_slices, lists=("nodes", "persons")),
    Rule("SliceTag", (*_OWNERS, "node")),
    Rule("TagType", (*ALL_PERSONS, "node"), _ADMIN, _ADMIN, _ADMIN, values=rules.tag_type_values),
    Rule("NodeGroup", _EVERYBODY, (), _ADMIN, _ADMIN, values=rules.node_group_values),
    Rule("InitScript", (*ALL_PERSONS, "node"), _ADMIN, _ADMIN, _ADMIN, values=rules.init_script_values),
    Rule("ConfFile", (*_ADMIN, "node"), _ADMIN, _ADMIN, _ADMIN),
    Rule("SiteTag", _EVERYBODY),
    Rule("PersonTag", (*ALL_PERSONS, "node"), sees=rules.sees_all),
    Rule("NodeTag", _EVERYBODY),
    Rule("InterfaceTag", _EVERYBODY),
)  # fmt: skip


def handle_type(name: str) -> Type:
    """Type of the argument that says which record: its identifier, or its name if it has one."""
    cls = CLASSES[name]
    key = Type(int, f"{cls.key}")
    return either(key, Type(str, cls.natural)) if cls.natural else key


def handle_arg(name: str, optional: bool = False) -> Arg:
    """The argument that says which record."""
    return Arg(CLASSES[name].handle, handle_type(name), optional)


def declare(registry: Registry) -> None:
    """All generated methods are in the registry."""
    for rule in RULES:
        cls = CLASSES[rule.cls]
        if rule.get:
            registry.add(_get(cls, rule))
        if rule.add:
            registry.add(_add(cls, rule))
        if rule.update:
            registry.add(_update(cls, rule))
        if rule.delete:
            registry.add(_delete(cls, rule))
    for name in ("Site", "Person", "Node", "Interface"):
        _declare_tags(registry, CLASSES[name])
    for name, tags in ACCESSORS.items():
        for accessor in tags.values():
            _declare_accessor(registry, CLASSES[name], accessor.suffix, accessor.tagname)


def _get(cls: ObjectClass, rule: Rule) -> Method:
    argument = f"{cls.argument}_filter"

    def call(ctx: Context, wanted: Any = None, fields: list[str] | None = None) -> list[Record]:
        names = return_fields(cls.name, fields, ctx.caller.is_admin)
        query = compile_filter(cls.name, argument, wanted)
        where = [*query.where, *rule.sees(ctx)]
        return select(ctx.connection, cls.name, where, names, query.order, query.limit, query.offset)

    doc = (
        f"Returns an array of structs containing details about {cls.name} objects. If {argument} is specified and is an"
        " array of identifiers or names, or a struct of attributes, only those matching are returned. If return_fields"
        " is specified, only these details are returned."
    )
    args = (
        Arg(argument, filter_type(cls.name), True),
        Arg("return_fields", array(STR, "List of fields to return", nullok=True), True),
    )
    return Method(f"Get{cls.name}s", rule.get, args, call, doc, array(struct({})))


def _fields_type(cls: ObjectClass, names: tuple[str, ...], lists: tuple[str, ...] = ()) -> Type:
    members: dict[str, Type] = {name: cls.by_name[name].type for name in names}
    members |= dict.fromkeys(ACCESSORS.get(cls.name, {}), TAG_VALUE)
    members |= {name: array(either(INT, STR)) for name in lists}
    return struct(members)


def _split(
    ctx: Context, cls: ObjectClass, fields: Record, allowed: tuple[str, ...], complaint: str
) -> tuple[Record, Record]:
    """Own fields and accessor tags; any other member is refused."""
    tags = ACCESSORS.get(cls.name, {})
    rejected = {name: value for name, value in fields.items() if name not in allowed and name not in tags}
    if rejected:
        raise invalid(f"{complaint} column(s) {rejected}")
    return (
        {name: value for name, value in fields.items() if name in allowed},
        {name: value for name, value in fields.items() if name in tags},
    )


def _add(cls: ObjectClass, rule: Rule) -> Method:
    argument = f"{cls.argument}_fields"

    def call(ctx: Context, *args: Any) -> int:
        fields = args[-1]
        values, tags = _split(ctx, cls, fields, cls.add, f"Cannot add {cls.name} with")
        if rule.parent:
            parent = CLASSES[rule.parent]
            owner = ctx.find(rule.parent, args[0], f"No such {parent.noun}")
            (rules.may_site if rule.parent == "Site" else rules.may_node)(ctx, owner)
            values[parent.key] = owner[parent.key]
        return add_record(ctx, cls.name, rule.values(ctx, values, None), tags)

    doc = f"Adds a new {cls.noun}. Any fields specified in {argument} are used, otherwise defaults are used."
    args = (*((handle_arg(rule.parent),) if rule.parent else ()), Arg(argument, _fields_type(cls, cls.add)))
    returns = Type(int, f"New {cls.key} (> 0) if successful")
    return Method(f"Add{cls.name}", rule.add, args, call, doc, returns, write=True)


def add_record(ctx: Context, name: str, values: Record, tags: Record) -> int:
    """A new record with its tags and what a new one of its class gets by itself; returns its identifier."""
    key = insert(ctx.connection, name, values, ctx.now)
    for tagname, value in (ctx.plc.default_tags(ctx, name, key) | tags).items():
        if value is not None:
            set_tag(ctx, name, key, tagname, value)
    if name == "Slice":
        for script in ctx.plc.settings.vsys_defaults:
            _insert_slice_tag(ctx, key, "vsys", script)
    ctx.touch(name, key)
    return key


def _insert_slice_tag(ctx: Context, slice_id: int, tagname: str, value: str) -> None:
    tag_type = ctx.find("TagType", tagname, f"No such tag type {tagname!r}")
    values = {"slice_id": slice_id, "tag_type_id": tag_type["tag_type_id"], "value": value}
    insert(ctx.connection, "SliceTag", values, ctx.now)


def _update(cls: ObjectClass, rule: Rule) -> Method:
    argument = f"{cls.argument}_fields"

    def call(ctx: Context, handle: int | str, fields: Record) -> int:
        record = ctx.find(cls.name, handle, f"No such {cls.noun}")
        allowed = cls.update + rule.lists
        values, tags = _split(ctx, cls, fields, allowed, f"Cannot update {cls.name}")
        rule.may(ctx, record)
        lists = {name: values.pop(name) for name in rule.lists if name in values}
        values = rule.values(ctx, values, record)
        key = record[cls.key]
        ctx.touch(cls.name, key)
        update(ctx.connection, cls.name, key, values, ctx.now)
        if cls.name in ("Node", "Site") and values.keys() & {"hostname", "login_base", "site_id"}:
            tags = ctx.plc.default_tags(ctx, cls.name, key) | tags
        for tagname, value in tags.items():
            check_may_tag(ctx, cls, record, tagname)
            set_tag(ctx, cls.name, key, tagname, value)
        for name, wanted in lists.items():
            set_members(ctx, record, name, wanted)
        ctx.touch(cls.name, key)
        return 1

    doc = f"Updates the parameters of an existing {cls.noun} with the values in {argument}."
    args = (handle_arg(cls.name), Arg(argument, _fields_type(cls, cls.update, rule.lists)))
    returns = Type(int, "1 if successful")
    return Method(f"Update{cls.name}", rule.update, args, call, doc, returns, write=True)


def _delete(cls: ObjectClass, rule: Rule) -> Method:
    def call(ctx: Context, handle: int | str) -> int:
        record = ctx.find(cls.name, handle, f"No such {cls.noun}")
        rule.may(ctx, record)
        ctx.touch(cls.name, record[cls.key])
        delete(ctx.connection, cls.name, record[cls.key])
        return 1

    returns = Type(int, "1 if successful")
    doc = f"Deletes an existing {cls.noun}, and what belongs to it."
    return Method(f"Delete{cls.name}", rule.delete, (handle_arg(cls.name),), call, doc, returns, write=True)


# Tags of sites, persons, nodes and interfaces -------------------------------------------------------------------

_MAY = {"Site": rules.may_site, "Person": rules.may_person, "Node": rules.may_node, "Interface": rules.may_interface,
        "Slice": rules.may_slice}  # fmt: skip


def check_may_tag(ctx: Context, cls: ObjectClass, record: Record, tagname: str) -> None:
    """The caller may change the object and write this type of tag."""
    tag_type = ctx.find("TagType", tagname, f"No such tag type {tagname!r}")
    if not ctx.caller.is_admin and not ctx.caller.roles & set(tag_type["roles"]):
        stem = cls.name.lower()
        raise denied(f"Cannot write {stem} tag {tag_type['tagname']} - caller may not access this tag type")
    if ctx.caller.kind == "node" and cls.name not in ("Node", "Interface"):
        raise denied(f"Nodes may not write tags of {cls.noun} objects")
    _MAY[cls.name](ctx, record)


def own_tags(ctx: Context, cls: ObjectClass, key: int, tag_type_id: int) -> list[Record]:
    """The object's own tags of that type; for a slice not those of its slivers and groups."""
    table = CLASSES[cls.tags]
    columns = rules.view(table.name).columns
    where = [columns[cls.key] == key, columns["tag_type_id"] == tag_type_id]
    if table.name == "SliceTag":
        where += [columns["node_id"].is_(None), columns["nodegroup_id"].is_(None)]
    return select(ctx.connection, table.name, where, [table.key, "value"])


def set_tag(ctx: Context, name: str, key: int, tagname: str, value: str | None) -> int:
    """The object has this one value of the tag, or none when ``value`` is None; returns the tag's identifier."""
    cls = CLASSES[name]
    table = CLASSES[cls.tags]
    tag_type = ctx.find("TagType", tagname, f"No such tag type {tagname!r}")
    if tagname == "initscript" and value is not None:
        check_initscript(ctx, value)
    old = own_tags(ctx, cls, key, tag_type["tag_type_id"])
    for surplus in old[0 if value is None else 1 :]:
        delete(ctx.connection, table.name, surplus[table.key])
    if value is None:
        return 0
    if old:
        if old[0]["value"] != value:
            update(ctx.connection, table.name, old[0][table.key], {"value": value}, ctx.now)
        return int(old[0][table.key])
    values = {cls.key: key, "tag_type_id": tag_type["tag_type_id"], "value": value}
    return insert(ctx.connection, table.name, values, ctx.now)


def check_initscript(ctx: Context, name: str) -> None:
    """There is an enabled initscript of that name."""
    columns = rules.view("InitScript").columns
    where = [columns["name"] == name, columns["enabled"].is_(True)]
    if not select(ctx.connection, "InitScript", where, ["name"]):
        raise invalid(f"No such plc initscript {name!r}")


def _declare_tags(registry: Registry, cls: ObjectClass) -> None:
    """Add, Update and Delete of the tags of a class; one value per object and type."""
    tag_cls = CLASSES[cls.tags]
    roles = (*ALL_PERSONS, "node")
    value_arg = Arg("value", tag_cls.by_name["value"].type)

    def add(ctx: Context, handle: int | str, tag: int | str, value: str | None) -> int:
        record = ctx.find(cls.name, handle, f"No such {cls.noun} {handle!r}")
        tag_type = ctx.find("TagType", tag, f"No such tag type {tag!r}")
        check_may_tag(ctx, cls, record, tag_type["tagname"])
        key = record[cls.key]
        if own_tags(ctx, cls, key, tag_type["tag_type_id"]):
            raise invalid(f"{cls.name} {record[cls.natural]} ({key}) already has tag {tag_type['tag_type_id']}")
        new = insert(
            ctx.connection,
            tag_cls.name,
            {cls.key: key, "tag_type_id": tag_type["tag_type_id"], "value": value},
            ctx.now,
        )
        ctx.touch(cls.name, key)
        return new

    def find_own(ctx: Context, tag_id: int) -> Record:
        tag = ctx.find(tag_cls.name, tag_id, f"No such {tag_cls.noun} {tag_id!r}")
        owner = ctx.find(cls.name, tag[cls.key], f"No such {cls.noun}")
        check_may_tag(ctx, cls, owner, tag["tagname"])
        ctx.touch(cls.name, tag[cls.key])
        return tag

    def change(ctx: Context, tag_id: int, value: str | None) -> int:
        find_own(ctx, tag_id)
        update(ctx.connection, tag_cls.name, tag_id, {"value": value}, ctx.now)
        return 1

    def remove(ctx: Context, tag_id: int) -> int:
        find_own(ctx, tag_id)
        delete(ctx.connection, tag_cls.name, tag_id)
        return 1

    tag_arg = Arg("tag_type_id_or_name", handle_type("TagType"))
    id_arg = Arg(tag_cls.key, INT)
    new = Type(int, f"New {tag_cls.key} (> 0) if successful")
    one = Type(int, "1 if successful")
    what = f"tag of the specified {cls.noun}"
    args = (handle_arg(cls.name), tag_arg, value_arg)
    registry.add(Method(f"Add{tag_cls.name}", roles, args, add, f"Sets the specified {what}.", new, write=True))
    registry.add(
        Method(f"Update{tag_cls.name}", roles, (id_arg, value_arg), change, f"Updates a {what}.", one, write=True)
    )
    registry.add(Method(f"Delete{tag_cls.name}", roles, (id_arg,), remove, f"Deletes a {what}.", one, write=True))


def _declare_accessor(registry: Registry, cls: ObjectClass, suffix: str, tagname: str) -> None:
    """``GetSliceVref(slice)`` and ``SetSliceVref(slice, value)``; a null value deletes the tag."""

    def get(ctx: Context, handle: int | str) -> str | None:
        record = ctx.find(cls.name, handle, f"No such {cls.noun} {handle!r}")
        tag_type = ctx.find("TagType", tagname, f"No such tag type {tagname!r}")
        found = own_tags(ctx, cls, record[cls.key], tag_type["tag_type_id"])
        return found[0]["value"] if found else None

    def put(ctx: Context, handle: int | str, value: str | None) -> int:
        record = ctx.find(cls.name, handle, f"No such {cls.noun} {handle!r}")
        check_may_tag(ctx, cls, record, tagname)
        ctx.touch(cls.name, record[cls.key])
        set_tag(ctx, cls.name, record[cls.key], tagname, value)
        ctx.touch(cls.name, record[cls.key])
        return 1

    roles = (*ALL_PERSONS, "node")
    what = f"the tag {tagname} of a {cls.noun}"
    which, value_arg = handle_arg(cls.name), Arg("value", TAG_VALUE)
    registry.add(Method(f"Get{cls.name}{suffix}", roles, (which,), get, f"Returns {what}.", TAG_VALUE))
    registry.add(Method(f"Set{cls.name}{suffix}", roles, (which, value_arg), put, f"Sets {what}.", write=True))
