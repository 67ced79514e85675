"""Names are computed, fit their limits, and can be read back."""

import ipaddress
import itertools
import re

import pytest

from nodemanager_trellis import names


def test_sliver_id_and_back():
    """A container's name holds instance and slice id."""
    assert "trellis.37" == names.sliver_id("trellis", 37)
    assert 37 == names.slice_id_of("trellis", "trellis.37")


@pytest.mark.parametrize(
    "name",
    ["", "37", "trellis", "other.37", "trellis.3.7"]
    + [f"trellis.{number}" for number in ("", "x", "007", "0", "-1", "٣", "37 ", "37\n", "9" * 5000)],
)
def test_other_names_are_not_ours(name):
    """Only what this instance would write is read back."""
    assert None is names.slice_id_of("trellis", name)


def test_root_ifname():
    """The root end's name is short, stable, and differs by slice and link."""
    found = {names.root_ifname(s, link) for s in range(200) for link in ("n1", "n2", "n12")}

    assert 600 == len(found)
    assert all(re.fullmatch(r"tr[a-z2-7]{10}", name) for name in found)
    assert names.root_ifname(1, "n2") == names.root_ifname(1, "n2")


def test_altname():
    """The alternative name is for people and fits 127 characters."""
    assert "trellis-princeton_iias-n39" == names.altname("princeton_iias", "n39")
    assert 127 == len(names.altname("x_" + "y" * 62, "n" * 100))


@pytest.mark.parametrize(
    ("key", "remote", "name"),
    [(10, 39, "a10if39"), (0, 1, "a0if1"), (255, 127, "a255if127"), (4294967295, 12, "a4294967295if12")],
)
def test_vini_ifname(key, remote, name):
    """The sliver's end is named as vsys' setup-link named it."""
    assert name == names.vini_ifname(key, remote)


@pytest.mark.parametrize(("key", "remote"), [(4294967295, 127), (4294967295, 2147483647), (1, 2147483647)])
def test_long_vini_ifname(key, remote):
    """A name that the kernel would refuse is hashed, and differs from its neighbours'."""
    name = names.vini_ifname(key, remote)

    assert len(name) <= names.IFNAMSIZ
    assert re.fullmatch(r"a[a-z0-9]+if[0-9]*", name)
    assert name != names.vini_ifname(key - 1, remote)


def test_link_mac():
    """The address is locally administered, unicast, stable, and differs by slice, node and link."""
    macs = {names.link_mac(s, n, link) for s, n, link in itertools.product(range(1, 20), range(1, 20), ("n1", "n2"))}

    assert 19 * 19 * 2 == len(macs)
    assert all(re.fullmatch("02(:[0-9a-f]{2}){5}", mac) for mac in macs)
    assert names.link_mac(1, 2, "n3") == names.link_mac(1, 2, "n3")


@pytest.mark.parametrize(
    ("a", "b", "net"),
    [(1, 2, "192.168.2.8/30"), (2, 1, "192.168.2.8/30"), (2, 39, "192.168.4.156/30"), (126, 127, "192.168.253.252/30")],
)
def test_vini_network(a, b, net):
    """The network of two nodes is VINI's formula, whichever end asks."""
    assert ipaddress.IPv4Network(net) == names.vini_network(a, b)


def test_vini_networks_are_unique():
    """No two pairs of nodes share a network, and all lie in 192.168/16."""
    nets = [names.vini_network(a, b) for a, b in itertools.combinations(range(1, 128), 2)]

    assert len(nets) == len(set(nets))
    assert all(net.subnet_of(ipaddress.IPv4Network("192.168.0.0/16")) for net in nets)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (0, 1), (1, 128), (127, 128), (-1, 5)])
def test_vini_network_has_limits(a, b):
    """Beyond node 127 the formula repeats itself, so it is refused."""
    with pytest.raises(ValueError, match="two different node ids"):
        names.vini_network(a, b)


def test_bpf_directory():
    """Pins of a node lie in a directory of their own."""
    assert "trellis/lab-chic" == names.bpf_directory("lab-chic")
