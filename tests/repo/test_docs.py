"""What the documentation shows is tried."""

import dataclasses
import json
import pathlib
import re

from nodemanager_trellis import config, hooks
from nodemanager_trellis.hooks import CompletedRun
from nodemanager_trellis.lab import cli as lab_cli
from nodemanager_trellis.lab import topology
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


def test_example_configuration_is_accepted_and_every_setting_is_told():
    """The configuration printed in docs/operating.md is right, and its table names every setting."""
    text = (DOCS / "operating.md").read_text()
    example = re.search(r"```ini\n(.*?)```", text, re.DOTALL)[1]

    assert 12 == config.parse(example).node_id
    for field in dataclasses.fields(config.Config):
        assert f"`{field.name}`" in text, field.name


def test_example_topology_is_accepted():
    """The topology printed in docs/lab.md is one."""
    example = re.search(r"```json\n(.*?)```", (DOCS / "lab.md").read_text(), re.DOTALL)[1]

    assert (3, 3) == (len((made := topology.parse(json.loads(example))).nodes), len(made.links))


def test_lab_page_names_every_command():
    """Each subcommand of `trellis lab` is in docs/lab.md."""
    import argparse

    top = argparse.ArgumentParser()
    lab_cli.add_parser(top.add_subparsers())
    lab = top._subparsers._group_actions[0].choices["lab"]
    commands = next(a for a in lab._actions if isinstance(a, argparse._SubParsersAction)).choices

    for command in commands:
        assert f"trellis lab {command}" in (DOCS / "lab.md").read_text(), command


def test_links_between_pages_lead_somewhere():
    """Every relative link of README and docs names a file or folder that exists."""
    root = DOCS.parent
    for page in (root / "README.md", *DOCS.glob("*.md"), root / "examples" / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
