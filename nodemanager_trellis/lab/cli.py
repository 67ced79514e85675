"""``trellis lab …``: the commands of the lab."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from nodemanager_trellis import logs
from nodemanager_trellis.errors import InvalidInput, TrellisError
from nodemanager_trellis.lab import control, links, topology
from nodemanager_trellis.lab import map as drawing
from nodemanager_trellis.lab.control import DEFAULT_NAME, Lab
from nodemanager_trellis.lab.progress import Progress

_TEXT = "a whole testbed on this machine: nodes, an underlay, PLC and a node manager per node"


def _up(args: argparse.Namespace) -> int:
    topo = topology.resolve(args.topology)
    progress = Progress()
    lab = Lab(args.name)
    try:
        with control.ended_by_sigterm():
            lab.up(topo, progress)
    finally:
        progress.clear()
    option = "" if args.name == DEFAULT_NAME else f" --name {args.name}"
    print(f"lab {args.name} is up: {topo.name}, {len(topo.nodes)} nodes")
    if topo.name == "abilene":
        print(f"  a slice:       trellis lab run{option} -- python3 examples/make_slice.py vini_abilene")
    print(f"  what there is: trellis lab status{option}; trellis lab map{option}")
    print(f"  its end:       trellis lab down{option}")
    return 0


def _down(args: argparse.Namespace) -> int:
    progress = Progress()
    try:
        left = Lab(args.name).down(progress)
    finally:
        progress.clear()
    for what in left:
        print(f"left: {what}", file=sys.stderr)
    if not left:
        print(f"lab {args.name} is down, nothing is left")
    return 1 if left else 0


def _status(args: argparse.Namespace) -> int:
    status = Lab(args.name).status()
    if args.json:
        print(json.dumps(status, indent=1))
        return 0
    plc = status["plc"]
    print(f"lab {status['name']}: {status['topology']['name']}, PLC {plc['url']} {_state(plc['running'])}")
    rows = [("NODE", "ID", "ADDRESS", "MANAGER", "SLIVERS")]
    problems = []
    for name, node in status["nodes"].items():
        slivers = node["status"].get("slivers", {})
        shown = ", ".join(f"{slice_name} {sliver['state']}" for slice_name, sliver in slivers.items())
        rows.append((name, str(node["node_id"]), node["address"], _state(node["running"], node["pid"]), shown or "-"))
        for slice_name, sliver in slivers.items():
            problems += [f"! {name}, {slice_name}: {text}" for text in sliver.get("problems", [])]
        for problem in node["status"].get("problems", []):
            problems.append(f"! {name}: {problem.get('message', problem) if isinstance(problem, dict) else problem}")
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(*problems, sep="\n" if problems else "", end="\n" if problems else "")
    return 0


def _state(running: bool, pid: int | None = None) -> str:
    return (f"runs, pid {pid}" if pid else "runs") if running else "does not run"


def _words(words: Sequence[str]) -> list[str]:
    """The command after ``--``."""
    command = list(words[1:] if words[:1] == ["--"] else words)
    if not command:
        raise InvalidInput("no command given: … -- CMD [ARGUMENT…]")
    return command


def _exec(args: argparse.Namespace) -> int:
    command = Lab(args.name).sliver_command(args.node, args.slice, _words(args.command))
    os.execvp(command[0], command)


def _run(args: argparse.Namespace) -> int:
    lab = Lab(args.name)
    command = lab.outside_command(_words(args.command))
    os.execvpe(command[0], command, lab.environment())


def _map(args: argparse.Namespace) -> int:
    lab = Lab(args.name)
    topo = lab.record().topology
    found = links.states(lab, args.slice, args.interval)
    if args.json:
        document: list[dict[str, Any]] = [{**dataclasses.asdict(state), "use": state.use()} for state in found]
        print(json.dumps({"topology": topo.document(), "links": document}, indent=1))
    if args.svg:
        text = drawing.svg(topo, found, f"{topo.name} (lab {args.name})")
        pathlib.Path(args.svg).write_text(text, encoding="utf-8")
        print(f"{args.svg} written", file=sys.stderr)
    if not args.json and not args.svg:
        print(drawing.picture(topo))
        print(drawing.table(topo, found), end="")
    return 0


def _kill(args: argparse.Namespace) -> int:
    if bool(args.nodes) == args.all:
        raise InvalidInput("name the nodes, or say --all")
    killed = Lab(args.name).kill(args.nodes)
    print(f"killed the node managers of {', '.join(killed) or 'no node: none ran'}")
    return 0


def _restart(args: argparse.Namespace) -> int:
    progress = Progress()
    try:
        started = Lab(args.name).restart(args.nodes, progress)
    finally:
        progress.clear()
    print(f"started the node managers of {', '.join(started) or 'no node: all run'}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from nodemanager_trellis.lab import demo

    return demo.run(args.name, args.topology, pathlib.Path(args.report), keep=args.keep, json_file=args.json)


def add_parser(subparsers: Any) -> None:
    """Add ``lab`` to the commands of ``trellis``; ``args.run(args)`` returns the exit status."""
    top = subparsers.add_parser("lab", help=_TEXT, description=_TEXT)
    commands = top.add_subparsers(dest="lab_command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--name", default=DEFAULT_NAME, help="which lab (default: %(default)s)")
        sub.set_defaults(run=run)
        return sub

    up = command("up", _up, "bring a lab up")
    up.add_argument("--topology", default="abilene", metavar="WHAT", help="abilene, line:N, ring:N, grid:RxC or a file")
    command("status", _status, "nodes, node managers and slivers").add_argument("--json", action="store_true")
    inside = command("exec", _exec, "run a command as root inside a sliver")
    inside.add_argument("node")
    inside.add_argument("slice")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD")
    outside = command("run", _run, "run a command where PLC can be reached (TRELLIS_PLC_URL, _USER, _PASSWORD are set)")
    outside.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD")
    chart = command("map", _map, "draw the network, asked and used rates")
    chart.add_argument("--svg", metavar="FILE", help="write an SVG drawing")
    chart.add_argument("--json", action="store_true")
    chart.add_argument("--slice", default="", help="whose links (default: the only slice)")
    chart.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="how long to watch (default: %(default)s)"
    )
    kill = command("kill", _kill, "SIGKILL node managers; slivers run on")
    kill.add_argument("nodes", nargs="*", metavar="NODE")
    kill.add_argument("--all", action="store_true")
    restart = command("restart", _restart, "start node managers that do not run")
    restart.add_argument("nodes", nargs="*", metavar="NODE")
    restart.add_argument("--all", action="store_true", help="the default")
    command("down", _down, "take a lab down; nothing is left")
    demo = command("demo", _demo, "the whole show: a slice on Abilene, measured, disturbed, and taken down")
    demo.add_argument("--topology", default="abilene", metavar="WHAT")
    demo.add_argument("--report", default="lab-report", metavar="DIR", help="where the maps go (default: %(default)s)")
    demo.add_argument("--keep", action="store_true", help="leave the lab up")
    demo.add_argument("--json", metavar="FILE", help="write the report as JSON too")


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m nodemanager_trellis.lab``: the lab's commands alone."""
    parser = argparse.ArgumentParser(prog="trellis")
    add_parser(parser.add_subparsers(required=True, metavar="lab"))
    words = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(words if words[:1] == ["lab"] else ["lab", *words])
    logs.setup("WARNING")
    try:
        return int(args.run(args) or 0)
    except TrellisError as err:
        print(f"trellis lab: {err}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
