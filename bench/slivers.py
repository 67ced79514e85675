"""How fast slivers are made: pairs of namespaces, definitions, starts, stops. Needs root and LXC.

    python bench/slivers.py [COUNT [PARALLEL]]

Everything is made below a temporary directory, under an instance name of its own, and taken away again.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

from nodemanager_trellis.objects import Container, NamespacePair, Running, SliverFile
from nodemanager_trellis.substrate.lxc import drivers
from nodemanager_trellis.substrate.pairs import PairDriver, PairHelper
from nodemanager_trellis.substrate.settings import Settings

UID_BASE = 0x4000_0000


def rss_kib(pid: int) -> int:
    """Resident memory of a process."""
    return int(pathlib.Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0])


def main() -> None:
    """Print one line a step."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    parallel = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    top = pathlib.Path(tempfile.mkdtemp(prefix="trellis-bench-"))
    top.chmod(0o755)
    settings = Settings(f"b{os.getpid()}", top / "state", top / "run", netns_dir=top / "netns", start_parallel=parallel)
    helper = PairHelper(settings)
    pairs = PairDriver(settings, helper)
    host, containers, running, files = drivers(settings, helper)
    names = [f"{settings.instance}.{n}" for n in range(1, count + 1)]
    bases = {name: UID_BASE + n * 65536 for n, name in enumerate(names)}
    wanted_pairs = [NamespacePair(n, bases[n]) for n in names]
    wanted = [Container(n, "bench", bases[n], memory_bytes=64 << 20, cpu_quota_pct=50) for n in names]
    changed = [Container(n, "bench", bases[n], memory_bytes=96 << 20, cpu_quota_pct=60) for n in names]
    given = [SliverFile(n, "authorized_keys", "ssh-ed25519 AAAA\n", 0o600) for n in names]
    run = [Running(n) for n in names]

    def measure(step: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        took_ms = (time.perf_counter() - start) * 1000
        print(f"{step:32} {took_ms:9.1f} ms {took_ms / count:8.2f} ms each", flush=True)

    print(f"{count} slivers, {parallel} starts at a time")
    try:
        measure("pairs", lambda: pairs.ensure(wanted_pairs, {}))
        measure("define", lambda: containers.ensure(wanted, {}))
        measure("files", lambda: files.ensure(given, {}))
        measure("start", lambda: running.ensure(run, {}))
        measure("read everything", lambda: [d.read() for d in (pairs, containers, files, running)])
        measure("attach true", lambda: [host.attach(n, ["/bin/true"]) for n in names])
        measure("change limits live", lambda: containers.ensure(changed, {}))
        assert len(running.read()) == count
        print(f"{'helper, worker resident':32} {rss_kib(helper.pid)} KiB, {rss_kib(host.worker.pid)} KiB")
        measure("stop", lambda: running.absent(run))
        measure("start again", lambda: running.ensure(run, {}))
        measure("stop again", lambda: running.absent(run))
        measure("destroy", lambda: containers.absent(changed))
        measure("drop pairs", lambda: pairs.absent(wanted_pairs))
    finally:
        containers.absent(containers.read())
        pairs.absent(pairs.read())
        host.close()
        helper.close()
        shutil.rmtree(top)


if __name__ == "__main__":
    main()
