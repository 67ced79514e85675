"""The plugin framework: order, discovery and the fence."""

import logging
import textwrap

import pytest

from nodemanager_trellis import hooks
from nodemanager_trellis.model import Node, Presence, Sliver
from nodemanager_trellis.objects import NamespacePair, SliverFile

NODE = Node(1, "n", "192.0.2.1")
SLIVER = Sliver("a_b", 1, Presence.RUN, "plc-instantiated", 0)


def plugin(plugin_name, rank=100, create=lambda s, n: (), node=lambda n: ()):
    class Made(hooks.Plugin):
        name = plugin_name
        priority = rank

        def create(self, sliver, n):
            return create(sliver, n)

        def node(self, n):
            return node(n)

    return Made()


def raises(*_):
    raise RuntimeError("boom")


def test_plugins_run_by_priority_and_ties_keep_their_order():
    """Lower priorities come first; equal ones stay in load order."""
    registry = hooks.Registry([plugin("c", 5), plugin("a", 5), plugin("z", 1)])

    assert ["z", "c", "a"] == [p.name for p in registry.plugins]


def test_raising_plugin_loses_its_turn_and_keeps_its_objects():
    """What a failed plugin wanted at its last good turn stays wanted; the others' turns count."""
    pair, file = NamespacePair("x.1", 1), SliverFile("x.1", "f", "")
    registry = hooks.Registry([plugin("bad", 1, raises), plugin("good", 2, lambda s, n: [pair])])

    wanted = registry.for_sliver(SLIVER, NODE, {"bad": [file]})

    assert {pair.key: pair, file.key: file} == wanted.objects
    assert [hooks.Failure("bad", "create/start", "RuntimeError: boom", "a_b")] == wanted.failures
    assert "bad" == wanted.plugin_of[file.key]


def test_two_plugins_wanting_different_things_under_one_key_is_the_laters_failure():
    """The first plugin's object stands; the contradicting plugin fails and says whose it is."""
    one, two = NamespacePair("x.1", 1), NamespacePair("x.1", 2)
    wanted = hooks.Registry([plugin("one", 1, lambda s, n: [one]), plugin("two", 2, lambda s, n: [two])]).for_sliver(
        SLIVER, NODE, {"two": [two]}
    )

    assert {one.key: one} == wanted.objects
    assert "wanted otherwise by one" in wanted.failures[0].message


@pytest.mark.parametrize("rubbish", [["text"], [None], 7, "ab"])
def test_plugin_returning_rubbish_fails(rubbish):
    """Anything but kernel objects is the plugin's failure, not the daemon's."""
    wanted = hooks.Registry([plugin("p", create=lambda s, n: rubbish)]).for_sliver(SLIVER, NODE, {})

    assert ({}, 1) == (wanted.objects, len(wanted.failures))


def test_node_hook_is_fenced_too():
    """A plugin that raises for the node keeps the node's remembered objects."""
    pair = NamespacePair("x.1", 1)
    wanted = hooks.Registry([plugin("p", node=raises)]).for_node(NODE, {"p": [pair]})

    assert {pair.key: pair} == wanted.objects


def test_drop_in_directory_is_loaded_and_bad_files_are_skipped(tmp_path, caplog):
    """Each Plugin class of a dropped-in file is used; a file that fails to import is logged and skipped."""
    (tmp_path / "good.py").write_text(
        textwrap.dedent(
            """
            from nodemanager_trellis.hooks import Plugin
            class Extra(Plugin):
                name = "extra"
                priority = 7
            """
        )
    )
    (tmp_path / "bad.py").write_text("import no_such_module_anywhere")
    (tmp_path / "nameless.py").write_text("from nodemanager_trellis.hooks import Plugin\nclass P(Plugin): pass\n")
    (tmp_path / "twice.py").write_text(
        "from nodemanager_trellis.hooks import Plugin\nclass P(Plugin): name = 'hosts'\n"
    )

    with caplog.at_level(logging.WARNING):
        registry = hooks.load(disabled=["shaping"], drop_in=tmp_path)

    assert "extra" == registry.plugins[0].name
    assert "shaping" not in [p.name for p in registry.plugins]
    assert 2 == len([r for r in caplog.records if r.message == "plugin not loaded"])
    assert 1 == len([r for r in caplog.records if r.message == "plugin name met twice"])


def test_base_plugin_wants_nothing_and_does_nothing():
    """A plugin that overrides nothing is legal."""
    base = hooks.Plugin()

    assert [(), (), ()] == [tuple(base.node(NODE)), tuple(base.create(SLIVER, NODE)), tuple(base.start(SLIVER, NODE))]
    for event in ("after_create", "after_start", "before_stop", "after_destroy"):
        assert getattr(base, event)(SLIVER, NODE, None) is None
    assert base.after_update(SLIVER, SLIVER, NODE, None) is None
