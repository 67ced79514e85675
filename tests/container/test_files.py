"""Files of slivers: visible at once, read-only inside, safe from whatever lies in their place."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
from container_world import Running, SliverFile, World

from nodemanager_trellis.errors import InvalidInput, NotOurs


def test_files_trio(world: World) -> None:
    """What read returns equals what ensure was given; ensure twice is ensure once; absent of nothing is success."""
    world.define(world.container(1), world.container(2))
    wanted = [
        SliverFile(world.name(1), "authorized_keys", "ssh-ed25519 AAAA someone\n", 0o600),
        SliverFile(world.name(1), "initscript", "#!/bin/sh\necho ä\n", 0o755),
        SliverFile(world.name(2), "empty", ""),
    ]
    world.files.absent(wanted)
    world.files.ensure(wanted, {})
    assert wanted == world.files.read()
    path = world.host.directory(world.name(1)) / "trellis/initscript"
    inode = path.stat().st_ino
    world.files.ensure(wanted, {f.key: f for f in wanted})
    assert inode == path.stat().st_ino
    assert world.pair(1).uid_base == path.stat().st_uid
    world.files.absent(wanted[1:])
    assert wanted[:1] == world.files.read()


def test_file_change_is_visible_inside_at_once(world: World) -> None:
    """A running sliver sees new, changed and removed files."""
    name = world.sliver()
    file = SliverFile(name, "authorized_keys", "one\n", 0o600)
    for content in ("one\n", "two\n"):
        file = dataclasses.replace(file, content=content)
        world.files.ensure([file], {})
        assert content.encode() == world.sh(name, "cat /root/.ssh/authorized_keys").stdout
    assert b"0 600\n" == world.sh(name, "stat -c '%u %a' /etc/trellis/authorized_keys").stdout
    world.files.absent([file])
    assert 0 != world.sh(name, "cat /etc/trellis/authorized_keys").returncode


def test_file_cannot_be_changed_inside(world: World) -> None:
    """Not even by remounting: the flag is locked."""
    name = world.sliver()
    world.files.ensure([SliverFile(name, "node", "x\n")], {})
    for script in (
        "echo y > /etc/trellis/node",
        "rm -f /etc/trellis/node",
        "mount -o remount,rw,bind /etc/trellis",
        "mkdir /tmp/m && mount --bind /etc/trellis /tmp/m && mount -o remount,rw,bind /tmp/m",
    ):
        assert 0 != world.sh(name, script).returncode, script
    assert [SliverFile(name, "node", "x\n")] == world.files.read()


def test_file_inside_satisfies_sshd(world: World) -> None:
    """As the sliver sees it, all of the keys' path belongs to root and only root writes there (StrictModes)."""
    name = world.sliver()
    world.files.ensure([SliverFile(name, "authorized_keys", "k\n", 0o600)], {})
    done = world.sh(name, "stat -c '%u %A' /etc/trellis/authorized_keys /etc/trellis /etc / /root /root/.ssh")
    for line in done.stdout.decode().splitlines():
        owner, mode = line.split()
        assert "0" == owner and "w" not in (mode[5], mode[8]), done.stdout


@pytest.mark.parametrize("trap", ["symlink", "directory symlink", "hard link", "fifo", "directory", "owner"])
def test_file_is_put_right_whatever_lies_in_its_place(world: World, trap: str, tmp_path: object) -> None:
    """Nothing outside is read or written; read does not take it for ours, ensure puts ours there."""
    world.define(world.container())
    file = SliverFile(world.name(5), "node", "x\n")
    path = world.host.directory(file.container) / "trellis/node"
    victim = world.settings.state_dir / "victim"
    victim.write_text("x\n")
    if trap == "symlink":
        path.symlink_to(victim)
        path.with_name(".node.new").symlink_to(victim)
    elif trap == "directory symlink":
        path.symlink_to("/etc")
    elif trap == "hard link":
        os.link(victim, path)
    elif trap == "fifo":
        os.mkfifo(path)
    elif trap == "directory":
        path.mkdir()
    else:
        path.write_text("x\n")
    status = victim.stat()
    assert [file] != world.files.read()
    world.files.ensure([file], {})
    assert [file] == world.files.read()
    assert (status.st_uid, "x\n") == (victim.stat().st_uid, victim.read_text())
    victim.unlink()


def test_file_with_a_bad_name_is_refused(world: World) -> None:
    """No path, no hidden file."""
    world.define(world.container())
    for filename in ("../config", ".x", "a/b", "", "A"):
        with pytest.raises(InvalidInput):
            world.files.ensure([SliverFile(world.name(5), filename, "x")], {})
    with pytest.raises(NotOurs):
        world.files.ensure([SliverFile("somebody.5", "node", "x")], {})


def test_files_outlive_restart_and_reboot(world: World) -> None:
    """After a stop, and after everything below run_dir is gone as by a reboot, the next start shows them."""
    name = world.sliver()
    world.files.ensure([SliverFile(name, "node", "x\n")], {})
    world.running.absent([Running(name)])
    from nodemanager_trellis.substrate import images, lxc

    images.release(lxc.files_mount(world.settings, name))
    world.pairs.absent([world.pair()])
    shutil.rmtree(world.settings.run_dir / "files")
    world.pairs.ensure([world.pair()], {})
    world.running.ensure([Running(name)], {})
    assert b"x\n" == world.sh(name, "cat /etc/trellis/node").stdout
