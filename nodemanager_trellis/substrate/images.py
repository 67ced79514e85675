"""Root file systems of slivers.

* ``default``: a private skeleton (``/etc``, ``/root``, ``/var`` …, about 100 KiB) and the host's ``/usr``, read-only.
  Nothing to download, nothing shared that can be written.
* any other image: ``<state_dir>/images/NAME``, a directory tree owned by the host's root, shared by all slivers as the
  lower layer of an overlay. It is mapped to each sliver's own uids by an idmapped mount (Linux ≥ 5.19), never copied.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import os
import pathlib
import re
import subprocess
import sys

from nodemanager_trellis.errors import InvalidInput, SubstrateError, Unsupported
from nodemanager_trellis.objects import Container
from nodemanager_trellis.substrate.child import ENVIRONMENT

DEFAULT = "default"

MS_RDONLY = 1
MS_REMOUNT = 32
MS_BIND = 4096
MNT_DETACH = 2
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE_CLOEXEC = 0x1 | 0x80000
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x100000
_STATX_ATTR_MOUNT_ROOT = 0x2000
"""include/uapi/linux/mount.h; the system call numbers are the same on every 64-bit architecture"""

_libc = ctypes.CDLL(None, use_errno=True)

_HOST_TREES = ("etc/alternatives", "etc/ld.so.conf.d", "etc/iproute2")
_HOST_FILES = ("etc/ld.so.cache", "etc/ld.so.conf", "etc/protocols", "etc/services")
"""Of the host's ``/etc``, shown read-only beside its ``/usr``: without them programs do not find their parts."""

# Each costs about 0.1 ms, most of what making a sliver's files takes: only what some program would miss.
_DIRECTORIES: tuple[tuple[str, int], ...] = (
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/bird", 0o755),
    ("etc/frr", 0o755),
    ("etc/ssh", 0o755),
    ("etc/trellis", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("root/.ssh", 0o700),
    ("run", 0o755),
    ("run/bird", 0o755),
    ("run/frr", 0o755),
    ("run/lock", 0o1777),
    ("run/sshd", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/lib/frr", 0o755),
    ("var/log", 0o755),
    ("var/log/frr", 0o755),
    ("var/tmp", 0o1777),
)

_SYMLINKS: tuple[tuple[str, str], ...] = (
    ("etc/mtab", "/proc/self/mounts"),
    ("root/.ssh/authorized_keys", "/etc/trellis/authorized_keys"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
)

_ACCOUNTS: tuple[tuple[str, int], ...] = (
    ("root", 0),
    ("daemon", 1),
    ("sshd", 101),
    ("tcpdump", 102),
    ("bird", 103),
    ("frr", 104),
    ("nobody", 65534),
)
_GROUPS: tuple[tuple[str, int], ...] = (*_ACCOUNTS[:-1], ("tty", 5), ("frrvty", 105), ("nogroup", 65534))


def _file_texts(hostname: str) -> tuple[tuple[str, str], ...]:
    # '*' is no password, yet not a locked account: sshd lets root in by key. There is no /etc/shadow.
    passwd = "root:*:0:0:root:/root:/bin/bash\n"
    passwd += "".join(f"{name}:*:{number}:{number}::/:/usr/sbin/nologin\n" for name, number in _ACCOUNTS[1:])
    return (
        ("etc/passwd", passwd),
        ("etc/group", "".join(f"{n}:x:{i}:\n" for n, i in _GROUPS)),
        ("etc/hostname", f"{hostname}\n"),
        ("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n::1 localhost ip6-localhost\n"),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
        ("etc/resolv.conf", ""),
        ("etc/profile", 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin\nPS1="\\u@\\h:\\w\\\\$ "\n'),
        (
            "etc/ssh/sshd_config",
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n"
            "AuthorizedKeysFile .ssh/authorized_keys\nSubsystem sftp internal-sftp\n",
        ),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Rootfs:
    """What a container's configuration says about its root file system."""

    path: str
    """value of ``lxc.rootfs.path``"""
    mounts: tuple[str, ...]
    """values of ``lxc.mount.entry``"""
    init: str
    """program that LXC starts inside, its own little init"""


def find_image(images_dir: pathlib.Path, image: str) -> pathlib.Path | None:
    """Directory of an image; None stands for the default one, also for an image that is not there.

    :raises InvalidInput: not the name of an image
    """
    if image == DEFAULT:
        return None
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", image, re.ASCII):
        raise InvalidInput(f"{image[:80]!r} is not the name of an image")
    directory = images_dir / image
    return directory if directory.is_dir() else None


def create(directory: pathlib.Path, container: Container, images_dir: pathlib.Path) -> str:
    """Make the root file system in the container's own, empty ``directory``; return a warning, or ''.

    :raises SubstrateError: the file system refused
    """
    try:
        if container.image == DEFAULT or find_image(images_dir, container.image) is None:
            _create_skeleton(directory / "rootfs", container)
        else:
            _create_layers(directory, container)
    except OSError as err:
        raise SubstrateError(container.title, "create", err.errno or 0, f"root file system: {err.filename}") from err
    if container.image != DEFAULT and (directory / "rootfs").exists():
        return f"image {container.image} is not in {images_dir}, the default image is used"
    return ""


def _create_skeleton(root: pathlib.Path, container: Container) -> None:
    top = os.fspath(root)
    owner = container.uid_base

    def directory(path: str, mode: int) -> None:
        full = f"{top}/{path}" if path else top
        os.mkdir(full)
        os.chown(full, owner, owner)
        os.chmod(full, mode)

    def text(path: str, content: str) -> None:
        fd = os.open(f"{top}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.fchown(fd, owner, owner)
            os.write(fd, content.encode())
        finally:
            os.close(fd)

    def symlink(path: str, target: str) -> None:
        os.symlink(target, f"{top}/{path}")
        os.lchown(f"{top}/{path}", owner, owner)

    directory("", 0o755)
    for path, mode in _DIRECTORIES:
        directory(path, mode)
    for path in _HOST_TREES:
        directory(path, 0o755)
    for path in _HOST_FILES:
        text(path, "")
    for path, content in _file_texts(container.hostname):
        text(path, content)
    for path, target in _SYMLINKS:
        symlink(path, target)
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):  # as this host has them, all into /usr
        if os.path.islink(f"/{name}"):
            symlink(name, os.readlink(f"/{name}").lstrip("/"))


def _create_layers(directory: pathlib.Path, container: Container) -> None:
    """Upper layer with the link to the keys, and overlay's work directory where LXC wants it.

    LXC, already without our rights, could not make that itself: the container's own directory is root's.
    """
    owner = container.uid_base
    for path, mode in (("delta", 0o755), ("delta/root", 0o700), ("delta/root/.ssh", 0o700), ("work", 0o755)):
        os.mkdir(directory / path)
        os.chown(directory / path, owner, owner)
        os.chmod(directory / path, mode)
    link = directory / "delta/root/.ssh/authorized_keys"
    link.symlink_to("/etc/trellis/authorized_keys")
    os.lchown(link, owner, owner)


def lower_dir(run_dir: pathlib.Path, name: str) -> pathlib.Path:
    """Where a sliver's idmapped view of its image is mounted."""
    return run_dir / "lower" / name


def describe(directory: pathlib.Path, name: str, run_dir: pathlib.Path) -> Rootfs:
    """What :func:`create` made, for the configuration."""
    init = next((i for i in ("/usr/sbin/init.lxc.static", "/usr/sbin/init.lxc") if os.path.exists(i)), "")
    if not init:
        raise Unsupported("LXC's init (/usr/sbin/init.lxc) is not installed")
    if (directory / "delta").is_dir():
        path = f"overlay:{lower_dir(run_dir, name)}:{directory / 'delta'}"
        return Rootfs(path, (f"{init} usr/sbin/init.lxc none bind,ro,create=file 0 0",), "/usr/sbin/init.lxc")
    mounts = ["/usr usr none bind,ro 0 0"]
    shown = [path for path in (*_HOST_TREES, *_HOST_FILES) if os.path.exists(f"/{path}")]
    mounts += [f"/{path} {path} none bind,ro 0 0" for path in shown]
    return Rootfs(f"dir:{directory / 'rootfs'}", tuple(mounts), init)


def prepare(
    directory: pathlib.Path, container: Container, images_dir: pathlib.Path, run_dir: pathlib.Path, userns: pathlib.Path
) -> None:
    """Mount what a start needs and a reboot takes away: the idmapped image. Nothing for the default image."""
    if not (directory / "delta").is_dir():
        return
    target = lower_dir(run_dir, container.name)
    if is_mount_point(target):
        return
    image = find_image(images_dir, container.image)
    if image is None:
        raise SubstrateError(container.title, "start", errno.ENOENT, f"image {container.image} is gone")
    target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    target.mkdir(mode=0o755, exist_ok=True)
    _mount_idmapped(image, target, userns)


def clean(name: str, run_dir: pathlib.Path) -> None:
    """Undo :func:`prepare`."""
    release(lower_dir(run_dir, name))


def is_mount_point(path: pathlib.Path) -> bool:
    """Whether anything is mounted on ``path``, asked of the kernel (statx(2), Linux ≥ 5.8).

    ``os.path.ismount`` says no to a directory bound over one of the same file system.
    """
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(ctypes.c_int(_AT_FDCWD), os.fsencode(path), 0, 0, buffer) != 0:
        if ctypes.get_errno() in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise SubstrateError(str(path), "look at", ctypes.get_errno())
    attributes, mask = (int.from_bytes(buffer.raw[at : at + 8], sys.byteorder) for at in (8, 56))
    if not mask & _STATX_ATTR_MOUNT_ROOT:
        raise Unsupported("statx(2) does not tell mount points: Linux 5.8 or newer is needed")
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT)


def bind_readonly(source: pathlib.Path, target: pathlib.Path) -> None:
    """Afterwards ``target`` shows ``source``, read-only.

    A user namespace cannot lift this: it gets the mount with the flag locked (mount_namespaces(7)).
    """
    if is_mount_point(target):
        return
    target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    target.mkdir(mode=0o755, exist_ok=True)
    for what, flags in ((source, MS_BIND), (pathlib.Path("none"), MS_BIND | MS_REMOUNT | MS_RDONLY)):
        if _libc.mount(os.fsencode(what), os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
            code = ctypes.get_errno()
            release(target)
            raise SubstrateError(str(target), "mount", code)


def release(target: pathlib.Path) -> None:
    """Afterwards nothing is mounted on ``target`` and it is gone."""
    if not target.exists():
        return
    while _libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)) == 0:
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):
        raise SubstrateError(str(target), "umount", ctypes.get_errno())
    with contextlib.suppress(FileNotFoundError):
        target.rmdir()


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


def _mount_idmapped(source: pathlib.Path, target: pathlib.Path, userns: pathlib.Path) -> None:
    """Show ``source`` at ``target``, read-only, its uid 0 as that of user namespace ``userns`` (mount_setattr(2))."""

    def call(number: int, *arguments: object) -> int:
        result = int(_libc.syscall(ctypes.c_long(number), *arguments))
        if result < 0:
            code = ctypes.get_errno()
            if code in (errno.ENOSYS, errno.EINVAL):
                raise Unsupported(f"idmapped mount of {source}: not with this kernel or file system")
            raise SubstrateError(str(source), "idmap", code)
        return result

    path = ctypes.c_char_p(os.fsencode(source))
    tree = call(_NR_OPEN_TREE, ctypes.c_int(_AT_FDCWD), path, ctypes.c_uint(_OPEN_TREE_CLONE_CLOEXEC))
    try:
        user_fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            attributes = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY, userns_fd=user_fd)
            call(
                _NR_MOUNT_SETATTR,
                ctypes.c_int(tree),
                ctypes.c_char_p(b""),
                ctypes.c_uint(_AT_EMPTY_PATH),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            )
        finally:
            os.close(user_fd)
        call(
            _NR_MOVE_MOUNT,
            ctypes.c_int(tree),
            ctypes.c_char_p(b""),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        )
    finally:
        os.close(tree)


def remove_tree(path: pathlib.Path) -> None:
    """Afterwards ``path`` and all below it are gone; stays on its file system, copes with any depth of directories."""
    done = subprocess.run(
        ["rm", "-rf", "--one-file-system", "--", os.fspath(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        check=False,
    )
    if os.path.lexists(path):
        raise SubstrateError(str(path), "delete", detail=done.stderr.decode(errors="replace").strip()[-300:])
