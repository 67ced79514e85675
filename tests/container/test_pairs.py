"""Pairs of namespaces: made, read back, repaired, dropped."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pathlib
import select
import signal
import subprocess

import pytest
from container_world import OtherManager, Settings, World, wait_for

from nodemanager_trellis.errors import NotOurs, SubstrateError
from nodemanager_trellis.objects import NamespacePair
from nodemanager_trellis.substrate.pairs import INCOMPLETE


def umount(path: object) -> None:
    assert ctypes.CDLL(None).umount2(os.fsencode(str(path)), 2) == 0


def test_pairs_trio(world: World) -> None:
    """What read returns equals what ensure was given; ensure twice is ensure once; absent of nothing is success."""
    pairs = [world.pair(n) for n in range(1, 41)]
    world.pairs.absent(pairs)
    assert [] == world.pairs.read()
    world.pairs.ensure(pairs, {})
    assert sorted(pairs, key=lambda p: p.name) == world.pairs.read()
    inode = os.stat(world.settings.netns_dir / pairs[0].name).st_ino
    world.pairs.ensure(pairs, {p.key: p for p in pairs})
    assert inode == os.stat(world.settings.netns_dir / pairs[0].name).st_ino
    world.pairs.absent(pairs[:39])
    assert pairs[39:] == world.pairs.read()
    world.pairs.absent(pairs)
    assert [] == world.pairs.read()


def test_pair_has_its_loopback_up_and_belongs_to_the_slivers_root(world: World) -> None:
    """Inside the pair, lo is up and uid 0 is the sliver's first uid on the host."""
    pair = world.pair()
    world.pairs.ensure([pair], {})
    enter = [
        "nsenter",
        f"--user={world.settings.run_dir}/user/{pair.name}",
        f"--net={world.settings.netns_dir}/{pair.name}",
    ]
    text = subprocess.run(
        [*enter, "sh", "-c", "cat /proc/self/uid_map; ip -br link show lo"], check=True, capture_output=True, text=True
    ).stdout
    assert ["0", str(pair.uid_base), "65536"] == text.split()[:3]
    assert "UP" in text.splitlines()[1]


def test_helper_killed_is_replaced(world: World) -> None:
    """After kill -9 of the helper the next request starts another."""
    world.pairs.ensure([world.pair(1)], {})
    before = world.helper.pid
    os.kill(before, signal.SIGKILL)
    world.pairs.ensure([world.pair(2)], {})
    assert before != world.helper.pid
    assert [world.pair(1), world.pair(2)] == world.pairs.read()


def test_helper_that_hangs_is_replaced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that does not answer in time costs an error; the next request works."""
    before = world.helper.pid
    os.kill(before, signal.SIGSTOP)
    with pytest.raises(SubstrateError) as caught:
        world.helper._ask({"op": "drop", "names": []}, 0.2)
    assert errno.ETIMEDOUT == caught.value.errno
    world.pairs.ensure([world.pair()], {})
    assert [world.pair()] == world.pairs.read()


@pytest.mark.parametrize("lost", ["net", "user", "base", "wrong base"])
def test_pair_damaged_is_repaired(world: World, lost: str) -> None:
    """A pair of which a part is missing is not equal to the wanted one, and ensure makes it whole."""
    pair = world.pair()
    world.pairs.ensure([pair], {})
    user = world.settings.run_dir / "user" / pair.name
    if lost == "net":
        umount(world.settings.netns_dir / pair.name)
    elif lost == "user":
        umount(user)
    elif lost == "base":
        user.with_name(f"{pair.name}.base").unlink()
    else:
        user.with_name(f"{pair.name}.base").write_text("1 2 3\n")
    # What only the memory file knows, the kernel is asked for.
    expected = pair.uid_base if "base" in lost else INCOMPLETE
    assert [NamespacePair(pair.name, expected)] == world.pairs.read()
    world.pairs.ensure([pair], {})
    assert [pair] == world.pairs.read()


def test_net_namespace_of_somebody_else_is_left_alone(world: World) -> None:
    """A net namespace under our name that the helper did not make is neither read, replaced nor dropped."""
    path = world.settings.netns_dir / world.pair().name
    path.touch()
    subprocess.run(["unshare", f"--net={path}", "true"], check=True)
    try:
        assert [] == world.pairs.read()
        with pytest.raises(NotOurs):
            world.pairs.ensure([world.pair()], {})
        world.pairs.absent([world.pair()])
        assert path.exists()
    finally:
        umount(path)
        path.unlink()


def test_pair_of_another_instance_is_not_ours(world: World) -> None:
    """A name that this instance does not give is refused, and not read."""
    with pytest.raises(NotOurs):
        world.pairs.ensure([NamespacePair("somebody.5", 100000)], {})


def test_one_pair_that_fails_costs_no_other(world: World) -> None:
    """uids that cannot be mapped fail that pair, and leave nothing of it; the others are made."""
    bad = NamespacePair(world.name(7), 2**32 - 10)
    with pytest.raises(SubstrateError, match=r"t.*\.7"):
        world.pairs.ensure([world.pair(1), bad, world.pair(2)], {})
    assert [world.pair(1), world.pair(2)] == world.pairs.read()


def test_uid_range_does_not_change_under_a_running_sliver(world: World) -> None:
    """A pair in use is not made anew."""
    name = world.sliver()
    with pytest.raises(SubstrateError, match="runs"):
        world.pairs.ensure([NamespacePair(name, world.pair().uid_base + 65536 * 50)], {})
    assert [world.pair()] == world.pairs.read()


def test_helper_stays_small_and_leaks_nothing(world: World) -> None:
    """After a hundred pairs the helper has no more open files and no children."""
    helper = f"/proc/{world.helper.pid}"
    before = len(os.listdir(f"{helper}/fd"))
    for _ in range(5):
        pairs = [world.pair(n) for n in range(1, 21)]
        world.pairs.ensure(pairs, {})
        world.pairs.absent(pairs)
    assert before == len(os.listdir(f"{helper}/fd"))
    assert "" == pathlib.Path(f"{helper}/task/{world.helper.pid}/children").read_text()
    status = pathlib.Path(f"{helper}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 32 * 1024


def test_helper_ends_with_its_manager(world: World) -> None:
    """When the manager's end of the pipe closes the helper goes, the pairs stay."""
    world.pairs.ensure([world.pair()], {})
    pidfd = os.pidfd_open(world.helper.pid)
    process = world.helper._child._process
    assert process is not None and process.stdin is not None
    process.stdin.close()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    wait_for(lambda: process.poll() is not None, "the helper's end")
    assert 0 == process.returncode
    assert [world.pair()] == world.pairs.read()


def test_usual_netns_directory_becomes_a_mount_once(settings: Settings) -> None:
    """However many managers come and go: a mount that doubled each time would stop the machine after thirty."""
    script = """
import dataclasses
settings = dataclasses.replace(settings, netns_dir=pathlib.Path('/run/netns'))
count = lambda: open('/proc/self/mountinfo').read().count(' /run/netns ')
counts = []
for _ in range(4):
    PairHelper(settings).close()
    counts.append(count())
print(counts)
w.close()
"""
    output = OtherManager(settings, script, ["unshare", "--mount"]).output()
    counts = json.loads(output)
    assert counts[0] >= 1 and counts == [counts[0]] * 4
