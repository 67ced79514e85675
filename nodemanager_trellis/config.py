"""The daemon's own file → one frozen :class:`Config`. Strict: an unknown key or a wrong value is an error naming it.

An INI file with one section::

    [trellis-nm]
    plc_url = https://plc.example.org/PLCAPI/
    node_id = 12
    node_key = 0123456789abcdef
"""

from __future__ import annotations

import configparser
import dataclasses
import pathlib
import re

from nodemanager_trellis.errors import InvalidInput

DEFAULT_PATH = "/etc/trellis/nodemanager.conf"
_SECTION = "trellis-nm"


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """What the operator decides about one node."""

    plc_url: str
    """URL of PLCAPI, ``https://plc.example.org/PLCAPI/``"""
    node_id: int
    node_key: str
    """key of the node at PLC, for the HMAC of GetSession (``NODE_KEY`` of plnode.txt)"""
    plc_ca_file: str = ""
    """CA certificate for https; '' means the system's"""
    slice_prefix: str = "pl"
    poll_period_s: int = 600
    """between two GetSlivers when PLC has no long poll"""
    poll_random_s: int = 301
    long_poll_s: int = 60
    """length of one long poll; 0 switches it off"""
    plc_timeout_s: int = 30
    instance: str = "trellis"
    """prefix of everything this node manager names; one per node manager on a machine"""
    state_dir: str = "/var/lib/trellis"
    run_dir: str = "/run/trellis"
    bpffs: str = "/sys/fs/bpf"
    netns: str = ""
    """path of the net namespace that is this node's root context; '' is the machine's own (a lab sets it)"""
    underlay: str = ""
    """device that carries the tunnels; '' is the one that holds the node's primary address"""
    link_group: int = 32273
    """mark of every device we make (``ip link show group 32273``); never 0"""
    plugin_dir: str = "/etc/trellis/plugins"
    disabled_plugins: tuple[str, ...] = ()
    hook_timeout_s: int = 60
    """for one ``after_*``/``before_stop`` call"""
    start_parallel: int = 4
    log_level: str = "INFO"

    @property
    def store_path(self) -> pathlib.Path:
        """Where the SQLite store lives."""
        return pathlib.Path(self.state_dir, "store.sqlite")


def _convert(name: str, text: str, hint: object) -> object:
    if hint == "int":
        if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
            raise InvalidInput(f"{text[:40]!r} is not a whole number", f"{_SECTION}.{name}")
        return int(text)
    if hint == "tuple[str, ...]":
        return tuple(word for word in re.split(r"[\s,]+", text) if word)
    return text


def parse(text: str) -> Config:
    """Text of the file → Config.

    :raises InvalidInput: syntax, unknown key, wrong value or missing key, with ``trellis-nm.<key>`` as path
    """
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        parser.read_string(text)
    except configparser.Error as err:
        raise InvalidInput(str(err).replace("\n", " ")) from err
    if parser.sections() != [_SECTION]:
        raise InvalidInput(f"expected exactly one section [{_SECTION}], found {parser.sections()}")
    fields = {f.name: f for f in dataclasses.fields(Config)}
    given = dict(parser[_SECTION])
    for name in given:
        if name not in fields:
            raise InvalidInput("no such setting", f"{_SECTION}.{name}")
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            raise InvalidInput("must be set", f"{_SECTION}.{name}")
    config = Config(**{name: _convert(name, text, fields[name].type) for name, text in given.items()})  # type: ignore[arg-type]
    _check(config)
    return config


def _check(config: Config) -> None:
    def refuse(name: str, message: str) -> None:
        raise InvalidInput(message, f"{_SECTION}.{name}")

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,15}", config.instance, re.ASCII):
        refuse("instance", f"{config.instance[:40]!r} must be 1 to 16 of a-z, 0-9 and '-'")
    if not re.match(r"https?://[^/]", config.plc_url):
        refuse("plc_url", f"{config.plc_url[:80]!r} is not an http or https URL")
    if not 0 < config.link_group < 2**31:
        refuse("link_group", "must be 1..2147483647; group 0 is every other device of the machine")
    if config.node_id < 1:
        refuse("node_id", "must be at least 1")
    if not 1 <= config.start_parallel <= 32:
        refuse("start_parallel", "must be 1..32")
    for name in ("poll_period_s", "plc_timeout_s", "hook_timeout_s"):
        if getattr(config, name) < 1:
            refuse(name, "must be at least 1 second")
    if config.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        refuse("log_level", f"{config.log_level[:40]!r} is none of DEBUG, INFO, WARNING, ERROR")
    if config.long_poll_s > 300:
        refuse("long_poll_s", "must be at most 300 seconds")


def load(path: str | pathlib.Path) -> Config:
    """Read and check the file at ``path``.

    :raises InvalidInput: not readable or not right
    """
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise InvalidInput(f"cannot read {path}: {err}") from err
    return parse(text)
