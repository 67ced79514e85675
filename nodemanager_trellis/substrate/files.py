"""Small files that the root context gives to slivers: ``/etc/trellis/…`` inside, read-only there.

On the host they lie in ``<slivers_dir>/NAME/trellis``, owned by the sliver's root, as sshd wants it of
``authorized_keys``. The sliver sees that directory through a mount that is read-only for good; still every step here
goes relative to an open directory and follows no link: nothing a sliver might put there leads anywhere else.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Mapping, Sequence

from nodemanager_trellis import names
from nodemanager_trellis.errors import InvalidInput, NotOurs, SubstrateError
from nodemanager_trellis.objects import Key, SliverFile
from nodemanager_trellis.substrate.pairs import raise_all, raise_first
from nodemanager_trellis.substrate.settings import Settings

SUBDIRECTORY = "trellis"
LARGEST_BYTES = 1 << 20
_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,99}", re.ASCII)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[int]:
    fd = os.open(path, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class FileDriver:
    """Writes, removes and reads :class:`SliverFile`."""

    kind = SliverFile.kind

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def _directory(self, container: str) -> pathlib.Path:
        if names.slice_id_of(self._settings.instance, container) is None:
            raise NotOurs(f"{container} is not a sliver of instance {self._settings.instance}")
        return self._settings.slivers_dir / container / SUBDIRECTORY

    def read(self) -> list[SliverFile]:
        """All files of all slivers. What is none of ours to give (a link, a directory, a strange owner) has mode 0."""
        found: list[SliverFile] = []
        try:
            containers = sorted(os.listdir(self._settings.slivers_dir))
        except FileNotFoundError:
            return found
        for container in containers:
            if names.slice_id_of(self._settings.instance, container) is None:
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError), _opened(self._directory(container)) as fd:
                for filename in sorted(os.listdir(fd)):
                    if _NAME.fullmatch(filename):
                        found.append(_read(fd, container, filename))
        return found

    def ensure(self, wanted: Sequence[SliverFile], actual: Mapping[Key, SliverFile]) -> None:
        """Afterwards each file has this content, at once for a running sliver: old or new, never half."""
        for file in wanted:
            if not _NAME.fullmatch(file.filename):
                raise InvalidInput(f"{file.filename[:80]!r} is not the name of a sliver's file")
            if len(file.content) > LARGEST_BYTES or file.mode & ~0o777:
                raise InvalidInput(f"{file.title}: longer than {LARGEST_BYTES} bytes, or more in its mode than 0777")
        errors: list[Exception] = []
        for file in wanted:
            try:
                with _opened(self._directory(file.container)) as fd:
                    if _read(fd, file.container, file.filename) != file:
                        _write(fd, file)
            except OSError as err:
                errors.append(SubstrateError(file.title, "write", err.errno or 0))
        raise_first(errors)

    def absent(self, objects: Sequence[SliverFile]) -> None:
        """Afterwards none of the files exists."""
        errors: list[Exception] = []
        for file in objects:
            try:
                with _opened(self._directory(file.container)) as fd:
                    _unlink(fd, file.filename)
            except FileNotFoundError:
                continue
            except OSError as err:
                errors.append(SubstrateError(file.title, "delete", err.errno or 0))
        raise_all("removing files of slivers", errors)


def _read(directory: int, container: str, filename: str) -> SliverFile:
    foreign = SliverFile(container, filename, "", 0)
    try:
        fd = os.open(filename, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return foreign
    try:
        status = os.fstat(fd)
        owner = os.fstat(directory)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return foreign
        if (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid) or status.st_size > 4 * LARGEST_BYTES:
            return foreign
        data = b""
        while chunk := os.read(fd, 1 << 16):
            data += chunk
            if len(data) > 4 * LARGEST_BYTES:
                return foreign
    except OSError:
        return foreign
    finally:
        os.close(fd)
    return SliverFile(container, filename, data.decode(errors="surrogateescape"), stat.S_IMODE(status.st_mode))


def _write(directory: int, file: SliverFile) -> None:
    """New file beside it, then rename over it."""
    temporary = f".{file.filename}.new"
    _unlink(directory, temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        owner = os.fstat(directory)
        data = memoryview(file.content.encode(errors="surrogateescape"))
        while data:
            data = data[os.write(fd, data) :]
        os.fchown(fd, owner.st_uid, owner.st_gid)
        os.fchmod(fd, file.mode)
    except BaseException:
        _unlink(directory, temporary)
        raise
    finally:
        os.close(fd)
    try:
        os.rename(temporary, file.filename, src_dir_fd=directory, dst_dir_fd=directory)
    except IsADirectoryError:
        _unlink(directory, file.filename)
        os.rename(temporary, file.filename, src_dir_fd=directory, dst_dir_fd=directory)


def _unlink(directory: int, filename: str) -> None:
    """Afterwards nothing of that name is in the directory; an own directory only if it is empty."""
    try:
        os.unlink(filename, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.rmdir(filename, dir_fd=directory)
