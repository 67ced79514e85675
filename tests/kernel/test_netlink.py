"""Messages are what pyroute2 would send; what is read is what is there."""

from __future__ import annotations

import errno
import os
import random
import struct
import subprocess
import sys

import pytest

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.netlink import Netlink
from nodemanager_trellis.substrate.transport import Failure


def value(packer: struct.Struct, source: random.Random, name: str):
    """A random value for one hole: text of any length for names, else any bits."""
    if packer.size > 16 or name in ("ifname", "inner"):
        return "".join(source.choices("abcdefghijklmnopqrstuvwxyz0123456789.-é", k=source.randint(0, packer.size // 2)))
    raw = source.randbytes(packer.size)
    return raw if packer.format.endswith("s") else packer.unpack(raw)[0]


@pytest.mark.parametrize("name", nl.TEMPLATES)
def test_template_equals_pyroute2(name):
    """Each shape with random values, filled and encoded afresh, has the same bytes; header fields aside."""
    template = nl.TEMPLATES[name]
    source = random.Random(name)
    for _ in range(50):
        values = {hole: value(packer, source, hole) for hole, packer in template.holes.items()}
        filled = template.fill(0, 0, *values.values())
        expected = bytearray(template.encode(**values))
        struct.pack_into("=HH", expected, 4, 0, 0)
        assert filled == expected


def test_shapes_equal_what_requests_of_pyroute2_say(node_netns, netlink):
    """An oracle of its own: IPBatch, pyroute2's public request compiler, for what it can say."""
    from pyroute2 import IPBatch

    batch = IPBatch()

    def compiled(call):
        batch.reset()
        call()
        return bytes(batch.batch)

    def body(message: bytes) -> bytes:
        return bytes(message[:4]) + bytes(message[16:])

    flags = compiled(lambda: batch.link("set", index=7, flags=1, change=1))
    assert body(nl.link_flags(7, True).data) == body(flags)
    mtu = compiled(lambda: batch.link("set", index=7, mtu=1400))
    assert body(nl.link_mtu(7, 1400).data)[4:] == body(mtu)[4:]
    clsact = compiled(lambda: batch.tc("add", "clsact", 7))
    assert body(nl.clsact(7).data) == body(clsact)
    batch.close()


def test_text_too_long_is_refused():
    with pytest.raises(ValueError, match="longer than 254 bytes"):
        nl.link_alias(1, "x" * 255)
    with pytest.raises(ValueError, match="longer than 15 bytes"):
        nl.veth_add("x" * 16, "a", 0, "02:00:00:00:00:01", 1500, 1, 65536)
    with pytest.raises(ValueError, match="not a MAC"):
        nl.veth_add("x", "a", 0, "02:00", 1500, 1, 65536)
    with pytest.raises(ValueError, match="everybody"):
        nl.group_del(0)


def test_reading_needs_no_pyroute2():
    """A command that only reads does not pay 0.1 s for an import."""
    code = (
        "import sys; from nodemanager_trellis.substrate.netlink import Netlink\n"
        "with Netlink(1) as n: n.links(), n.qdiscs(), n.addresses()\n"
        "assert 'pyroute2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def u0(node_netns, netlink):
    """Underlay device with addresses; index."""

    def make() -> int:
        assert os.system("ip link add u0 address 02:00:00:00:00:10 type veth peer name far") == 0
        assert os.system("ip link set far up; ip link set u0 up") == 0
        assert os.system("ip address add 10.0.0.1/24 dev u0; ip address add fd00::1/64 dev u0 nodad") == 0
        assert os.system("ip route add 172.16.0.0/12 via 10.0.0.9") == 0
        return netlink.link("u0").ifindex

    return node_netns.run(make)


def test_links_as_ip_shows_them(node_netns, netlink, u0):
    netlink.batch(
        [nl.link_alias(u0, "what for"), nl.link_group(u0, netlink.group), nl.altname_add(u0, "a-second-name")]
    )
    netlink.set_altname("u0", "a-second-name")
    netlink.set_altname("u0", "and-a-third-name-longer-than-ifnamsiz")
    link = netlink.link("u0")
    assert (link.mac, link.mtu, link.up, link.carrier, link.kind) == ("02:00:00:00:00:10", 1500, True, True, "veth")
    assert (link.alias, link.group) == ("what for", netlink.group)
    assert link.altnames == ("a-second-name", "and-a-third-name-longer-than-ifnamsiz")
    assert link.peer_ifindex == netlink.link("far").ifindex
    assert link.peer_netnsid == -1
    assert netlink.links(netlink.group) == [link] == [netlink.link_by_index(u0)]
    assert netlink.link("and-a-third-name-longer-than-ifnamsiz") == link
    assert sorted(n.ifname for n in netlink.links()) == ["far", "lo", "u0"]
    assert netlink.link("nothing") is None
    assert netlink.link_by_index(4711) is None
    assert netlink.links_named(["u0", "nothing", "lo"]) == {"u0": link, "lo": netlink.link("lo")}
    netlink.batch([nl.altname_del(u0, "a-second-name"), nl.altname_del(u0, "a-second-name"), nl.link_alias(u0, "")])
    assert netlink.link("u0").altnames == ("and-a-third-name-longer-than-ifnamsiz",)
    assert netlink.link("u0").alias == ""
    with pytest.raises(SubstrateError, match="No such device"):
        netlink.set_altname("nothing", "x")


def test_addresses_and_their_owner(node_netns, netlink, u0):
    netlink.batch([nl.address_add(u0, "10.0.0.1/24"), nl.address_add(u0, "10.0.0.7/32")])
    found = {a.address for a in netlink.addresses(u0) if a.scope == 0}
    assert found == {"10.0.0.1/24", "10.0.0.7/32", "fd00::1/64"}
    assert netlink.address_owner("10.0.0.7").ifname == "u0"
    assert netlink.address_owner("fd00::1").ifname == "u0"
    assert netlink.address_owner("127.0.0.1").ifname == "lo"
    assert netlink.address_owner("10.0.0.2") is None
    netlink.batch(
        [nl.address_del(u0, "10.0.0.7/32"), nl.address_del(u0, "10.0.0.7/32"), nl.address_del(u0, "fd00::1/64")]
    )
    assert {a.address for a in netlink.addresses(u0) if a.scope == 0} == {"10.0.0.1/24"}


def test_routes(node_netns, netlink, u0):
    assert netlink.route_get("10.0.0.2") == nl.Route(u0, None, "10.0.0.1")
    assert netlink.route_get("172.16.1.1") == nl.Route(u0, "10.0.0.9", "10.0.0.1")
    assert netlink.route_get("fd00::5") == nl.Route(u0, None, "fd00::1")
    with pytest.raises(SubstrateError) as caught:
        netlink.route_get("192.0.2.1")
    assert caught.value.errno == errno.ENETUNREACH


def test_managed_neighbour(node_netns, netlink, u0):
    """Asked twice it stays; a flap deletes it; a known MAC survives being asked for again."""
    assert netlink.neigh_managed(u0, "10.0.0.2") is True
    assert [(n.ip, n.mac) for n in netlink.neighbours(u0)] == [("10.0.0.2", None)]
    os.system("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev u0 nud reachable")
    netlink.neigh_managed(u0, "10.0.0.2")
    entry = netlink.neighbours(u0)[0]
    assert entry.mac == "02:00:00:00:00:02"
    assert entry.state & nl.NUD_VALID
    netlink.neigh_managed(u0, "10.0.0.2")
    assert "managed" in subprocess.run(["ip", "neigh"], capture_output=True, text=True).stdout
    os.system("ip link set u0 down; ip link set u0 up")
    assert netlink.neighbours(u0) == []
    netlink.neigh_managed(u0, "10.0.0.2")
    netlink.neigh_del(u0, "10.0.0.2")
    netlink.neigh_del(u0, "10.0.0.2")
    assert netlink.neighbours(u0) == []
    with pytest.raises(SubstrateError, match=r"resolve neighbour 10\.0\.0\.2: No such device"):
        netlink.neigh_managed(4711, "10.0.0.2")


def test_operators_static_neighbour_keeps_its_mac(node_netns, netlink, u0):
    os.system("ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev u0 nud permanent")
    before = netlink.neighbours(u0)
    assert netlink.neigh_managed(u0, "10.0.0.2") is True
    assert netlink.neighbours(u0) == before == [nl.Neighbour("10.0.0.2", "02:00:00:00:00:02", nl.NUD_PERMANENT)]


def test_neighbour_without_managed_entries(node_netns, netlink, u0, monkeypatch):
    """A kernel that refuses the flag resolves once."""
    real = netlink.transport.send

    def old_kernel(messages):
        if messages[0][-4:] == struct.pack("=I", nl.NTF_EXT_MANAGED):
            return [Failure(0, errno.EINVAL, "")]
        return real(messages)

    monkeypatch.setattr(netlink.transport, "send", old_kernel)
    assert netlink.neigh_managed(u0, "10.0.0.3") is False
    assert [n.ip for n in netlink.neighbours(u0)] == ["10.0.0.3"]


def trivial_program() -> int:
    """A BPF program that returns 0 (TC_ACT_OK), loaded by bpf(2); its descriptor."""
    import ctypes

    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    attr = struct.pack("=IIQQ", 3, 2, ctypes.addressof(code), ctypes.addressof(licence)).ljust(128, b"\0")
    buffer = ctypes.create_string_buffer(attr, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall({"x86_64": 321, "aarch64": 280}[os.uname().machine], 5, buffer, 128)
    if fd < 0:
        pytest.skip(f"bpf(2): {os.strerror(ctypes.get_errno())}")
    return fd


def test_bpf_filters(node_netns, netlink, u0):
    """Attached at a hook, replaced in place, read with name and program id, detached; clsact is shared."""
    assert netlink.filters(u0, "ingress") == []
    one, two = trivial_program(), trivial_program()
    try:
        netlink.batch([nl.clsact(u0), nl.clsact(u0), nl.bpf_filter(u0, "ingress", one, "trellis_encap")])
        first = netlink.filters(u0, "ingress")
        assert [(f.prio, f.handle, f.name) for f in first] == [(1, 1, "trellis_encap")]
        netlink.batch([nl.bpf_filter(u0, "ingress", two, "trellis_encap")])
        second = netlink.filters(u0, "ingress")
        assert len(second) == 1
        assert second[0].prog_id > first[0].prog_id > 0
        netlink.batch([nl.bpf_filter(u0, "egress", one, "other", prio=5, handle=2)])
        assert [(f.prio, f.handle, f.name) for f in netlink.filters(u0, "egress")] == [(5, 2, "other")]
        assert len(netlink.filters(u0, "ingress")) == 1
        netlink.batch([nl.filter_del(u0, "ingress"), nl.filter_del(u0, "ingress"), nl.filter_del(u0, "egress", 5, 2)])
        assert netlink.filters(u0, "ingress") == netlink.filters(u0, "egress") == []
        netlink.batch([nl.clsact_del(u0), nl.clsact_del(u0)])
        assert [q for q in netlink.qdiscs(u0) if q.kind == "clsact"] == []
        with pytest.raises(SubstrateError, match="attach filter x at ingress"):
            netlink.batch([nl.bpf_filter(u0, "ingress", one, "x")])
    finally:
        os.close(one)
        os.close(two)


def test_gro_is_switched(node_netns, netlink, u0):
    def gro() -> str:
        return subprocess.run(["ethtool", "-k", "u0"], capture_output=True, text=True, check=True).stdout

    netlink.set_gro("u0", True)
    assert "generic-receive-offload: on" in gro()
    netlink.set_gro("u0", False)
    assert "generic-receive-offload: off" in gro()
    with pytest.raises(SubstrateError, match="link nothing"):
        netlink.set_gro("nothing", True)


def test_batch_raises_the_first_and_notes_the_others(node_netns, netlink, u0):
    messages = [
        nl.link_mtu(u0, 1400, "this one"),
        nl.link_mtu(4711, 1400, "a lost one"),
        nl.link_mtu(4712, 1, "another"),
    ]
    with pytest.raises(SubstrateError) as caught:
        netlink.batch(messages)
    assert str(caught.value) == "set mtu 1400 of a lost one: No such device"
    assert caught.value.__notes__ == ["also: set mtu 1 of another: No such device"]
    assert netlink.link("u0").mtu == 1400


def test_netlink_stays_in_its_netns(node_netns, netlink, u0, make_pairs, settings, sliver):
    """Used from a thread that is elsewhere it still acts where it was opened."""
    make_pairs("trellis.1")
    with Netlink(netlink.group) as here:
        names = sliver("trellis.1", lambda _: {n.ifname for n in here.links()})
        assert "u0" in names
        sliver("trellis.1", lambda _: here.set_gro("u0", True))


def test_peers_are_read_where_they_are(node_netns, netlink, make_pairs, settings):
    make_pairs("trellis.1")
    fd = os.open(settings.netns_dir / "trellis.1", os.O_RDONLY)
    netlink.batch([nl.veth_add("x", "inside", fd, "02:00:00:00:00:01", 1400, netlink.group, 20000)])
    assert netlink.nsid(fd) == netlink.link("x").peer_netnsid >= 0
    os.close(fd)
    peer = netlink.peers(netlink.links())["x"]
    assert (peer.ifname, peer.mac, peer.mtu, peer.gso_max, peer.group) == (
        "inside", "02:00:00:00:00:01", 1400, 20000, netlink.group,
    )  # fmt: skip
    assert netlink.link("x").mac == "06:00:00:00:00:01"


def test_truncated_attributes_end_the_reading():
    """A length that lies does not lead out of the message, nor into a loop."""
    assert list(nl.attributes(b"\0\0\1\0", 0, 4)) == []
    assert list(nl.attributes(b"\xff\0\1\0abcd", 0, 8)) == []
    assert list(nl.attributes(b"\x05\0\1\0x", 0, 5)) == [(1, 4, 5)]
