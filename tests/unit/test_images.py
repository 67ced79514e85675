"""Root file systems, as far as they need neither root nor a container."""

from __future__ import annotations

import os
import pathlib

import pytest

from nodemanager_trellis.errors import InvalidInput
from nodemanager_trellis.objects import Container
from nodemanager_trellis.substrate import images


def skeleton(directory: pathlib.Path, **fields: str) -> pathlib.Path:
    container = Container("trellis.5", "princeton_iias", os.geteuid(), **fields)  # type: ignore[arg-type]
    images.create(directory, container, directory / "images")
    return directory / "rootfs"


def test_skeleton_has_what_programs_look_for(tmp_path: pathlib.Path) -> None:
    """Directories, accounts and links of a small system."""
    root = skeleton(tmp_path)
    assert (root / "etc/passwd").read_text().startswith("root:*:0:0:root:/root:/bin/bash\n")
    assert "princeton_iias\n" == (root / "etc/hostname").read_text()
    assert "" == (root / "etc/resolv.conf").read_text()
    assert "/etc/trellis/authorized_keys" == os.readlink(root / "root/.ssh/authorized_keys")
    assert 0o41777 == (root / "tmp").stat().st_mode
    assert 0o40700 == (root / "root").stat().st_mode
    assert os.readlink("/bin").lstrip("/") == os.readlink(root / "bin")
    for path in ("etc/bird", "etc/frr", "run/bird", "run/sshd", "usr", "proc", "sys", "dev", "etc/trellis"):
        assert (root / path).is_dir()
    assert not (root / "etc/shadow").exists()


def test_skeleton_holds_nothing_of_the_hosts(tmp_path: pathlib.Path) -> None:
    """No content of the host's files is copied."""
    root = skeleton(tmp_path)
    assert [] == [p for p in root.rglob("ld.so*") if p.is_file() and p.stat().st_size]
    assert pathlib.Path("/etc/hostname").read_text() != (root / "etc/hostname").read_text()


def test_image_that_is_missing_is_a_warning(tmp_path: pathlib.Path) -> None:
    """The default image takes the place of one that is not there."""
    container = Container("trellis.5", "x", os.geteuid(), image="lxc-f35-x86_64")
    assert "lxc-f35-x86_64" in images.create(tmp_path, container, tmp_path / "images")
    assert (tmp_path / "rootfs/etc").is_dir()


@pytest.mark.parametrize("image", ["", "..", ".", "../etc", "a/b", "-x", "a" * 65, "a\nb", "a:b"])
def test_image_name_leads_nowhere_else(tmp_path: pathlib.Path, image: str) -> None:
    """A name that is more than a name is refused."""
    with pytest.raises(InvalidInput):
        images.find_image(tmp_path, image)


def test_image_is_a_directory_below_images(tmp_path: pathlib.Path) -> None:
    """default is none; a file is none."""
    (tmp_path / "f35").mkdir()
    (tmp_path / "file").touch()
    assert [None, tmp_path / "f35", None] == [images.find_image(tmp_path, n) for n in ("default", "f35", "file")]


def test_mount_point_is_told_from_a_directory(tmp_path: pathlib.Path) -> None:
    """/proc is one, a directory and nothing are none."""
    assert images.is_mount_point(pathlib.Path("/proc"))
    assert not images.is_mount_point(tmp_path)
    assert not images.is_mount_point(tmp_path / "nothing")


def test_remove_tree_copes_with_depth(tmp_path: pathlib.Path) -> None:
    """Deeper than Python recurses, longer than a path may be."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    images.remove_tree(top)
    assert not top.exists()
    images.remove_tree(top)
