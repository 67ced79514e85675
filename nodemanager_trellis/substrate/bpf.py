"""BPF: load objects, pin, attach, read and write maps. The one user of libbpf and of bpf(2), both through ctypes.

Programs come compiled (``nodemanager_trellis/bpf/*.bpf.o``); libbpf reads the ELF file, everything else is the system
call itself, because distributions' libbpf and bpftool are often older than the kernel (tcx links, for one).

A pinned object outlives its maker: a manager may die at any moment and no frame notices.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import functools
import hashlib
import os
import pathlib
import platform
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from nodemanager_trellis.errors import NotOurs, SubstrateError, Unsupported

OBJECTS = pathlib.Path(__file__).resolve().parent.parent / "bpf"
"""Where the compiled programs are."""

_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_ATTR_SIZE = 144

# enum bpf_cmd
_MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT_KEY = 1, 2, 3, 4
_OBJ_PIN, _OBJ_GET, _TEST_RUN, _INFO_BY_FD = 6, 7, 10, 15
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 24, 26, 27
_LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 28, 29, 34

# enum bpf_attach_type
_ATTACH_XDP, _ATTACH_TCX_INGRESS = 37, 46

_XDP_GENERIC, _XDP_NATIVE = 1 << 1, 1 << 2
_LIVE_FRAMES = 1 << 1
_HAS_FRAGS = 1 << 5

_PER_CPU_TYPES = frozenset({5, 6, 10})
"""enum bpf_map_type: PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH"""

ANY, NOEXIST, EXIST = 0, 1, 2
"""Flags of :meth:`Map.update`."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]


# --------------------------------------------------------------------------------------------------- the system call


def _bpf(command: int, attr: bytes) -> int:
    """bpf(2). :raises OSError: with the kernel's errno"""
    buffer = ctypes.create_string_buffer(attr, _ATTR_SIZE)
    number = _NR_BPF.get(platform.machine())
    if number is None:
        raise Unsupported(f"bpf(2) is not known on {platform.machine()}")
    result = _libc.syscall(ctypes.c_long(number), ctypes.c_long(command), buffer, ctypes.c_long(len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


@functools.cache
def possible_cpus() -> int:
    """Values a per-CPU map holds for each key."""
    text = pathlib.Path("/sys/devices/system/cpu/possible").read_text()
    return max(int(part.rpartition("-")[2]) for part in text.strip().split(",")) + 1


class _Descriptor:
    """A file descriptor of the kernel's, closed when nobody holds it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Give the descriptor up; twice is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            self.close()

    def _info(self, size: int) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        _bpf(_INFO_BY_FD, struct.pack("=IIQ", self.fd, size, _address(buffer)))
        return buffer.raw

    def pin(self, path: pathlib.Path) -> None:
        """Give the object a name in a bpffs. :raises FileExistsError:"""
        name = ctypes.create_string_buffer(os.fsencode(path))
        _bpf(_OBJ_PIN, struct.pack("=QII", _address(name), self.fd, 0))


def _obj_get(path: pathlib.Path) -> int:
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, struct.pack("=QII", _address(name), 0, 0))


class Map(_Descriptor):
    """A BPF map. Keys and values are bytes; a per-CPU value is the CPUs' values one after another."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        info = self._info(80)
        self.type, self.id, self.key_size, self.value_size, self.max_entries = struct.unpack_from("=5I", info)
        self.name = info[24:40].rstrip(b"\0").decode()
        self.per_cpu = self.type in _PER_CPU_TYPES
        self._stride = (self.value_size + 7) // 8 * 8
        self._room = self._stride * possible_cpus() if self.per_cpu else self.value_size

    @classmethod
    def pinned(cls, path: pathlib.Path) -> Map:
        """The map pinned at ``path``. :raises FileNotFoundError:"""
        return cls(_obj_get(path))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Type, key size, value size, entries: equal shapes may be reused by a new program."""
        return (self.type, self.key_size, self.value_size, self.max_entries)

    def get(self, key: bytes) -> bytes | None:
        """Value of ``key``, or None."""
        kbuf = ctypes.create_string_buffer(key, self.key_size)
        vbuf = ctypes.create_string_buffer(self._room)
        try:
            _bpf(_MAP_LOOKUP, struct.pack("=IIQQQ", self.fd, 0, _address(kbuf), _address(vbuf), 0))
        except FileNotFoundError:
            return None
        return vbuf.raw

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set ``key``. :raises FileExistsError: with NOEXIST :raises FileNotFoundError: with EXIST"""
        kbuf = ctypes.create_string_buffer(key, self.key_size)
        vbuf = ctypes.create_string_buffer(value, self._room)
        _bpf(_MAP_UPDATE, struct.pack("=IIQQQ", self.fd, 0, _address(kbuf), _address(vbuf), flags))

    def delete(self, key: bytes) -> bool:
        """Take ``key`` away; False when it was not there."""
        kbuf = ctypes.create_string_buffer(key, self.key_size)
        try:
            _bpf(_MAP_DELETE, struct.pack("=IIQQQ", self.fd, 0, _address(kbuf), 0, 0))
        except FileNotFoundError:
            return False
        return True

    def update_many(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        """Set many keys with one system call where the kernel has it (5.6)."""
        if not items:
            return
        keys = ctypes.create_string_buffer(b"".join(k for k, _ in items), len(items) * self.key_size)
        values = ctypes.create_string_buffer(b"".join(v.ljust(self._room, b"\0") for _, v in items))
        attr = struct.pack("=QQQQIIQQ", 0, 0, _address(keys), _address(values), len(items), self.fd, 0, 0)
        try:
            _bpf(_UPDATE_BATCH, attr)
        except OSError as err:
            if err.errno not in (errno.EINVAL, 524, errno.EOPNOTSUPP):
                raise
            for key, value in items:
                self.update(key, value)

    def _next_key(self, key: bytes | None) -> bytes | None:
        kbuf = ctypes.create_string_buffer(key, self.key_size) if key is not None else None
        nbuf = ctypes.create_string_buffer(self.key_size)
        address = _address(kbuf) if kbuf is not None else 0
        try:
            _bpf(_MAP_NEXT_KEY, struct.pack("=IIQQQ", self.fd, 0, address, _address(nbuf), 0))
        except FileNotFoundError:
            return None
        return nbuf.raw

    def _walk(self) -> Iterator[tuple[bytes, bytes]]:
        key = self._next_key(None)
        for _ in range(self.max_entries + 1):
            if key is None:
                return
            value = self.get(key)
            if value is not None:
                yield key, value
            key = self._next_key(key)

    def items(self) -> list[tuple[bytes, bytes]]:
        """All entries; what changes meanwhile may be missed, nothing is told twice."""
        room = 1024
        found: dict[bytes, bytes] = {}
        token = ctypes.create_string_buffer(max(self.key_size, 4))
        begun = False
        while True:
            keys = ctypes.create_string_buffer(room * self.key_size)
            values = ctypes.create_string_buffer(room * self._room)
            following = ctypes.create_string_buffer(len(token))
            buffer = ctypes.create_string_buffer(
                struct.pack("=QQQQIIQQ", _address(token) if begun else 0, _address(following), _address(keys),
                            _address(values), room, self.fd, 0, 0), _ATTR_SIZE)  # fmt: skip
            result = _libc.syscall(ctypes.c_long(_NR_BPF[platform.machine()]), ctypes.c_long(_LOOKUP_BATCH), buffer,
                                   ctypes.c_long(56))  # fmt: skip
            code = ctypes.get_errno() if result < 0 else 0
            if code == errno.ENOSPC:  # one hash bucket holds more than there is room for
                room *= 4
                continue
            if code and code != errno.ENOENT:
                return list(self._walk())
            (count,) = struct.unpack_from("=I", buffer.raw, 32)
            flat_keys, flat_values = keys.raw, values.raw
            for i in range(count):
                key = flat_keys[i * self.key_size : (i + 1) * self.key_size]
                found[key] = flat_values[i * self._room : (i + 1) * self._room]
            if code == errno.ENOENT:
                return list(found.items())
            token, begun = following, True

    def cpus(self, value: bytes) -> list[bytes]:
        """Split a per-CPU value."""
        return [value[i : i + self.value_size] for i in range(0, len(value), self._stride)]


class Program(_Descriptor):
    """A loaded BPF program."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        info = self._info(128)
        self.type, self.id = struct.unpack_from("=2I", info)
        self.tag = info[8:16].hex()
        self.name = info[64:80].rstrip(b"\0").decode()

    @classmethod
    def pinned(cls, path: pathlib.Path) -> Program:
        """The program pinned at ``path``. :raises FileNotFoundError:"""
        return cls(_obj_get(path))

    def test_run(self, data: bytes, room: int = 4096) -> tuple[int, bytes]:
        """Run once over ``data`` without a network. Returns the program's verdict and what became of the frame."""
        given = ctypes.create_string_buffer(data, len(data))
        back = ctypes.create_string_buffer(room)
        buffer = ctypes.create_string_buffer(
            struct.pack("=IIIIQQII", self.fd, 0, len(data), room, _address(given), _address(back), 1, 0), _ATTR_SIZE
        )
        self._test_run(buffer)
        verdict, _, size = struct.unpack_from("=III", buffer.raw, 4)
        return verdict, back.raw[:size]

    def send_live(self, data: bytes, repeat: int, batch: int = 64) -> None:
        """Run an XDP program ``repeat`` times over real frame buffers; what it redirects is sent (Linux 5.18)."""
        given = ctypes.create_string_buffer(data, len(data))
        context = ctypes.create_string_buffer(struct.pack("=6I", 0, len(data), 0, 0, 0, 0))
        attr = struct.pack("=IIIIQQIIIIQQIII", self.fd, 0, len(data), 0, _address(given), 0, repeat, 0,
                           24, 0, _address(context), 0, _LIVE_FRAMES, 0, batch)  # fmt: skip
        self._test_run(ctypes.create_string_buffer(attr, _ATTR_SIZE))

    @staticmethod
    def _test_run(buffer: ctypes.Array[ctypes.c_char]) -> None:
        number = ctypes.c_long(_NR_BPF[platform.machine()])
        if _libc.syscall(number, ctypes.c_long(_TEST_RUN), buffer, ctypes.c_long(80)) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


class Link(_Descriptor):
    """An attachment that lives as long as somebody holds or pins it."""

    @classmethod
    def pinned(cls, path: pathlib.Path) -> Link:
        """The link pinned at ``path``. :raises FileNotFoundError:"""
        return cls(_obj_get(path))

    def look(self) -> tuple[int, int]:
        """Program id and ifindex; ifindex 0 when the device is gone (the link is dead then)."""
        info = self._info(64)
        _type, _id, program, _pad, ifindex = struct.unpack_from("=5I", info)
        return program, ifindex

    def update(self, program: Program) -> None:
        """Swap the program between two frames. :raises OSError: ENOLINK when the device is gone"""
        _bpf(_LINK_UPDATE, struct.pack("=III", self.fd, program.fd, 0))

    def detach(self) -> None:
        """Take it off its device at once."""
        _bpf(_LINK_DETACH, struct.pack("=I", self.fd))


def attach_xdp(program: Program, ifindex: int, ifname: str, native: bool = True) -> Link | None:
    """Attach to a device; None when its driver cannot run this program (not ``native``: no driver can refuse).

    :raises NotOurs: another XDP program is there
    :raises Unsupported: this kernel has no XDP links (5.9)
    """
    flags = _XDP_NATIVE if native else _XDP_GENERIC
    try:
        return Link(_bpf(_LINK_CREATE, struct.pack("=IIII", program.fd, ifindex, _ATTACH_XDP, flags)))
    except OSError as err:
        if err.errno == errno.EBUSY:
            raise NotOurs(f"{ifname} has an XDP program that is not ours") from err
        if native and err.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOMEM, errno.ENOSPC, errno.ERANGE):
            return None
        if err.errno == errno.EINVAL:
            raise Unsupported("this kernel lacks BPF links for XDP (Linux 5.9)") from err
        raise SubstrateError(f"XDP on {ifname}", "attach", err.errno or 0) from err


def attach_tcx(program: Program, ifindex: int, ifname: str) -> Link | None:
    """Attach at tc ingress by a BPF link (Linux 6.6); None when the kernel cannot: use clsact and a filter then.

    Waits for an RCU grace period, 8-20 ms with the rtnl lock held: for one program a node, never one a link.
    """
    try:
        return Link(_bpf(_LINK_CREATE, struct.pack("=IIII", program.fd, ifindex, _ATTACH_TCX_INGRESS, 0)))
    except OSError as err:
        if err.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise SubstrateError(f"tcx on {ifname}", "attach", err.errno or 0) from err


# ------------------------------------------------------------------------------------------------------------- libbpf

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_load_lock = threading.Lock()
_said: list[str] = []


@_PRINT
def _listen(level: int, template: bytes, arguments: int) -> int:
    """libbpf's voice; ``arguments`` is a va_list, which the supported machines pass by address."""
    if level > 1:  # debug
        return 0
    buffer = ctypes.create_string_buffer(65536)
    _libc.vsnprintf(buffer, len(buffer), template, arguments)
    _said.append(buffer.value.decode(errors="replace"))
    return 0


@functools.cache
def _libbpf() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as err:
        raise Unsupported("libbpf.so.1 is not installed") from err
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("libbpf_set_print", pointer, [_PRINT]),
        ("bpf_object__open_file", pointer, [text, pointer]),
        ("bpf_object__load", number, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__next_program", pointer, [pointer, pointer]),
        ("bpf_object__next_map", pointer, [pointer, pointer]),
        ("bpf_program__name", text, [pointer]),
        ("bpf_program__fd", number, [pointer]),
        ("bpf_program__flags", ctypes.c_uint32, [pointer]),
        ("bpf_program__set_flags", number, [pointer, ctypes.c_uint32]),
        ("bpf_map__name", text, [pointer]),
        ("bpf_map__fd", number, [pointer]),
        ("bpf_map__type", number, [pointer]),
        ("bpf_map__key_size", ctypes.c_uint32, [pointer]),
        ("bpf_map__value_size", ctypes.c_uint32, [pointer]),
        ("bpf_map__max_entries", ctypes.c_uint32, [pointer]),
        ("bpf_map__is_internal", ctypes.c_bool, [pointer]),
        ("bpf_map__reuse_fd", number, [pointer, number]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.libbpf_set_print(_listen)
    return lib


class OtherLayout(SubstrateError):
    """A map to be reused is not of the shape that the program wants. Nothing was loaded."""


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """What one object file became."""

    programs: Mapping[str, Program]
    maps: Mapping[str, Map]


def content_hash(path: pathlib.Path) -> str:
    """Names one build of an object file, 16 hex digits. :raises Unsupported: the file was not built"""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError as err:
        raise Unsupported(f"BPF program {path.name} is not built (make -C kmod/bpf)") from err


def _each(step: Callable[[int, int | None], int | None], obj: int) -> Iterator[int]:
    item = step(obj, None)
    while item:
        yield item
        item = step(obj, item)


def load(path: pathlib.Path, reuse: Mapping[str, Map] | None = None) -> Loaded:
    """Load an object file; programs use the maps in ``reuse`` (by name) instead of new ones. Nothing is pinned.

    :raises Unsupported: file not built, or no libbpf
    :raises OtherLayout: a map in ``reuse`` has another shape
    :raises SubstrateError: the kernel refused it; the detail ends with what the verifier said
    """
    content_hash(path)
    lib = _libbpf()
    with _load_lock:
        frags = True
        while True:
            _said.clear()
            obj = lib.bpf_object__open_file(os.fsencode(path), None)
            if not obj:
                raise SubstrateError(f"BPF object {path.name}", "open", ctypes.get_errno(), _tail())
            try:
                for item in _each(lib.bpf_object__next_map, obj):
                    name = lib.bpf_map__name(item).decode()
                    given = (reuse or {}).get(name)
                    if given is None:
                        continue
                    shape = (lib.bpf_map__type(item), lib.bpf_map__key_size(item), lib.bpf_map__value_size(item),
                             lib.bpf_map__max_entries(item))  # fmt: skip
                    if shape != given.shape:  # libbpf would take the map's own shape, whatever the program expects
                        raise OtherLayout(f"BPF map {name}", "reuse", detail=f"{given.shape} is not {shape}")
                    if lib.bpf_map__reuse_fd(item, given.fd):
                        raise SubstrateError(f"BPF map {name}", "reuse", ctypes.get_errno(), _tail())
                if not frags:  # kernels before 5.18 know no multi-buffer XDP: plain frames only
                    for item in _each(lib.bpf_object__next_program, obj):
                        lib.bpf_program__set_flags(item, lib.bpf_program__flags(item) & ~_HAS_FRAGS)
                code = lib.bpf_object__load(obj)
                if code == -errno.EINVAL and frags:
                    frags = False
                    continue
                if code:
                    raise SubstrateError(f"BPF object {path.name}", "load", -code, _tail())
                programs = {
                    lib.bpf_program__name(item).decode(): Program(os.dup(lib.bpf_program__fd(item)))
                    for item in _each(lib.bpf_object__next_program, obj)
                }
                maps = {
                    lib.bpf_map__name(item).decode(): Map(os.dup(lib.bpf_map__fd(item)))
                    for item in _each(lib.bpf_object__next_map, obj)
                    if not lib.bpf_map__is_internal(item)
                }
                return Loaded(programs, maps)
            finally:
                lib.bpf_object__close(obj)


def _tail() -> str:
    lines = [line for text in _said for line in text.splitlines() if line.strip()]
    marks = [i for i, line in enumerate(lines) if "END PROG LOAD LOG" in line]
    if marks:  # the verifier's last words stand before this mark
        lines = lines[: marks[-1]]
    return "; ".join(line.strip() for line in lines[-6:])[-1500:]


# -------------------------------------------------------------------------------------------------------------- bpffs


def _bpffs_mounts() -> Iterable[str]:
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        if tail.split(" ", 1)[0] == "bpf":
            yield head.split(" ")[4].encode().decode("unicode_escape")


def on_bpffs(path: pathlib.Path) -> bool:
    """Does ``path`` lie in a mounted bpffs?"""
    return any(path == pathlib.Path(m) or pathlib.Path(m) in path.parents for m in _bpffs_mounts())


def ensure_bpffs(path: pathlib.Path) -> None:
    """Afterwards ``path`` is a directory in a bpffs; one is mounted there when it lies in none.

    :raises Unsupported: the kernel has no bpffs, or the mount was refused
    """
    if not on_bpffs(path):
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # two managers of a lab must not mount one over the other
            if not on_bpffs(path) and _libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
                code = ctypes.get_errno()
                raise Unsupported(f"cannot mount a bpffs on {path}: {os.strerror(code)}")
        finally:
            os.close(handle)
    path.mkdir(parents=True, exist_ok=True)


def remove_tree(path: pathlib.Path) -> None:
    """Unpin everything below ``path`` and remove it; absent is fine."""
    if not path.is_dir():
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    for child in list(path.iterdir()):
        remove_tree(child)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
