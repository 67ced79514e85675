"""``trellis``: thin commands around the library. Each prints for people, or ``--json`` for scripts."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from nodemanager_trellis import __version__, codec, config, hooks, logs, names, units
from nodemanager_trellis.errors import InvalidInput, TrellisError


def _table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """Columns of text, left aligned, two blanks apart."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [head, *rows]
    ]
    return "\n".join(lines)


def _status(args: argparse.Namespace) -> int:
    path = pathlib.Path(config.load(args.config).run_dir, "status.json")
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise TrellisError(f"{path} does not exist: the node manager has not finished a run yet") from err
    if args.json:
        print(json.dumps(status, indent=1))
        return 0
    age = time.time() - status["updated"]
    node = status["node"]
    print(f"node {node['node_id']} {node['hostname']} ({node['address']}), as of {age:.0f} s ago")
    rows = []
    for name, sliver in sorted(status["slivers"].items()):
        links = ", ".join(f"{n} {units.human_rate(v['rate_bps'])}" for n, v in sliver["links"].items())
        rows.append((name, sliver["state"], sliver["container"], links or "-"))
    print(_table(rows, ("SLICE", "STATE", "CONTAINER", "LINKS")))
    for name, sliver in sorted(status["slivers"].items()):
        for text in sliver["problems"]:
            print(f"! {name}: {text}")
    for problem in status["problems"]:
        print(f"! node: {problem['path']} {problem['message']}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from nodemanager_trellis.daemon import prepare, settings_of
    from nodemanager_trellis.reconcile import Reconciler
    from nodemanager_trellis.store import Store
    from nodemanager_trellis.substrate.kernel import LinuxKernel

    conf = config.load(args.config)
    prepare(conf)
    with closing(Store(conf.store_path, read_only=True)) as store, closing(LinuxKernel(settings_of(conf))) as kernel:
        desired = store.desired()
        if desired is None:
            raise TrellisError("no answer of PLC is in force yet, so there is nothing to plan")
        registry = hooks.load(conf.disabled_plugins, pathlib.Path(conf.plugin_dir))
        plan = Reconciler(kernel, registry, store).plan(desired)
    if args.json:
        steps = [
            {
                "owner": part.owner,
                "action": s.action.value,
                "kind": s.object.kind,
                "object": codec.to_plain(s.object),
                "reason": s.reason,
            }
            for part in plan.owners
            for s in part.steps
        ]
        print(json.dumps(steps, indent=1))
    else:
        print(plan.render())
    return 0


def _check(args: argparse.Namespace) -> int:
    from nodemanager_trellis.intake import getslivers

    try:
        answer = json.loads(pathlib.Path(args.file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise InvalidInput(f"cannot read {args.file}: {err}") from err
    desired = getslivers.parse(answer, now=int(time.time()))
    if args.json:
        print(json.dumps(codec.to_plain(desired), indent=1))
    else:
        rows = [(s.name, s.presence.value, str(len(s.links)), s.image) for s in desired.slivers]
        print(_table(rows, ("SLICE", "PRESENCE", "LINKS", "IMAGE")))
        for p in desired.problems:
            print(f"! {p.path}: {p.message}" + (f" (kept: {p.kept})" if p.kept else ""))
    return 1 if desired.problems else 0


def _exec(args: argparse.Namespace) -> int:
    from nodemanager_trellis.daemon import prepare, settings_of
    from nodemanager_trellis.store import Store

    conf = config.load(args.config)
    prepare(conf)
    with closing(Store(conf.store_path, read_only=True)) as store:
        desired = store.desired()
    sliver = desired.sliver(args.slice) if desired else None
    if sliver is None:
        raise TrellisError(f"no sliver of slice {args.slice} on this node")
    lxcpath = str(settings_of(conf).slivers_dir)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    name = names.sliver_id(conf.instance, sliver.slice_id)
    argv = [
        "lxc-attach",
        "-P",
        lxcpath,
        "-n",
        name,
        "--clear-env",
        "-v",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "-v",
        "HOME=/root",
    ]
    os.execvp(argv[0], [*argv, "--", *(command or ["/bin/bash"])])


def _bench(args: argparse.Namespace) -> int:
    from nodemanager_trellis.benchmarks import forwarding

    return int(forwarding.main(args.rest) or 0)


def parser() -> argparse.ArgumentParser:
    """The whole command line of ``trellis``."""
    top = argparse.ArgumentParser(prog="trellis", description="Look at, plan and try a Trellis testbed.")
    top.add_argument("--version", action="version", version=f"trellis {__version__}")
    commands = top.add_subparsers(dest="what", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, with_config: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if with_config:
            sub.add_argument(
                "-f", "--config", default=config.DEFAULT_PATH, help="node's configuration (default: %(default)s)"
            )
        return sub

    command("status", _status, "what runs on this node").add_argument("--json", action="store_true")
    command("plan", _plan, "what the node manager would do next, with reasons").add_argument(
        "--json", action="store_true"
    )
    check = command("check", _check, "check a GetSlivers answer (JSON) with the daemon's own code", with_config=False)
    check.add_argument("file")
    check.add_argument("--json", action="store_true")
    inside = command("exec", _exec, "run a command as root inside a sliver of this node")
    inside.add_argument("slice")
    inside.add_argument("command", nargs=argparse.REMAINDER)
    bench = command("bench", _bench, "measure on this machine (interleaved rounds, CPU per packet)", with_config=False)
    bench.add_argument("benchmark", choices=["forwarding"])
    bench.add_argument("rest", nargs=argparse.REMAINDER)
    from nodemanager_trellis.lab import cli as lab_cli

    lab_cli.add_parser(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``trellis``; returns its exit status."""
    args = parser().parse_args(argv)
    logs.setup("WARNING")
    try:
        return int(args.run(args) or 0)
    except TrellisError as err:
        print(f"trellis: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
