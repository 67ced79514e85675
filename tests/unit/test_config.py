"""The daemon's own file is read strictly."""

import dataclasses
import pathlib

import pytest

from nodemanager_trellis import config
from nodemanager_trellis.errors import InvalidInput

NEEDED = {"plc_url": "https://plc.test/PLCAPI/", "node_id": "12", "node_key": "secret"}


def text(**settings):
    lines = [f"{name} = {value}" for name, value in (NEEDED | settings).items() if value is not None]
    return "\n".join(["[trellis-nm]", *lines])


def refused(content):
    with pytest.raises(InvalidInput) as caught:
        config.parse(content)
    return caught.value.path, caught.value.message


def test_smallest_file():
    """Three settings are enough; the others have defaults."""
    assert config.Config("https://plc.test/PLCAPI/", 12, "secret") == config.parse(text())


def test_every_setting_can_be_set():
    """Each field of Config has a key of its name, converted to its type."""
    values = {
        f.name: {"int": 2, "str": "x", "tuple[str, ...]": ("a", "b")}[f.type] for f in dataclasses.fields(config.Config)
    } | {"plc_url": "http://h/", "instance": "lab-1", "log_level": "DEBUG"}
    written = {name: ", ".join(value) if isinstance(value, tuple) else value for name, value in values.items()}

    assert config.Config(**values) == config.parse(text(**written))


def test_comments_and_percent_signs():
    """Comments are ignored and nothing is interpolated."""
    found = config.parse("# the node\n; of chic\n" + text(node_key="100%(x)s"))

    assert "100%(x)s" == found.node_key


@pytest.mark.parametrize("missing", NEEDED)
def test_needed_settings(missing):
    """A file without address, id or key of the node is refused by name."""
    assert (f"trellis-nm.{missing}", "must be set") == refused(text(**{missing: None}))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("poll_perod_s", "5", "no such setting"),
        ("node_id", "0", "must be at least 1"),
        ("node_id", "-1", "'-1' is not a whole number"),
        ("node_id", "1.5", "'1.5' is not a whole number"),
        ("node_id", "٣", "is not a whole number"),
        ("node_id", "9" * 50, "is not a whole number"),
        ("plc_url", "ftp://x/", "is not an http or https URL"),
        ("plc_url", "https:///x", "is not an http or https URL"),
        ("plc_url", "", "is not an http or https URL"),
        ("instance", "a.b", "must be 1 to 16"),
        ("instance", "", "must be 1 to 16"),
        ("instance", "x" * 17, "must be 1 to 16"),
        ("instance", "-x", "must be 1 to 16"),
        ("link_group", "0", "group 0 is every other device"),
        ("link_group", "2147483648", "must be 1..2147483647"),
        ("start_parallel", "0", "must be 1..32"),
        ("start_parallel", "33", "must be 1..32"),
        ("poll_period_s", "0", "must be at least 1 second"),
        ("plc_timeout_s", "0", "must be at least 1 second"),
        ("hook_timeout_s", "0", "must be at least 1 second"),
        ("long_poll_s", "301", "must be at most 300 seconds"),
    ],
)
def test_wrong_settings(name, value, sentence):
    """A wrong value is refused with the setting's name."""
    path, message = refused(text(**{name: value}))

    assert f"trellis-nm.{name}" == path
    assert sentence in message


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no section",
        "[other]\na = 1\n",
        text() + "\n[more]\n",
        text() + "\nnode_id = 13\n",
        text() + "\nnot a setting\n",
        "[trellis-nm\n",
    ],
)
def test_wrong_files(content):
    """What is not one section of unique settings is refused as a whole."""
    path, message = refused(content)

    assert "" == path
    assert "\n" not in message


def test_long_poll_may_be_off():
    """Zero switches the long poll off."""
    assert 0 == config.parse(text(long_poll_s="0")).long_poll_s


def test_disabled_plugins():
    """Names are separated by blanks or commas."""
    assert ("a", "b", "c") == config.parse(text(disabled_plugins="a, b\n  c")).disabled_plugins
    assert () == config.parse(text(disabled_plugins="")).disabled_plugins


def test_store_path():
    """The store lies in the state directory."""
    assert pathlib.Path("/x/store.sqlite") == config.parse(text(state_dir="/x")).store_path


def test_load(tmp_path):
    """A file is read and checked."""
    (tmp_path / "c").write_text(text())

    assert 12 == config.load(tmp_path / "c").node_id
    assert 12 == config.load(str(tmp_path / "c")).node_id


def test_load_unreadable(tmp_path):
    """A file that cannot be read, or is not UTF-8, is refused with its name."""
    (tmp_path / "c").write_bytes(b"\xff")
    for path in (tmp_path / "none", tmp_path, tmp_path / "c"):
        with pytest.raises(InvalidInput, match=f"cannot read {path}"):
            config.load(path)
