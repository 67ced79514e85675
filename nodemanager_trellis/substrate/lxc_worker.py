"""The child process that calls LXC's library, and the only ``import lxc``. A program of its own.

python3-lxc holds the interpreter lock while it waits, so it must not live in the manager. Started as
``python -I lxc_worker.py LXCPATH`` in the node's own net namespace (LXC's command socket is an abstract one, seen only
there); reads one JSON request a line, answers one line each, ends with its input. It never starts a container: that
would move *this* process into the monitor's cgroup; ``lxc-start`` does it.

* ``{"op": "states", "names": […]}`` → ``{"states": {name: [state, init_pid]}}``; init_pid is -1 when stopped
* ``{"op": "get", "name": …, "key": …}`` → ``{"value": text or null}``, a cgroup item
* ``{"op": "set", "name": …, "key": …, "value": …}`` → ``{"done": true or false}``
* ``{"op": "list"}`` → ``{"names": […]}``, all defined containers
* ``{"op": "version"}`` → ``{"version": "5.0.2"}``
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import lxc


def answer(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` says."""
    operation = request["op"]
    if operation == "states":
        states = {}
        for name in request["names"]:
            container = lxc.Container(name, path)
            states[name] = [container.state, container.init_pid]
        return {"states": states}
    if operation == "get":
        try:
            return {"value": lxc.Container(request["name"], path).get_cgroup_item(request["key"])}
        except KeyError:
            return {"value": None}
    if operation == "set":
        return {"done": bool(lxc.Container(request["name"], path).set_cgroup_item(request["key"], request["value"]))}
    if operation == "list":
        return {"names": list(lxc.list_containers(active=False, config_path=path))}
    if operation == "version":
        return {"version": lxc.version}
    raise ValueError(f"no such operation {operation!r}")


def main() -> None:
    """Answer until the input ends."""
    path = sys.argv[1]
    # The library may print; what it prints must not land between our answers.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        try:
            result = answer(path, json.loads(line))
        except Exception as err:  # the one fence of this process: a bad request must not end it
            result = {"failed": f"{type(err).__name__}: {err}"}
        output.write(json.dumps(result).encode() + b"\n")
        output.flush()


if __name__ == "__main__":
    main()
