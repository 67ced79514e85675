"""A node manager that manages nothing: it reads its file, says that it is ready, and waits for its end.

``FAKE_MANAGER_FAILS`` in the environment makes it end at once with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import sys

from nodemanager_trellis import config


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--purge", action="store_true")
    arguments = parser.parse_args()
    settings = config.load(arguments.config)
    pathlib.Path(settings.state_dir, "purged" if arguments.purge else "started").touch()
    if arguments.purge:
        return 0
    if os.environ.get("FAKE_MANAGER_FAILS") == str(settings.node_id):
        print("no kernel today", file=sys.stderr)
        return 1
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    run_dir = pathlib.Path(settings.run_dir)
    (run_dir / "status.json").write_text(json.dumps({"revision": 1, "slivers": {}, "problems": []}))
    (run_dir / "ready").touch()
    signal.sigwait({signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
