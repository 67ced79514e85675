"""Veths of slivers: the trio, changes in place, whose is what, and nothing left."""

from __future__ import annotations

import dataclasses
import errno
import os

import pytest

from nodemanager_trellis.errors import NotOurs, SubstrateError
from nodemanager_trellis.objects import LinkUp, Veth
from nodemanager_trellis.substrate import links as module
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate.links import LinkUpDriver, VethDriver

A = Veth(
    "tra", "trellis.1", "a1if2", "02:00:00:00:00:0a", 1458, ("192.168.2.10/30", "fd00:2::1/64"), 20000, "trellis-x-n2"
)
B = Veth("trb", "trellis.1", "a1if3", "02:00:00:00:00:0b", 1400, ("192.168.3.1/30",))
C = Veth("trc", "trellis.2", "a2if3", "02:00:00:00:00:0c", 1458)


@pytest.fixture
def driver(node_netns, netlink, settings, make_pairs) -> VethDriver:
    make_pairs("trellis.1", "trellis.2")
    return VethDriver(settings, netlink)


def by_key(objects):
    return {o.key: o for o in objects}


def put(driver, *wanted):
    driver.ensure(wanted, by_key(driver.read()))


def own(addresses):
    return {a.address for a in addresses if a.scope == 0}


def test_ensure_makes_what_read_returns(driver, netlink, sliver):
    """Veths of two slivers are made, read back as asked, and not touched by a second ensure."""
    put(driver, A, B, C)
    assert by_key(driver.read()) == by_key([A, B, C])
    before = {n.ifname: n for n in netlink.links()}
    put(driver, A, B, C)
    assert {n.ifname: n for n in netlink.links()} == before
    root = before["tra"]
    assert (root.group, root.mtu, root.up, root.altnames) == (netlink.group, 1458, False, ("trellis-x-n2",))

    def look(inner):
        end = inner.link("a1if2")
        addresses = own(inner.addresses(end.ifindex))
        forwarding = nl.read_sysctl("net.ipv4.ip_forward"), nl.read_sysctl("net.ipv6.conf.all.forwarding")
        return end.mac, end.mtu, end.gso_max, end.up, end.group, addresses, inner.link("lo").up, forwarding

    expected = (A.mac, 1458, 20000, True, netlink.group, set(A.addresses), True, ("1", "1"))
    assert sliver("trellis.1", look) == expected


def test_root_end_is_silent_and_carries_no_address(driver, netlink):
    """Up, the root end has not even a link-local address."""
    put(driver, A)
    netlink.batch([nl.link_flags(netlink.link("tra").ifindex, True)])
    assert netlink.link("tra").carrier
    assert netlink.addresses(netlink.link("tra").ifindex) == []


def test_mtu_too_small_for_ipv6(driver, netlink):
    """Such a link can be made, and is silent also when its MTU grows."""
    small = dataclasses.replace(B, mtu=1000)
    put(driver, small)
    put(driver, B)
    assert driver.read() == [B]
    netlink.batch([nl.link_flags(netlink.link("trb").ifindex, True)])
    assert netlink.addresses(netlink.link("trb").ifindex) == []


def test_absent_removes_both_ends_and_twice_is_fine(driver, netlink, sliver):
    """One at a time and many at once."""
    driver.absent([A, B, C])
    put(driver, A, B, C)
    driver.absent([A])
    assert by_key(driver.read()) == by_key([B, C])
    assert sliver("trellis.1", lambda inner: inner.link("a1if2")) is None
    driver.absent([A, B, C])
    driver.absent([A, B, C])
    assert driver.read() == []
    assert [n.ifname for n in netlink.links()] == ["lo"]


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ("10.0.0.1/8",)},
        {"addresses": ()},
        {"addresses": ("192.168.2.9/30", "fd00:2::1/64")},
        {"mtu": 1300},
        {"gso_max_bytes": 9000},
        {"altname": "trellis-y-n2"},
        {"altname": ""},
        {"mtu": 1500, "addresses": ("10.0.0.1/8", "192.168.2.10/30"), "altname": "z"},
    ],
)
def test_changes_are_made_in_place(driver, netlink, sliver, change):
    """The devices stay the same ones."""
    put(driver, A)
    root, peer = netlink.link("tra"), sliver("trellis.1", lambda inner: inner.link("a1if2"))
    wanted = dataclasses.replace(A, **change)
    put(driver, wanted)
    assert driver.read() == [wanted]
    assert netlink.link("tra").ifindex == root.ifindex

    def look(inner):
        end = inner.link("a1if2")
        return end.ifindex, end.mtu, end.gso_max, own(inner.addresses(end.ifindex))

    expected = (peer.ifindex, wanted.mtu, wanted.gso_max_bytes, set(wanted.addresses))
    assert sliver("trellis.1", look) == expected
    assert netlink.link("tra").altnames == ((wanted.altname,) if wanted.altname else ())


@pytest.mark.parametrize(
    "change", [{"mac": "02:00:00:00:00:ff"}, {"inner": "eth0"}, {"pair": "trellis.2"}], ids=["mac", "inner", "pair"]
)
def test_other_changes_make_it_anew(driver, netlink, sliver, change):
    put(driver, A)
    wanted = dataclasses.replace(A, **change)
    put(driver, wanted)
    assert driver.read() == [wanted]
    assert sliver(wanted.pair, lambda inner: inner.link(wanted.inner)).mac == wanted.mac
    if (wanted.pair, wanted.inner) != (A.pair, A.inner):
        assert sliver(A.pair, lambda inner: inner.link(A.inner)) is None


def test_slivers_own_changes_are_not_fought(driver, netlink, sliver):
    """Renamed, re-addressed, lowered, other MTU and MAC: no difference; a later change leaves the user's things."""
    put(driver, A)

    def play(inner):
        end = inner.link("a1if2")
        commands = ("link set a1if2 down", "link set a1if2 name mine mtu 1290 address 02:01:01:01:01:01 up",
                    "address add 172.16.0.1/12 dev mine", "address delete 192.168.2.10/30 dev mine")  # fmt: skip
        for command in commands:
            assert os.system(f"ip {command}") == 0
        return end.ifindex

    ifindex = sliver("trellis.1", play)
    assert driver.read() == [A]
    put(driver, dataclasses.replace(A, addresses=("10.1.1.1/24", "fd00:2::1/64")))

    def look(inner):
        end = inner.link("mine")
        return end.ifindex, end.mtu, own(inner.addresses(end.ifindex))

    assert sliver("trellis.1", look) == (ifindex, 1290, {"172.16.0.1/12", "10.1.1.1/24", "fd00:2::1/64"})
    assert driver.inner_ends()["tra"].ifname == "mine"


def test_address_moves_within_its_subnet_without_promotion(driver, sliver):
    """The new address survives although the kernel takes it away with the old primary."""
    put(driver, B)
    sliver(
        "trellis.1", lambda _: [nl.write_sysctl(f"net.ipv4.conf.{d}.promote_secondaries", 0) for d in ("all", "a1if3")]
    )
    put(driver, dataclasses.replace(B, addresses=("192.168.3.2/30",)))
    assert sliver("trellis.1", lambda i: own(i.addresses(i.link("a1if3").ifindex))) == {"192.168.3.2/30"}


def test_end_deleted_by_its_sliver_is_made_again(driver, sliver, wait_for):
    put(driver, A, B)
    sliver("trellis.1", lambda inner: inner.batch([nl.link_del(inner.link("a1if2").ifindex)]))
    wait_for(lambda: driver.read() == [B], "only B is left")
    put(driver, A, B)
    assert by_key(driver.read()) == by_key([A, B])


def test_end_moved_away_by_its_sliver(driver, netlink, sliver):
    """It is left there as long as nothing else is wanted, then made anew."""
    put(driver, B)
    script = "import ctypes,os,sys; ctypes.CDLL(None).unshare(0x40000000); os.write(1, b'.'); sys.stdin.read()"

    def move(inner):
        import subprocess
        import sys

        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.read(1)
        assert os.system(f"ip link set a1if3 netns {child.pid}") == 0
        return child

    child = sliver("trellis.1", move)
    try:
        assert driver.read() == [B]
        put(driver, B)
        index = netlink.link("trb").ifindex
        wanted = dataclasses.replace(B, mtu=1300)
        put(driver, wanted)
        assert netlink.link("trb").ifindex != index
        assert sliver("trellis.1", lambda inner: inner.link("a1if3").mtu) == 1300
    finally:
        child.communicate()


def test_pair_made_again_means_veth_made_again(driver, netlink, sliver, make_pairs, drop_pair, settings):
    """The old netns is kept alive by a process; its veth is told from one in the new pair."""
    put(driver, A)
    keeper = os.open(settings.netns_dir / "trellis.1", os.O_RDONLY)
    try:
        drop_pair("trellis.1")
        assert driver.read()[0].pair == ""
        make_pairs("trellis.1")
        assert driver.read()[0] != A
        put(driver, A)
        assert driver.read() == [A]
        assert sliver("trellis.1", lambda inner: inner.link("a1if2")).mac == A.mac
    finally:
        os.close(keeper)


def test_half_made_veth_is_made_anew(driver, netlink, monkeypatch):
    """Killed before the record was written: it reads as nothing anyone wants, and the next ensure makes it right."""

    def killed(*_):
        raise KeyboardInterrupt

    put(driver, B)
    monkeypatch.setattr(nl, "link_alias", killed)
    with pytest.raises(KeyboardInterrupt):
        put(driver, A)
    monkeypatch.undo()
    index = netlink.link("tra").ifindex
    assert A not in driver.read()
    put(driver, A, B)
    assert by_key(driver.read()) == by_key([A, B])
    assert netlink.link("tra").ifindex != index


def test_netns_is_prepared_once(driver, sliver):
    """What the sliver set itself survives later links."""
    put(driver, A)
    sliver("trellis.1", lambda _: nl.write_sysctl("net.ipv4.ip_forward", 0))
    put(driver, A, B)
    assert sliver("trellis.1", lambda _: nl.read_sysctl("net.ipv4.ip_forward")) == "0"


def test_foreign_device_of_that_name_is_not_touched(driver, netlink, sliver):
    """NotOurs, nothing of it changed; the other veths of the same call exist."""
    os.system("ip link add tra type veth peer name foreign")
    before = netlink.link("tra")
    with pytest.raises(NotOurs, match="a1if2 in trellis"):
        put(driver, A, B)
    driver.absent([A])
    assert netlink.link("tra") == before
    assert driver.read() == [B]


def test_errors_name_the_object_and_spare_the_others(driver, netlink, sliver):
    """A name taken in the sliver, a missing netns, a bad address: each its own error with the kernel's reason."""
    sliver("trellis.1", lambda _: os.system("ip link add a1if2 type veth peer name x"))
    with pytest.raises(SubstrateError) as caught:
        put(driver, A, B, dataclasses.replace(C, pair="nowhere"))
    assert (caught.value.what, caught.value.operation, caught.value.errno) == (A.title, "create", errno.EEXIST)
    assert "nowhere" in caught.value.__notes__[0]
    assert driver.read() == [B]
    for bad in ({"addresses": ("10.0.0.1/77",)}, {"mac": "nonsense"}, {"inner": "0123456789abcdef"}, {"mtu": 10**6}):
        with pytest.raises(SubstrateError) as caught:
            put(driver, dataclasses.replace(C, **bad))
        assert caught.value.errno == errno.EINVAL
        assert caught.value.detail
    too_many = tuple(f"2001:db8:1111:2222:3333:4444:5555:{i:x}/64" for i in range(16))
    with pytest.raises(SubstrateError, match="too many addresses"):
        put(driver, dataclasses.replace(C, addresses=too_many))
    assert driver.read() == [B]


def test_root_end_changed_behind_our_back_is_repaired(driver, netlink):
    put(driver, A)
    os.system("ip link set tra mtu 1000; ip link property del dev tra altname trellis-x-n2")
    assert driver.read() != [A]
    index = netlink.link("tra").ifindex
    put(driver, A)
    assert driver.read() == [A]
    assert netlink.link("tra").ifindex == index


def test_many_at_once_leave_no_descriptor(driver, netlink, make_pairs, monkeypatch):
    """More pairs than are worked on at a time, several links each."""
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 3)
    make_pairs(*(f"many.{i}" for i in range(10)))
    wanted = [
        Veth(f"m{i}x{k}", f"many.{i}", f"eth{k}", f"02:00:00:00:{i:02x}:{k:02x}", 1458, (f"10.{i}.{k}.1/24",))
        for i in range(10)
        for k in range(3)
    ]
    before = len(os.listdir("/proc/self/fd"))
    put(driver, *wanted)
    assert by_key(driver.read()) == by_key(wanted)
    driver.absent(wanted)
    assert driver.read() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_link_up_trio(driver, netlink, settings):
    """Up, read, down; what is missing or foreign is named; down of nothing is fine."""
    up = LinkUpDriver(settings, netlink)
    put(driver, A, B)
    assert up.read() == []
    up.ensure([LinkUp("tra"), LinkUp("trb")], {})
    up.ensure([LinkUp("tra"), LinkUp("trb")], {})
    assert sorted(o.ifname for o in up.read()) == ["tra", "trb"]
    up.absent([LinkUp("tra"), LinkUp("nothing")])
    up.absent([LinkUp("tra")])
    assert up.read() == [LinkUp("trb")]
    assert not netlink.link("tra").up
    with pytest.raises(SubstrateError, match="raise link nothing up: No such device"):
        up.ensure([LinkUp("nothing"), LinkUp("tra")], {})
    assert netlink.link("tra").up
    with pytest.raises(NotOurs):
        up.ensure([LinkUp("lo")], {})
