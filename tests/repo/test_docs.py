"""What the documentation shows is tried."""

import pathlib
import re

from nodemanager_trellis import hooks
from nodemanager_trellis.hooks import CompletedRun
from nodemanager_trellis.model import Node, Presence, Sliver, Tag
from nodemanager_trellis.objects import SliverFile

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_example_plugin_loads_and_works(tmp_path):
    """The plugin printed in docs/plugins.md loads as a drop-in, wants its file and does its side work."""
    source = re.search(r"```python\n(.*?)```", (DOCS / "plugins.md").read_text(), re.DOTALL)[1]
    (tmp_path / "greeter.py").write_text(source)
    plugin = next(p for p in hooks.load(drop_in=tmp_path).plugins if p.name == "greeter")
    node = Node(1, "node1.example.org", "192.0.2.1", instance="t")
    sliver = Sliver("a_b", 7, Presence.RUN, "plc-instantiated", 0, tags=(Tag("greeting", ("hello",)),))
    ran = []

    class Host:
        def run(self, sliver, argv, *, stdin=None, timeout_s=10):
            ran.append(argv)
            return CompletedRun(0, b"", b"")

    plugin.after_start(sliver, node, Host())

    assert [SliverFile("t.7", "greeting", "hello to node1.example.org\n")] == list(plugin.create(sliver, node))
    assert 1 == len(ran)
    assert len(source.splitlines()) <= 22


def test_plugin_page_names_every_hook():
    """The table of hooks is complete."""
    text = (DOCS / "plugins.md").read_text()

    for hook in ("node", "create", "start", *hooks.EVENTS):
        assert f"`{hook}(" in text
