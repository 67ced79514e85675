"""Makes pairs of a user namespace and a net namespace owned by it, keeps them by bind mounts. A program of its own.

Small, one thread, nothing of ours imported: forking is cheap here and dear in the manager. Started as
``python -I -S pair_helper.py USER_DIR NETNS_DIR``; reads one JSON request a line, answers one line each, ends with its
input. Each request says how things shall be and may be repeated:

* ``{"op": "make", "pairs": [[name, uid_base], …]}`` → ``{"errors": {name: [errno, sentence]}}``
* ``{"op": "drop", "names": […]}`` → the same
* ``{"op": "probe", "names": […]}`` → ``{"uid_base": {name: number or null}}``, as the kernel says
* ``{"op": "sysctl", "name": …, "items": [[path, value], …]}`` → ``{"errors": {path: [errno, sentence]}}``
"""

from __future__ import annotations

import ctypes
import errno
import fcntl  # what a child needs is imported here, once, not in each child
import json
import os
import select
import socket
import struct
import sys
from typing import Any

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 4096
MNT_DETACH = 2
UID_COUNT = 65536
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
AT_ONCE = 16
"""Children alive at a time: 200 pairs took 206 ms so, 324 ms one after another."""
CHILD_TIMEOUT_MS = 10_000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def _setns(path: str, kind: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), f"setns {path}")
    finally:
        os.close(fd)


def _bind(source: str, target: str) -> None:
    os.close(os.open(target, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    try:
        _check(_libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(MS_BIND), None), f"mount {target}")
    except OSError:
        os.unlink(target)
        raise


def _release(path: str) -> None:
    """Afterwards nothing is at ``path``: every mount on it is detached, the file is gone."""
    if not os.path.lexists(path):
        return
    while _libc.umount2(path.encode(), ctypes.c_int(MNT_DETACH)) == 0:
        pass
    if ctypes.get_errno() not in (errno.EINVAL, errno.ENOENT):  # EINVAL: not, or no longer, a mount point
        raise OSError(ctypes.get_errno(), f"umount {path}: {os.strerror(ctypes.get_errno())}")
    # unlink also frees it in other mount namespaces, which a umount here does not reach.
    try:  # noqa: SIM105 - contextlib is one more import of a process that shall stay small
        os.unlink(path)
    except FileNotFoundError:
        pass


def _loopback_up() -> None:
    """Set lo up in the present net namespace (struct ifreq, linux/if.h)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


class Child:
    """A forked child that goes into new namespaces step by step, each on our word."""

    def __init__(self, steps: list[Any]) -> None:
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            for fd in (theirs_in, self._to, self._from, theirs_out):
                os.close(fd)
            raise
        if self.pid == 0:
            os.close(self._to)
            os.close(self._from)
            _live(steps, theirs_in, theirs_out)
        os.close(theirs_in)
        os.close(theirs_out)

    def done(self) -> bytes:
        """Wait for the next step's end; its result.

        :raises OSError: the step failed, or the child died or hangs
        """
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        if not poll.poll(CHILD_TIMEOUT_MS):
            raise TimeoutError(errno.ETIMEDOUT, "the child hangs")
        answer = os.read(self._from, 4096)
        if not answer:
            raise OSError(errno.EPIPE, "the child died")
        if answer[:1] == b"E":
            code, _, sentence = answer[1:].decode(errors="replace").partition(" ")
            raise OSError(int(code), sentence)
        return answer[1:]

    def go_on(self) -> None:
        os.write(self._to, b"g")

    def end(self) -> None:
        """Afterwards the child is gone; what it made lives on where it was bound."""
        # Said, not left to the pipe's end: children forked later hold a copy of it.
        try:  # noqa: SIM105
            os.write(self._to, b"e")
        except BrokenPipeError:
            pass
        for fd in (self._to, self._from):
            os.close(fd)
        poll = select.poll()
        pidfd = os.pidfd_open(self.pid)  # ours and not yet reaped: the number cannot be another's
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(CHILD_TIMEOUT_MS):
            os.kill(self.pid, 9)
        os.close(pidfd)
        os.waitpid(self.pid, 0)


def _live(steps: list[Any], wait_fd: int, tell_fd: int) -> None:
    """The child's whole life: step, tell, wait for the word; ends when the word does not come."""
    try:
        for step in steps:
            try:
                result = step() or b""
            except OSError as err:
                os.write(tell_fd, f"E{err.errno or errno.EIO} {err.strerror or err}".encode()[:500])
                break
            os.write(tell_fd, b"." + result)
            if os.read(wait_fd, 1) != b"g":
                break
    finally:
        os._exit(0)


class Helper:
    """Answers requests."""

    def __init__(self, user_dir: str, netns_dir: str) -> None:
        self._user_dir = user_dir
        self._netns_dir = netns_dir

    def _paths(self, name: str) -> tuple[str, str, str]:
        if "/" in name or name.startswith("."):
            raise OSError(errno.EINVAL, "not a name of namespaces")
        return f"{self._user_dir}/{name}", f"{self._netns_dir}/{name}", f"{self._user_dir}/{name}.base"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["op"]
        if operation == "make":
            return {"errors": self.make([(str(n), int(b)) for n, b in request["pairs"]])}
        if operation == "drop":
            return {"errors": self.drop([str(n) for n in request["names"]])}
        if operation == "probe":
            return {"uid_base": {n: self.probe(n) for n in request["names"]}}
        if operation == "sysctl":
            return {"errors": self.sysctl(request["name"], request["items"])}
        raise ValueError(f"no such operation {operation!r}")

    def make(self, pairs: list[tuple[str, int]]) -> dict[str, Any]:
        """Afterwards each pair exists, new: what of it was there before is dropped."""
        errors: dict[str, Any] = {}
        for start in range(0, len(pairs), AT_ONCE):
            self._make_some(pairs[start : start + AT_ONCE], errors)
        return errors

    def _make_some(self, pairs: list[tuple[str, int]], errors: dict[str, Any]) -> None:
        children: list[tuple[str, int, Child]] = []

        def each(work: Any) -> None:
            """Do ``work`` for each child that has not failed yet; a failure is that pair's own."""
            for name, base, child in children:
                if name not in errors:
                    try:
                        work(name, base, child)
                    except OSError as err:
                        errors[name] = [err.errno or errno.EIO, err.strerror or str(err)]

        def new_netns() -> None:
            # After the map, so that its sysfs and proc files belong to the sliver's root.
            _unshare(CLONE_NEWNET)
            _loopback_up()

        try:
            for name, base in pairs:
                try:
                    for path in self._paths(name):
                        _release(path)
                    children.append((name, base, Child([lambda: _unshare(CLONE_NEWUSER), new_netns])))
                except OSError as err:
                    errors[name] = [err.errno or errno.EIO, err.strerror or str(err)]
            each(lambda name, base, child: child.done())
            each(lambda name, base, child: self._map(base, child))
            each(lambda name, base, child: child.go_on())
            each(lambda name, base, child: child.done())
            each(self._keep)
        finally:
            for _name, _base, child in children:
                child.end()
            for name, _base, _child in children:
                if name in errors:
                    self.drop([name])

    @staticmethod
    def _map(base: int, child: Child) -> None:
        for which in ("uid_map", "gid_map"):
            fd = os.open(f"/proc/{child.pid}/{which}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, f"0 {base} {UID_COUNT}\n".encode())
            finally:
                os.close(fd)

    def _keep(self, name: str, base: int, child: Child) -> None:
        """Bind both namespaces, the user namespace first: a bound net namespace alone is never ours."""
        user, net, memory = self._paths(name)
        _bind(f"/proc/{child.pid}/ns/user", user)
        _bind(f"/proc/{child.pid}/ns/net", net)
        # What read() needs, so that it need not fork: base, and the inodes of the namespaces for which it holds.
        text = f"{base} {os.stat(user).st_ino} {os.stat(net).st_ino}\n"
        with open(f"{memory}.new", "w") as file:
            file.write(text)
        os.rename(f"{memory}.new", memory)

    def drop(self, names: list[str]) -> dict[str, Any]:
        """Afterwards none of the pairs is kept; they are gone as soon as nobody lives in them."""
        errors: dict[str, Any] = {}
        for name in names:
            user, net, memory = self._paths(name)
            for path in (net, user, memory, f"{memory}.new"):
                try:
                    _release(path)
                except OSError as err:
                    errors[name] = [err.errno or errno.EIO, err.strerror or str(err)]
        return errors

    def probe(self, name: str) -> int | None:
        """uid on the host of the user namespace's root, asked from inside it; None when there is no such namespace."""
        user = self._paths(name)[0]

        def ask() -> bytes:
            _setns(user, CLONE_NEWUSER)
            with open("/proc/self/uid_map", "rb") as file:
                return file.readline()

        child = Child([ask])
        try:
            inside, base, _count = child.done().split()
            return int(base) if int(inside) == 0 else None
        except (OSError, ValueError):
            return None
        finally:
            child.end()

    def sysctl(self, name: str, items: list[list[str]]) -> dict[str, Any]:
        """Write at most 256 sysctls in the pair's net namespace, those below ``net/`` only."""
        net = self._paths(name)[1]
        if len(items) > 256:  # so that the child's answer is one write to a pipe
            raise ValueError("too many sysctls")
        for path, _value in items:
            if not path.startswith("net/") or ".." in path.split("/"):
                raise ValueError(f"{path!r} is not a path below net/")

        def write() -> bytes:
            _setns(net, CLONE_NEWNET)
            failed: list[str] = []
            for index, (path, value) in enumerate(items):
                try:
                    fd = os.open(f"/proc/sys/{path}", os.O_WRONLY | os.O_CLOEXEC)
                    try:
                        os.write(fd, value.encode() + b"\n")
                    finally:
                        os.close(fd)
                except OSError as err:
                    failed.append(f"{index}:{err.errno}")
            return " ".join(failed).encode()

        child = Child([write])
        try:
            answer = child.done().decode()
        except OSError as err:
            return {path: [err.errno or errno.EIO, err.strerror or str(err)] for path, _ in items}
        finally:
            child.end()
        errors: dict[str, Any] = {}
        for word in answer.split():
            index, code = (int(part) for part in word.split(":"))
            errors[items[index][0]] = [code, os.strerror(code)]
        return errors


def main() -> None:
    """Answer until the input ends."""
    helper = Helper(sys.argv[1], sys.argv[2])
    for line in sys.stdin.buffer:
        try:
            answer = helper.answer(json.loads(line))
        except Exception as err:  # the one fence of this process: a bad request must not end it
            answer = {"failed": f"{type(err).__name__}: {err}"}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
