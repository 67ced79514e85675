"""The transport sends many messages a call and says which of them failed."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.substrate import netlink as nl
from nodemanager_trellis.substrate import netns
from nodemanager_trellis.substrate.transport import BATCH_BYTES, Transport, split

LO = 1


def test_failures_are_numbered_and_the_rest_is_done(node_netns, netlink):
    """The kernel goes on after a failing message; each failure bears its place, errno and the kernel's sentence."""
    messages = [nl.link_mtu(LO, 2000), nl.link_mtu(4711, 2000), nl.link_mtu(LO, 2001), nl.address_add(LO, "10.0.0.1/8")]
    bad_prefix = bytearray(nl.address_add(LO, "10.0.0.1/8").data)
    bad_prefix[17] = 77
    failures = netlink.transport.send([*(m.data for m in messages), bad_prefix])
    assert [(f.place, f.errno) for f in failures] == [(1, errno.ENODEV), (4, errno.EINVAL)]
    assert failures[1].detail == "ipv4: Invalid prefix length"
    assert netlink.link("lo").mtu == 2001
    assert "10.0.0.1/8" in [a.address for a in netlink.addresses(LO)]


def test_last_message_failing_ends_the_batch(node_netns, netlink):
    failures = netlink.transport.send([nl.link_mtu(LO, 2000).data, nl.link_mtu(4711, 2000).data])
    assert [f.place for f in failures] == [1]
    assert netlink.transport.send([]) == []


def test_many_more_bytes_than_one_call_carries(node_netns, netlink):
    """A batch of several sendmsg keeps its numbering, and as many failures as messages do not overflow the socket."""
    count = 4 * BATCH_BYTES // 40
    messages = [nl.link_mtu(4711 if i % 2 else LO, 2000 + i % 7).data for i in range(count)]
    failures = netlink.transport.send(messages)
    assert [f.place for f in failures] == list(range(1, count, 2))


def test_threads_share_a_transport(node_netns, netlink):
    """Answers reach the thread that asked."""
    wrong: list[object] = []

    def ask(number: int) -> None:
        for _ in range(50):
            failures = netlink.transport.send([nl.link_mtu(LO, 1500 + number).data, nl.link_mtu(4711, 1500).data])
            if [f.place for f in failures] != [1] or netlink.link("lo") is None:
                wrong.append(failures)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_refused_dump_names_its_errno(node_netns, netlink):
    with pytest.raises(SubstrateError) as caught:
        netlink.transport.dump(nl._request(nl.RTM_GETROUTE + 700, b"\0" * 12))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_interrupted_dump_is_repeated_then_refused(node_netns, monkeypatch):
    """A dump that bears NLM_F_DUMP_INTR is read again; ten in a row are an error."""
    with Transport() as transport:
        plain, seen = transport._receive, []

        def receive(times):
            messages = plain()
            if len(seen) < times:
                seen.append(1)
                return [(reply, flags | 0x10, number) for reply, flags, number in messages]
            return messages

        request = nl._request(nl.RTM_GETLINK, nl._IFINFO.pack(0, 0, 0, 0, 0))
        monkeypatch.setattr(transport, "_receive", lambda: receive(3))
        assert [nl.parse_link(r).ifname for r in transport.dump(request)] == ["lo"]
        seen.clear()
        monkeypatch.setattr(transport, "_receive", lambda: receive(1000))
        with pytest.raises(SubstrateError, match="changed under"):
            transport.dump(request)


def test_garbage_is_an_error_not_a_loop():
    with pytest.raises(SubstrateError):
        split(b"\0" * 16)
    assert split(b"\0" * 15) == []


def test_closing_leaves_no_descriptor(node_netns):
    """Opening in other netns and closing leaves the process as it was."""
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with nl.Netlink(1) as netlink:
            netlink.links()
        netns.open_socket_in(node_netns.path).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_run_in_gives_results_and_errors_and_moves_nobody(node_netns, make_pairs, settings):
    """The function runs in that netns, its exception comes out, the caller stays where it was."""
    make_pairs("one", "two")
    here = os.readlink("/proc/thread-self/ns/net")
    paths = [settings.netns_dir / "one", settings.netns_dir / "none", settings.netns_dir / "two"]
    one, none, two = netns.run_in_each(paths, lambda _: os.readlink("/proc/thread-self/ns/net"))
    assert len({here, one, two}) == 3
    assert isinstance(none, netns.NetnsError)
    assert none.errno == errno.ENOENT
    assert os.readlink("/proc/thread-self/ns/net") == here
    with pytest.raises(ZeroDivisionError):
        netns.run_in(paths[0], lambda: 1 // 0)
    with pytest.raises(netns.NetnsError, match="enter"):
        netns.run_in("/proc/self/ns/uts", lambda: None)
    with pytest.raises(netns.NetnsError, match="other threads"):
        netns.enter(paths[0])


def test_sysctls_are_those_of_the_threads_netns(node_netns):
    nl.write_sysctl("net.ipv4.ip_forward", 1)
    assert nl.read_sysctl("net.ipv4.ip_forward") == "1"
    assert nl.read_sysctl("net/ipv4/conf/lo/forwarding") == "1"
    with pytest.raises(SubstrateError, match=r"no\.such"):
        nl.write_sysctl("net.no.such", 1)
    with pytest.raises(ValueError, match="is not a sysctl"):
        nl.read_sysctl("net/../kernel/hostname")
