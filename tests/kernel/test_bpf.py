"""BPF objects pass the verifier; strip judges frames rightly, without any network; maps, pins, errors."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from nodemanager_trellis.errors import SubstrateError, Unsupported
from nodemanager_trellis.substrate import bpf, egre

pytestmark = pytest.mark.kernel

SHARED = pathlib.Path(__file__).resolve().parents[2] / "kmod" / "bpf" / "trellis_shared.h"
LOCAL, REMOTE, KEY = "10.9.0.2", "10.9.0.1", 0x00C0FFEE
IFINDEX, MAC = 4711, bytes.fromhex("02aabbccdd01")
PASS, DROP = 2, 1
INNER = MAC + bytes.fromhex("02000000aa01") + b"\x08\x00" + b"E" + bytes(79)


@pytest.fixture
def loaded() -> bpf.Loaded:
    made = bpf.load(bpf.OBJECTS / "egre.bpf.o")
    made.maps[egre.LOCAL].update(socket.inet_aton(LOCAL), struct.pack("=I", 3))
    key = struct.pack("!I", KEY) + socket.inet_aton(REMOTE) + socket.inet_aton(LOCAL)
    made.maps[egre.RX].update(key, struct.pack("=I6sH", IFINDEX, MAC, 0))
    made.maps[egre.STATS].update(struct.pack("=I", IFINDEX), b"")
    return made


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A directory in a bpffs, gone afterwards."""
    bpf.ensure_bpffs(pathlib.Path("/sys/fs/bpf"))
    path = pathlib.Path(f"/sys/fs/bpf/tb{os.getpid()}")
    bpf.ensure_bpffs(path)
    yield path
    bpf.remove_tree(path)


def frame(inner: bytes = INNER, **changes: object) -> bytes:
    """An EGRE frame, right but for ``changes``: fields of the outer header."""
    field = {
        "ethertype": 0x0800, "ihl": 0x45, "fragment": 0x4000, "protocol": 47, "source": REMOTE, "target": LOCAL,
        "flags": 0x2000, "proto": 0x6558, "key": KEY, "tag": b"", "options": b"", "length": 0, "sum": 0,
    } | changes  # fmt: skip
    gre = struct.pack("!HHI", field["flags"], field["proto"], field["key"]) + inner
    addresses = socket.inet_aton(str(field["source"])) + socket.inet_aton(str(field["target"]))
    total = field["length"] or 20 + len(field["options"]) + len(gre)  # type: ignore[arg-type]
    ip = struct.pack("!BBHHHBBH", field["ihl"], 0, total, 0, field["fragment"], 64, field["protocol"], 0) + addresses
    ip += field["options"]  # type: ignore[operator]
    words = sum(struct.unpack(f"!{len(ip) // 2}H", ip))
    words = (words & 0xFFFF) + (words >> 16)
    words = (words & 0xFFFF) + (words >> 16)
    ip = ip[:10] + struct.pack("!H", (~words & 0xFFFF) ^ int(field["sum"])) + ip[12:]  # type: ignore[call-overload]
    return bytes(12) + field["tag"] + struct.pack("!H", field["ethertype"]) + ip + gre  # type: ignore[operator]


def drops(loaded: bpf.Loaded) -> dict[egre.Drop, int]:
    counts = {}
    for reason in egre.Drop:
        value = loaded.maps[egre.DROPS].get(struct.pack("=I", reason))
        assert value is not None
        counts[reason] = sum(struct.unpack("=Q", v)[0] for v in loaded.maps[egre.DROPS].cpus(value))
    return {reason: n for reason, n in counts.items() if n}


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("egre", {"trellis_strip", "trellis_jumbo", "trellis_deliver", "trellis_encap"}),
        ("gen", {"trellis_gen"}),
        ("sink", {"trellis_sink", "trellis_pass"}),
    ],
)
def test_verifier_takes_every_program(name: str, programs: set[str]) -> None:
    made = bpf.load(bpf.OBJECTS / f"{name}.bpf.o")

    assert programs == set(made.programs)
    assert all(p.name == n and p.id and len(p.tag) == 16 for n, p in made.programs.items())


@pytest.mark.parametrize("program", ["trellis_strip", "trellis_jumbo"])
def test_strip_takes_the_outer_header_off(loaded: bpf.Loaded, program: str) -> None:
    verdict, out = loaded.programs[program].test_run(frame())

    meta = struct.pack("=II6s", 0x7E115C00, IFINDEX, MAC) + b"\x08\x00"
    assert (PASS, meta + INNER) == (verdict, out)
    assert {} == drops(loaded)
    value = loaded.maps[egre.STATS].get(struct.pack("=I", IFINDEX))
    assert value is not None
    rows = [struct.unpack_from("=5Q", v) for v in loaded.maps[egre.STATS].cpus(value)]
    assert (0, 0, 1, len(frame())) == tuple(sum(column) for column in zip(*rows, strict=True))[:4]
    assert max(row[4] for row in rows) > 0


def test_padding_of_the_underlay_is_taken_off(loaded: bpf.Loaded) -> None:
    inner = INNER[:14]
    verdict, out = loaded.programs["trellis_strip"].test_run(frame(inner) + b"\xee" * 4)

    assert (PASS, inner) == (verdict, out[16:])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": KEY + 1}, egre.Drop.RX_UNKNOWN),
        ({"key": int.from_bytes(KEY.to_bytes(4, "little"), "big")}, egre.Drop.RX_UNKNOWN),
        ({"source": "10.9.0.3"}, egre.Drop.RX_UNKNOWN),
        ({"length": 41}, egre.Drop.RX_MALFORMED),
        ({"sum": 0x0100}, egre.Drop.RX_MALFORMED),
    ],
)
def test_strip_drops_and_counts(loaded: bpf.Loaded, changes: dict[str, object], reason: egre.Drop) -> None:
    verdict, _ = loaded.programs["trellis_strip"].test_run(frame(**changes))

    assert DROP == verdict
    assert {reason: 1} == drops(loaded)


def test_reserved_tunnel_is_dropped_and_counted(loaded: bpf.Loaded) -> None:
    key = struct.pack("!I", KEY) + socket.inet_aton(REMOTE) + socket.inet_aton(LOCAL)
    loaded.maps[egre.RX].update(key, bytes(12))

    assert DROP == loaded.programs["trellis_strip"].test_run(frame())[0]
    assert {egre.Drop.RX_NO_LINK: 1} == drops(loaded)


@pytest.mark.parametrize(
    "other",
    [
        frame(target="10.9.0.99", key=1),
        frame(tag=bytes.fromhex("81000005")),
        frame(ihl=0x46, options=bytes(4)),
        frame(fragment=0x2000),
        frame(fragment=0x0001),
        frame(protocol=17),
        frame(flags=0x0000),
        frame(flags=0x3000),
        frame(flags=0xA000),
        frame(flags=0x2001),
        frame(proto=0x0800),
        frame(ethertype=0x86DD),
        frame()[:55],
        frame()[:20],
    ],
    ids=["not ours", "vlan outside", "options", "first fragment", "later fragment", "udp", "no key", "sequence",
         "checksum", "version", "gre ip", "ipv6", "cut", "cut early"],
)  # fmt: skip
def test_what_is_not_egre_for_us_is_the_kernels(loaded: bpf.Loaded, other: bytes) -> None:
    verdict, out = loaded.programs["trellis_strip"].test_run(other)

    assert (PASS, other) == (verdict, out)
    assert {} == drops(loaded)


# ------------------------------------------------------------------------------------------------ the two copies agree


def test_constants_are_those_of_the_header(loaded: bpf.Loaded) -> None:
    text = SHARED.read_text()
    reasons = re.findall(r"\bTRELLIS_DROP_(\w+),", text)
    assert [*(d.name for d in egre.Drop), "MAX"] == reasons
    assert all(d.meaning for d in egre.Drop)
    defines = dict(re.findall(r"#define\s+(\w+)\s+(\S+)", text))
    assert egre.GRE_FLAGS == int(defines["TRELLIS_GRE_FLAGS"], 16)
    assert egre.GRE_PROTO == int(defines["TRELLIS_GRE_PROTO"], 16)
    assert egre._READY == int(defines["TRELLIS_TX_READY"])
    assert len(egre.outer_header(LOCAL, REMOTE, 1, MAC, MAC)) == int(defines["TRELLIS_OVERHEAD"])
    sizes = {name: m.shape[1:3] for name, m in loaded.maps.items()}
    assert sizes == {
        egre.RX: (12, egre._RX_VALUE.size),
        egre.TX: (4, egre._TX_VALUE.size),
        egre.LOCAL: (4, 4),
        egre.STATS: (4, egre._COUNTERS.size),
        egre.DROPS: (4, 8),
    }


def test_header_bytes() -> None:
    """Checked by hand against RFC 791 and RFC 2890; the sum makes a header that checks."""
    header = egre.outer_header("192.0.2.1", "198.51.100.2", 0xA1B2C3D4, MAC, b"\x02" * 6)
    wanted = "020202020202" "02aabbccdd01" "0800" "4500" "0000" "0000" "4000" "40" "2f" "0000"
    wanted += "c0000201" "c6336402" "2000" "6558" "a1b2c3d4"
    assert bytes.fromhex(wanted) == header
    words = struct.unpack("=10H", header[14:34])
    total = egre.header_sum(header)
    assert 0 == (sum(words) - total) % 0xFFFF


# ------------------------------------------------------------------------------------------------------ maps and pins


def test_maps(loaded: bpf.Loaded) -> None:
    tx = loaded.maps[egre.TX]
    items = {struct.pack("=I", i): struct.pack("=I", i) * 16 for i in range(3000)}
    tx.update_many(list(items.items()))
    assert items == dict(tx.items())
    assert items == dict(tx._walk())  # kernels without batches
    key = struct.pack("=I", 7)
    with pytest.raises(FileExistsError):
        tx.update(key, bytes(64), bpf.NOEXIST)
    assert tx.delete(key)
    assert not tx.delete(key)
    assert tx.get(key) is None
    with pytest.raises(FileNotFoundError):
        tx.update(key, bytes(64), bpf.EXIST)
    assert len(loaded.maps[egre.DROPS].items()) == len(egre.Drop)  # an array has no batches on old kernels


def test_pins_and_reuse(loaded: bpf.Loaded, folder: pathlib.Path) -> None:
    for name, one in loaded.maps.items():
        one.pin(folder / name)
    again = {name: bpf.Map.pinned(folder / name) for name in loaded.maps}
    second = bpf.load(bpf.OBJECTS / "egre.bpf.o", again)
    assert {n: m.id for n, m in loaded.maps.items()} == {n: m.id for n, m in second.maps.items()}
    with pytest.raises(FileExistsError):
        loaded.maps[egre.TX].pin(folder / egre.TX)
    assert DROP == second.programs["trellis_strip"].test_run(frame(key=1))[0]
    assert {egre.Drop.RX_UNKNOWN: 1} == drops(loaded)


def test_map_of_another_shape_is_not_reused(loaded: bpf.Loaded) -> None:
    with pytest.raises(bpf.OtherLayout, match="trellis_rx"):
        bpf.load(bpf.OBJECTS / "egre.bpf.o", {egre.RX: loaded.maps[egre.TX]})


def test_bpffs_is_mounted_where_none_is(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "fs"
    for _ in range(2):
        bpf.ensure_bpffs(place)
    bpf.ensure_bpffs(place / "a" / "b")
    assert bpf.on_bpffs(place / "a")
    assert not bpf.on_bpffs(tmp_path)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.umount(os.fsencode(place)) == 0  # one mount only
    assert not bpf.on_bpffs(place)


def test_descriptors_do_not_leak() -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    bpf.load(bpf.OBJECTS / "egre.bpf.o")
    before = count()
    for _ in range(5):
        bpf.load(bpf.OBJECTS / "egre.bpf.o")
    assert before == count()


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.skipif(not shutil.which("clang"), reason="needs clang")
def test_verifier_is_quoted(tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.c").write_text(
        "#define SEC(n) __attribute__((section(n), used))\n"
        "struct xdp_md { unsigned int data, data_end; };\n"
        'SEC("xdp") int trellis_bad(struct xdp_md *c) { return *(int *)(long)c->data; }\n'
        'char l[] SEC("license") = "GPL";\n'
    )
    words = ("clang", "-O2", "-target", "bpf", "-c", str(tmp_path / "bad.c"), "-o", str(tmp_path / "bad.bpf.o"))
    subprocess.run(words, check=True)
    with pytest.raises(SubstrateError, match="invalid access to packet") as caught:
        bpf.load(tmp_path / "bad.bpf.o")
    assert caught.value.operation == "load"
    assert "bad.bpf.o" in caught.value.what


def test_missing_and_broken_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Unsupported, match="make -C kmod/bpf"):
        bpf.load(tmp_path / "none.bpf.o")
    (tmp_path / "text.bpf.o").write_text("not ELF")
    with pytest.raises(SubstrateError, match=r"open BPF object text\.bpf\.o"):
        bpf.load(tmp_path / "text.bpf.o")
