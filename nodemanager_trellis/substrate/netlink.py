"""rtnetlink in our words: messages made of templates, and the kernel's state as small values. The only pyroute2 import.

pyroute2 encodes each message *shape* once (0.1-0.4 ms), we keep the bytes and write the values into their places
(0.3 us): that is what makes Python as fast as C here. The places are found by encoding a shape twice, with values that
differ in every byte of one hole. Importing pyroute2 costs 80-100 ms, so it happens at the first message that needs a
template (:func:`prepare` does it early); reading never needs it.

Every constructor of a message takes ``what``, the object as people know it; an error names it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import ipaddress
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.substrate.transport import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Reply,
    Transport,
)

# include/uapi/linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTM_GETNSID = 90
RTM_NEWLINKPROP, RTM_DELLINKPROP = 108, 109

TC_H_ROOT = 0xFFFFFFFF
TC_H_CLSACT = 0xFFFFFFF1
CLSACT_HANDLE = 0xFFFF0000
HOOKS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
"""TC_H_MIN_INGRESS and TC_H_MIN_EGRESS below TC_H_CLSACT (include/uapi/linux/pkt_sched.h)"""

ETH_P_ALL = 3
IFF_UP = 0x1
IFF_LOWER_UP = 0x10000
TXQUEUELEN = 1000
"""packets; a veth has no queue of its own, and a qdisc that someone attaches takes its length from here"""

NUD_INCOMPLETE, NUD_REACHABLE, NUD_STALE, NUD_DELAY = 0x01, 0x02, 0x04, 0x08
NUD_PROBE, NUD_FAILED, NUD_NOARP, NUD_PERMANENT, NUD_NONE = 0x10, 0x20, 0x40, 0x80, 0x00
NUD_VALID = NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY
NTF_USE = 0x01
NTF_EXT_MANAGED = 0x01
"""in NDA_FLAGS_EXT, Linux 5.16: the kernel keeps the entry fresh by itself"""

ALIAS_BYTES = 254
ALTNAME_BYTES = 127
BPF_NAME_BYTES = 31

HTB_MAX_PLAIN = 2**32 - 1
"""byte/s; a larger rate travels in TCA_HTB_RATE64 (34.4 Gbit/s)"""

_ETHTOOL_SGRO = 0x0000002C
_SIOCETHTOOL = 0x8946

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_TCMSG = struct.Struct("=BxxxiIII")
_NDMSG = struct.Struct("=BxxxiHBB")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NLA = struct.Struct("=HH")
_U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")
_U64 = struct.Struct("=Q")


class Message(NamedTuple):
    """One request, and what to call it when it fails."""

    data: bytes | bytearray
    what: str
    operation: str
    fine: tuple[int, ...] = ()
    """errnos that mean "already so" """


class Failed(NamedTuple):
    """One message of a batch that the kernel refused."""

    place: int
    error: SubstrateError


# ---------------------------------------------------------------------------------------------------- templates


class Template:
    """One message shape, encoded once by ``build`` (pyroute2), with holes to write values into.

    :param build: the message made of values for the holes, given by name
    :param holes: name → struct format (``I``), or ``Ns``: text or bytes in a field of N bytes, padded with NUL
    """

    def __init__(self, build: Callable[..., bytes], **holes: str) -> None:
        self._build = build
        self.holes = {name: struct.Struct("=" + code) for name, code in holes.items()}

    def encode(self, **values: Any) -> bytes:
        """The message as pyroute2 makes it now: the slow way, to compare with."""
        fields = {n: _padded(values[n], s.size) if s.format.endswith("s") else values[n] for n, s in self.holes.items()}
        return self._build(**fields)

    @functools.cached_property
    def _shape(self) -> tuple[bytes, list[list[tuple[int, struct.Struct]]]]:
        low = {name: self._sentinel(packer, 0x55) for name, packer in self.holes.items()}
        shape = self._build(**low)
        places = []
        for name, packer in self.holes.items():
            other = self._build(**{**low, name: self._sentinel(packer, 0x2A)})
            places.append([(offset, packer) for offset in _differences(shape, other, packer.size)])
        return shape, places

    @staticmethod
    def _sentinel(packer: struct.Struct, byte: int) -> Any:
        raw = bytes([byte]) * packer.size
        return raw if packer.format.endswith("s") else packer.unpack(raw)[0]

    def fill(self, type_: int, flags: int, *values: Any) -> bytearray:
        """The message with ``values`` in the order of the holes, with that message type and those flags."""
        shape, places = self._shape
        data = bytearray(shape)
        struct.pack_into("=HH", data, 4, type_, flags)
        for value, offsets in zip(values, places, strict=True):
            if isinstance(value, str):
                value = value.encode()
                if len(value) > offsets[0][1].size:
                    raise ValueError(f"{value[:300]!r} is longer than {offsets[0][1].size} bytes")
            for offset, packer in offsets:
                packer.pack_into(data, offset, value)
        return data


def _padded(value: Any, size: int) -> bytes:
    raw = value.encode() if isinstance(value, str) else bytes(value)
    return raw.ljust(size, b"\0")


def _differences(one: bytes, other: bytes, size: int) -> list[int]:
    """Where two messages differ, in pieces of ``size`` bytes."""
    if len(one) != len(other):
        raise RuntimeError("a hole changes the length of its message")
    offsets: list[int] = []
    for offset in (i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b):
        if not offsets or offset >= offsets[-1] + size:
            offsets.append(offset)
    if not offsets:
        raise RuntimeError("a hole does not appear in its message")
    return offsets


def _encoded(cls: Any, fields: dict[str, Any], attrs: Sequence[Any]) -> bytes:
    """A message of a pyroute2 class; an attribute that this pyroute2 does not know is an error, not silence."""
    message = cls()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [list(a) for a in attrs]
    message.encode()
    if unknown := [a[0] for a in message["attrs"] if isinstance(a, list)]:
        raise RuntimeError(f"pyroute2 does not know {unknown}")
    return bytes(message.data)


def _appended(data: bytes, tail: bytes, into: int = 0) -> bytes:
    """``data`` with attributes behind it that some pyroute2 does not know; ``into``: offset of the one they are in."""
    grown = bytearray(data + tail)
    struct.pack_into("=I", grown, 0, len(grown))
    if into:
        struct.pack_into("=H", grown, into, _NLA.unpack_from(grown, into)[0] + len(tail))
    return bytes(grown)


def _text(raw: bytes) -> str:
    """A padded text as pyroute2 wants it; its own final NUL makes the field one byte longer."""
    return raw.decode()


def _build_veth(
    ifname: bytes, inner: bytes, netns_fd: int, mac: bytes, root_mac: bytes, mtu: int, group: int, gso_max: int
) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    peer = {
        # Down: an end that is opened before its peer is registered fails (veth_open, ENOTCONN).
        "attrs": [
            ["IFLA_IFNAME", _text(inner)],
            ["IFLA_ADDRESS", _mac_text(mac)],
            ["IFLA_MTU", mtu],
            ["IFLA_GROUP", group],
            ["IFLA_GSO_MAX_SIZE", gso_max],
            ["IFLA_NET_NS_FD", netns_fd],
        ],
    }
    data = {"attrs": [["VETH_INFO_PEER", peer]]}
    return _encoded(
        ifinfmsg,
        {"flags": 0, "change": IFF_UP},
        [
            ["IFLA_IFNAME", _text(ifname)],
            ["IFLA_ADDRESS", _mac_text(root_mac)],
            ["IFLA_MTU", mtu],
            ["IFLA_GROUP", group],
            ["IFLA_TXQLEN", TXQUEUELEN],
            ["IFLA_LINKINFO", {"attrs": [["IFLA_INFO_KIND", "veth"], ["IFLA_INFO_DATA", data]]}],
        ],
    )


def _link_template(attribute: str | None, code: str = "", text: bool = False) -> Template:
    """Change of one attribute of a link found by index."""

    def build(index: int, value: Any = None) -> bytes:
        from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

        attrs = [] if attribute is None else [[attribute, _text(value) if text else value]]
        return _encoded(ifinfmsg, {"index": index}, attrs)

    return Template(build, index="i", **({} if attribute is None else {"value": code}))


def _build_flags(index: int, flags: int, change: int) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    return _encoded(ifinfmsg, {"index": index, "flags": flags, "change": change}, [])


def _build_quiet(index: int) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    spec = {"attrs": [["AF_INET6", {"attrs": [["IFLA_INET6_ADDR_GEN_MODE", 1]]}]]}
    return _encoded(ifinfmsg, {"index": index}, [["IFLA_AF_SPEC", spec]])


def _build_altname(index: int, name: bytes) -> bytes:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    return _encoded(ifinfmsg, {"index": index}, [["IFLA_PROP_LIST", {"attrs": [["IFLA_ALT_IFNAME", _text(name)]]}]])


def _address_template(family: int) -> Template:
    def build(index: int, prefixlen: int, address: bytes) -> bytes:
        from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

        text = socket.inet_ntop(family, address)
        attrs: list[Any] = [["IFA_LOCAL", text], ["IFA_ADDRESS", text]]
        if family == socket.AF_INET6:
            attrs.append(["IFA_FLAGS", 0x02])  # IFA_F_NODAD: usable at once, not after 2 s
        return _encoded(ifaddrmsg, {"family": family, "prefixlen": prefixlen, "index": index}, attrs)

    return Template(build, index="I", prefixlen="B", address="4s" if family == socket.AF_INET else "16s")


def _build_htb_qdisc(index: int, handle: int, r2q: int) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    init = {"version": 3, "rate2quantum": r2q, "defcls": 0, "debug": 0, "direct_pkts": 0}
    return _encoded(
        tcmsg,
        {"index": index, "handle": handle, "parent": TC_H_ROOT},
        [["TCA_KIND", "htb"], ["TCA_OPTIONS", {"attrs": [["TCA_HTB_INIT", init]]}]],
    )


def _build_htb_class(
    index: int,
    handle: int,
    parent: int,
    rate: int,
    ceil: int,
    buffer: int,
    cbuffer: int,
    quantum: int,
    rate64: int,
    ceil64: int,
) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    # Ethernet link layer (low bits of the reserved byte, TC_LINKLAYER_ETHERNET): then the kernel needs no rate tables,
    # 2 KiB a message.
    parms = {
        "rate___reserved": 1,
        "rate": rate,
        "ceil___reserved": 1,
        "ceil": ceil,
        "buffer": buffer,
        "cbuffer": cbuffer,
        "quantum": quantum,
    }
    for name in ("cell_log", "overhead", "cell_align", "mpu"):
        parms[f"rate_{name}"] = parms[f"ceil_{name}"] = 0
    parms["level"] = parms["prio"] = 0
    data = _encoded(
        tcmsg,
        {"index": index, "handle": handle, "parent": parent},
        [["TCA_KIND", "htb"], ["TCA_OPTIONS", {"attrs": [["TCA_HTB_PARMS", parms]]}]],
    )
    # pyroute2 < 0.8.1 does not know RATE64 and CEIL64 (types 6 and 7): put behind, into TCA_OPTIONS, which is the last.
    return _appended(data, struct.pack("=HHQHHQ", 12, 6, rate64, 12, 7, ceil64), into=HEADER.size + _TCMSG.size + 8)


def _build_bfifo(index: int, handle: int, parent: int, limit: int) -> bytes:
    from pyroute2.netlink.rtnl import tcmsg as module

    # The options of both kinds are one struct (tc_fifo_qopt); only pfifo is known to pyroute2.
    module.plugins.setdefault("bfifo", module.plugins["pfifo"])
    return _encoded(
        module.tcmsg,
        {"index": index, "handle": handle, "parent": parent},
        [["TCA_KIND", "bfifo"], ["TCA_OPTIONS", {"limit": limit - (limit >> 31 << 32)}]],  # signed to pyroute2
    )


def _build_clsact(index: int) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    return _encoded(tcmsg, {"index": index, "handle": CLSACT_HANDLE, "parent": TC_H_CLSACT}, [["TCA_KIND", "clsact"]])


def _build_tc(index: int, handle: int, parent: int, info: int) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    return _encoded(tcmsg, {"index": index, "handle": handle, "parent": parent, "info": info}, [])


def _build_bpf(index: int, handle: int, parent: int, info: int, fd: int, name: bytes) -> bytes:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    options = {"attrs": [["TCA_BPF_FD", fd], ["TCA_BPF_NAME", _text(name)], ["TCA_BPF_FLAGS", 1]]}  # direct action
    return _encoded(
        tcmsg,
        {"index": index, "handle": handle, "parent": parent, "info": info},
        [["TCA_KIND", "bpf"], ["TCA_OPTIONS", options]],
    )


def _build_neigh(index: int, state: int, flags: int, address: bytes, flags_ext: int) -> bytes:
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

    data = _encoded(
        ndmsg,
        {"family": socket.AF_INET, "ifindex": index, "state": state, "flags": flags},
        [["NDA_DST", socket.inet_ntop(socket.AF_INET, address)]],
    )
    return _appended(data, struct.pack("=HHI", 8, 15, flags_ext))  # NDA_FLAGS_EXT; unknown to pyroute2 0.7.2


def _mac_text(raw: bytes) -> str:
    return ":".join(f"{b:02x}" for b in raw)


# asciiz of pyroute2 adds the final NUL that closes each text field.
TEMPLATES: dict[str, Template] = {
    "veth": Template(
        _build_veth,
        ifname="15s", inner="15s", netns_fd="I", mac="6s", root_mac="6s", mtu="I", group="I", gso_max="I",
    ),
    "flags": Template(_build_flags, index="i", flags="I", change="I"),
    "mtu": _link_template("IFLA_MTU", "I"),
    "gso": _link_template("IFLA_GSO_MAX_SIZE", "I"),
    "group": _link_template("IFLA_GROUP", "I"),
    "alias": _link_template("IFLA_IFALIAS", f"{ALIAS_BYTES}s", text=True),
    "link": _link_template(None),
    "quiet": Template(_build_quiet, index="i"),
    "altname": Template(_build_altname, index="i", name=f"{ALTNAME_BYTES}s"),
    "address4": _address_template(socket.AF_INET),
    "address6": _address_template(socket.AF_INET6),
    "htb": Template(_build_htb_qdisc, index="i", handle="I", r2q="I"),
    "class": Template(
        _build_htb_class,
        index="i", handle="I", parent="I", rate="I", ceil="I", buffer="I", cbuffer="I", quantum="I", rate64="Q",
        ceil64="Q",
    ),
    "bfifo": Template(_build_bfifo, index="i", handle="I", parent="I", limit="I"),
    "clsact": Template(_build_clsact, index="i"),
    "tc": Template(_build_tc, index="i", handle="I", parent="I", info="I"),
    "bpf": Template(
        _build_bpf, index="i", handle="I", parent="I", info="I", fd="I", name=f"{BPF_NAME_BYTES}s"
    ),
    "neigh": Template(_build_neigh, index="i", state="H", flags="B", address="4s", flags_ext="I"),
}  # fmt: skip


def prepare() -> None:
    """All shapes are encoded (about 0.1 s, nearly all of it the import): later messages cost microseconds."""
    for template in TEMPLATES.values():
        _ = template._shape


_NEW = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
_GONE = (errno.ENODEV, errno.ENOENT)


def mac_bytes(mac: str) -> bytes:
    """``02:…`` as 6 bytes; ValueError if it is none."""
    raw = bytes.fromhex(mac.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{mac!r} is not a MAC address")
    return raw


# ---------------------------------------------------------------------------------------------------- messages


def veth_add(
    ifname: str,
    inner: str,
    netns_fd: int,
    mac: str,
    mtu: int,
    group: int,
    gso_max: int,
    root_mac: str = "",
    what: str = "",
) -> Message:
    """A veth pair: root end ``ifname`` here, inner end in the netns of ``netns_fd``, both down and both in ``group``.

    The fd must be open while the message is sent. Follow it with :func:`link_quiet` before the root end comes up.

    :param mac: of the inner end; the root end gets ``root_mac`` or the same with another locally administered prefix
    """
    raw = mac_bytes(mac)
    root = mac_bytes(root_mac) if root_mac else bytes((raw[0] ^ 0x04, *raw[1:]))
    data = TEMPLATES["veth"].fill(RTM_NEWLINK, _NEW, ifname, inner, netns_fd, raw, root, mtu, group, gso_max)
    return Message(data, what or f"veth {ifname}", "create")


def link_quiet(ifindex: int, what: str = "") -> Message:
    """The device makes itself no IPv6 link-local address and so says nothing when it comes up (addrgenmode none).

    Without IPv6 it is silent anyway: on a kernel that has none, and on a device below IPv6's smallest MTU, 1280.
    """
    data = TEMPLATES["quiet"].fill(RTM_SETLINK, NLM_F_REQUEST, ifindex)
    return Message(data, what or f"link {ifindex}", "silence", (errno.EAFNOSUPPORT,))


def link_flags(ifindex: int, up: bool, what: str = "") -> Message:
    """The device is up, or down."""
    data = TEMPLATES["flags"].fill(RTM_SETLINK, NLM_F_REQUEST, ifindex, IFF_UP if up else 0, IFF_UP)
    return Message(data, what or f"link {ifindex}", "raise" if up else "lower")


def link_mtu(ifindex: int, mtu: int, what: str = "") -> Message:
    """The device takes frames of ``mtu`` bytes, Ethernet header not counted."""
    data = TEMPLATES["mtu"].fill(RTM_SETLINK, NLM_F_REQUEST, ifindex, mtu)
    return Message(data, what or f"link {ifindex}", f"set mtu {mtu} of")


def link_gso(ifindex: int, gso_max: int, what: str = "") -> Message:
    """No aggregate larger than ``gso_max`` bytes leaves the device's stack."""
    data = TEMPLATES["gso"].fill(RTM_SETLINK, NLM_F_REQUEST, ifindex, gso_max)
    return Message(data, what or f"link {ifindex}", f"set gso_max_size {gso_max} of")


def link_group(ifindex: int, group: int, what: str = "") -> Message:
    """The device bears that mark."""
    data = TEMPLATES["group"].fill(RTM_SETLINK, NLM_F_REQUEST, ifindex, group)
    return Message(data, what or f"link {ifindex}", "mark")


def link_alias(ifindex: int, alias: str, what: str = "") -> Message:
    """``alias`` of at most 254 bytes; '' takes it away."""
    data = TEMPLATES["alias"].fill(RTM_SETLINK, NLM_F_REQUEST, ifindex, alias)
    return Message(data, what or f"link {ifindex}", "set alias of")


def link_del(ifindex: int, what: str = "") -> Message:
    """No such device; a veth's other end goes with it. Gone already is fine."""
    data = TEMPLATES["link"].fill(RTM_DELLINK, NLM_F_REQUEST, ifindex)
    return Message(data, what or f"link {ifindex}", "delete", _GONE)


def group_del(group: int, what: str = "") -> Message:
    """All devices of that group are gone at once: one grace period for all instead of 10-20 ms each."""
    if not group:
        raise ValueError("group 0 is everybody's")
    data = TEMPLATES["group"].fill(RTM_DELLINK, NLM_F_REQUEST, 0, group)
    return Message(data, what or f"links of group {group}", "delete", _GONE)


def altname_add(ifindex: int, altname: str, what: str = "") -> Message:
    """A second name, at most 127 bytes, unique in the netns."""
    data = TEMPLATES["altname"].fill(RTM_NEWLINKPROP, _NEW, ifindex, altname)
    return Message(data, what or f"link {ifindex}", f"add name {altname} to")


def altname_del(ifindex: int, altname: str, what: str = "") -> Message:
    """The device has no such second name."""
    data = TEMPLATES["altname"].fill(RTM_DELLINKPROP, NLM_F_REQUEST, ifindex, altname)
    return Message(data, what or f"link {ifindex}", f"take name {altname} from", (*_GONE, errno.EINVAL))


def _address(address: str) -> tuple[Template, int, bytes]:
    interface = ipaddress.ip_interface(address)
    return TEMPLATES[f"address{interface.version}"], interface.network.prefixlen, interface.ip.packed


def address_add(ifindex: int, address: str, what: str = "") -> Message:
    """``192.0.2.1/30`` or ``2001:db8::1/64`` is on the device; IPv6 without DAD. Already there: fine."""
    template, prefixlen, raw = _address(address)
    data = template.fill(RTM_NEWADDR, _NEW, ifindex, prefixlen, raw)
    return Message(data, what or f"link {ifindex}", f"add {address} to", (errno.EEXIST,))


def address_del(ifindex: int, address: str, what: str = "") -> Message:
    """The address is not on the device."""
    template, prefixlen, raw = _address(address)
    data = template.fill(RTM_DELADDR, NLM_F_REQUEST, ifindex, prefixlen, raw)
    return Message(data, what or f"link {ifindex}", f"take {address} from", (errno.EADDRNOTAVAIL, errno.ENODEV))


def htb_qdisc(ifindex: int, r2q: int, handle: int = 0x10000, what: str = "") -> Message:
    """HTB is the root qdisc, as ``1:``, with no default class: what no class is named for goes out unshaped.

    :param r2q: used only for classes without a quantum, and ours all have one, so it serves as our mark
    """
    data = TEMPLATES["htb"].fill(RTM_NEWQDISC, _PUT, ifindex, handle, r2q)
    return Message(data, what or f"htb of {ifindex}", "create")


def htb_class(
    ifindex: int,
    minor: int,
    parent: int,
    rate: int,
    ceil: int,
    buffer: int,
    cbuffer: int,
    quantum: int,
    replace: bool = False,
    what: str = "",
) -> Message:
    """Class ``1:minor`` below ``1:parent`` (0: below the qdisc).

    :param rate: guaranteed, byte/s; ``ceil`` alike
    :param buffer: burst in 64 ns ticks at ``rate`` (units.htb_buffer); ``cbuffer`` alike at ``ceil``
    :param quantum: bytes a round; never 0, or the kernel computes it from r2q
    :param replace: change it in place if it exists
    """
    data = TEMPLATES["class"].fill(
        RTM_NEWTCLASS,
        _PUT if replace else _NEW,
        ifindex,
        0x10000 | minor,
        0x10000 | parent,
        min(rate, HTB_MAX_PLAIN),
        min(ceil, HTB_MAX_PLAIN),
        buffer,
        cbuffer,
        quantum,
        rate,
        ceil,
    )
    return Message(data, what or f"class 1:{minor:x} of {ifindex}", "change" if replace else "create")


def bfifo(ifindex: int, minor: int, limit: int, what: str = "") -> Message:
    """The leaf queue of class ``1:minor`` holds at most ``limit`` bytes; its handle is ``minor:``. Changed in place."""
    data = TEMPLATES["bfifo"].fill(RTM_NEWQDISC, _PUT, ifindex, minor << 16, 0x10000 | minor, limit)
    return Message(data, what or f"queue {minor:x}: of {ifindex}", "set")


def clsact(ifindex: int, what: str = "") -> Message:
    """The device has hooks ``ingress`` and ``egress``. Already there is fine: it is shared, never ours alone."""
    data = TEMPLATES["clsact"].fill(RTM_NEWQDISC, _NEW, ifindex)
    return Message(data, what or f"clsact of {ifindex}", "create", (errno.EEXIST,))


def clsact_del(ifindex: int, what: str = "") -> Message:
    """No clsact: all filters of both hooks are gone, also those of others."""
    data = TEMPLATES["tc"].fill(RTM_DELQDISC, NLM_F_REQUEST, ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0)
    return Message(data, what or f"clsact of {ifindex}", "delete", (*_GONE, errno.EINVAL))


def bpf_filter(
    ifindex: int, hook: str, prog_fd: int, name: str, prio: int = 1, handle: int = 1, what: str = ""
) -> Message:
    """The program is at that hook (``ingress`` or ``egress``) in direct action; one there with that prio and handle is
    replaced without a gap. ``name`` is at most 31 bytes; the fd must be open while the message is sent."""
    info = prio << 16 | socket.htons(ETH_P_ALL)
    data = TEMPLATES["bpf"].fill(
        RTM_NEWTFILTER, NLM_F_REQUEST | NLM_F_CREATE, ifindex, handle, HOOKS[hook], info, prog_fd, name
    )
    return Message(data, what or f"filter {name} at {hook} of {ifindex}", "attach")


def filter_del(ifindex: int, hook: str, prio: int = 1, handle: int = 1, what: str = "") -> Message:
    """No filter of that prio and handle is at the hook."""
    info = prio << 16 | socket.htons(ETH_P_ALL)
    data = TEMPLATES["tc"].fill(RTM_DELTFILTER, NLM_F_REQUEST, ifindex, handle, HOOKS[hook], info)
    return Message(data, what or f"filter at {hook} of {ifindex}", "detach", (*_GONE, errno.EINVAL))


def class_del(ifindex: int, minor: int, what: str = "") -> Message:
    """No class ``1:minor``, nor its leaf queue; EBUSY while classes are below it."""
    data = TEMPLATES["tc"].fill(RTM_DELTCLASS, NLM_F_REQUEST, ifindex, 0x10000 | minor, 0, 0)
    return Message(data, what or f"class 1:{minor:x} of {ifindex}", "delete", _GONE)


def qdisc_del(ifindex: int, handle: int, parent: int = TC_H_ROOT, what: str = "") -> Message:
    """No qdisc of that handle is at ``parent``; its classes and queues go with it."""
    data = TEMPLATES["tc"].fill(RTM_DELQDISC, NLM_F_REQUEST, ifindex, handle, parent, 0)
    return Message(data, what or f"qdisc {handle >> 16:x}: of {ifindex}", "delete", _GONE)


# ---------------------------------------------------------------------------------------------------- what is read


class LinkInfo(NamedTuple):
    """A network device."""

    ifname: str
    ifindex: int
    mac: str
    mtu: int
    up: bool
    carrier: bool
    group: int
    altnames: tuple[str, ...]
    gso_max: int
    kind: str
    """``veth``, ``bridge`` …, '' for hardware"""
    peer_ifindex: int
    """other end of a veth, in its own netns; 0: none"""
    peer_netnsid: int
    """id of the netns that the other end is in, -1: this one"""
    alias: str
    master: int
    """ifindex of the bridge it is a port of; 0: none"""
    xdp_prog_id: int
    """0: no XDP program"""


class AddressInfo(NamedTuple):
    """An address on a device."""

    ifindex: int
    address: str
    """with prefix length"""
    scope: int
    """0 global, 253 link"""


class QdiscInfo(NamedTuple):
    """A qdisc."""

    ifindex: int
    kind: str
    handle: int
    """major number in the upper 16 bits; 0: the kernel's own default"""
    parent: int
    limit: int
    """bytes, of a bfifo; else 0"""
    r2q: int
    """of an HTB; else 0"""
    defcls: int


class ClassInfo(NamedTuple):
    """An HTB class, with what it sent so far."""

    minor: int
    parent: int
    """minor of the class above, 0: the qdisc"""
    rate: int
    """byte/s; ``ceil`` alike"""
    ceil: int
    buffer: int
    """64 ns ticks; ``cbuffer`` alike"""
    cbuffer: int
    quantum: int
    level: int
    """0: a leaf"""
    bytes: int
    packets: int
    drops: int
    backlog: int
    """bytes now waiting in its leaf queue"""
    qlen: int
    overlimits: int


class FilterInfo(NamedTuple):
    """A cls_bpf filter."""

    prio: int
    handle: int
    name: str
    prog_id: int


class Route(NamedTuple):
    """The way to an address."""

    ifindex: int
    gateway: str | None
    source: str
    """address that packets would leave with"""


class Neighbour(NamedTuple):
    """An entry of a neighbour table."""

    ip: str
    mac: str | None
    state: int
    """NUD_*; usable while ``state & NUD_VALID``"""


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Attributes in ``data[start:end]``: (type without flags, offset of the value, its end)."""
    while start + 4 <= end:
        length, type_ = _NLA.unpack_from(data, start)
        if length < 4 or start + length > end:
            return
        yield type_ & 0x3FFF, start + 4, start + length
        start += length + 3 & ~3


def _string(data: bytes, start: int, end: int) -> str:
    return data[start:end].split(b"\0", 1)[0].decode(errors="replace")


def parse_link(reply: Reply) -> LinkInfo:
    """An RTM_NEWLINK or RTM_DELLINK message (include/uapi/linux/if_link.h)."""
    data = reply.data
    _family, _type, ifindex, flags, _change = _IFINFO.unpack_from(data, reply.start)
    ifname = mac = kind = alias = ""
    mtu = group = gso = peer = master = xdp = 0
    netnsid = -1
    altnames: list[str] = []
    for type_, at, end in attributes(data, reply.start + _IFINFO.size, reply.end):
        if type_ == 3:
            ifname = _string(data, at, end)
        elif type_ == 1:
            mac = data[at:end].hex(":")
        elif type_ == 4:
            mtu = _U32.unpack_from(data, at)[0]
        elif type_ == 5:
            peer = _U32.unpack_from(data, at)[0]
        elif type_ == 10:
            master = _U32.unpack_from(data, at)[0]
        elif type_ == 18:
            kind = next((_string(data, a, e) for t, a, e in attributes(data, at, end) if t == 1), "")
        elif type_ == 20:
            alias = _string(data, at, end)
        elif type_ == 27:
            group = _U32.unpack_from(data, at)[0]
        elif type_ == 37:
            netnsid = _I32.unpack_from(data, at)[0]
        elif type_ == 41:
            gso = _U32.unpack_from(data, at)[0]
        elif type_ == 43:
            xdp = next((_U32.unpack_from(data, a)[0] for t, a, _ in attributes(data, at, end) if t == 4), 0)
        elif type_ == 52:
            altnames = [_string(data, a, e) for t, a, e in attributes(data, at, end) if t == 53]
    return LinkInfo(
        ifname, ifindex, mac, mtu, bool(flags & IFF_UP), bool(flags & IFF_LOWER_UP), group, tuple(altnames), gso, kind,
        peer, netnsid, alias, master, xdp,
    )  # fmt: skip


def parse_neighbour(reply: Reply) -> tuple[int, Neighbour]:
    """An RTM_NEWNEIGH or RTM_DELNEIGH message: ifindex and entry."""
    family, ifindex, state, _flags, _type = _NDMSG.unpack_from(reply.data, reply.start)
    ip, mac = "", None
    for type_, at, end in attributes(reply.data, reply.start + _NDMSG.size, reply.end):
        if type_ == 1 and family in (socket.AF_INET, socket.AF_INET6):
            ip = socket.inet_ntop(family, reply.data[at:end])
        elif type_ == 2:
            mac = reply.data[at:end].hex(":")
    return ifindex, Neighbour(ip, mac if state & NUD_VALID else None, state)


def _parse_address(reply: Reply) -> AddressInfo:
    family, prefixlen, _flags, scope, ifindex = _IFADDR.unpack_from(reply.data, reply.start)
    found: dict[int, bytes] = {}
    for type_, at, end in attributes(reply.data, reply.start + _IFADDR.size, reply.end):
        if type_ in (1, 2):
            found[type_] = reply.data[at:end]
    raw = found.get(2) or found.get(1) or b"\0\0\0\0"  # IFA_LOCAL; IFA_ADDRESS is the far end of a point to point one
    return AddressInfo(ifindex, f"{socket.inet_ntop(family, raw)}/{prefixlen}", scope)


def _parse_qdisc(reply: Reply) -> QdiscInfo:
    data = reply.data
    _family, ifindex, handle, parent, _info = _TCMSG.unpack_from(data, reply.start)
    kind = ""
    limit = r2q = defcls = 0
    for type_, at, end in attributes(data, reply.start + _TCMSG.size, reply.end):
        if type_ == 1:
            kind = _string(data, at, end)
        elif type_ == 2 and kind == "bfifo":
            limit = _U32.unpack_from(data, at)[0]
        elif type_ == 2 and kind == "htb":
            for inner, a, _ in attributes(data, at, end):
                if inner == 2:  # TCA_HTB_INIT: version, rate2quantum, defcls …
                    _, r2q, defcls = struct.unpack_from("=III", data, a)
    return QdiscInfo(ifindex, kind, handle, parent, limit, r2q, defcls)


_HTB_OPT = struct.Struct("=8xI8xIIIIII")
"""struct tc_htb_opt: rate.rate, ceil.rate, buffer, cbuffer, quantum, level, prio"""


def _parse_class(reply: Reply) -> ClassInfo | None:
    data = reply.data
    _family, _ifindex, handle, parent, _info = _TCMSG.unpack_from(data, reply.start)
    kind = ""
    rate = ceil = buffer = cbuffer = quantum = level = 0
    sent = packets = drops = backlog = qlen = overlimits = 0
    for type_, at, end in attributes(data, reply.start + _TCMSG.size, reply.end):
        if type_ == 1:
            kind = _string(data, at, end)
        elif type_ == 2 and kind == "htb":
            for inner, a, _ in attributes(data, at, end):
                if inner == 1:
                    rate, ceil, buffer, cbuffer, quantum, level, _prio = _HTB_OPT.unpack_from(data, a)
                elif inner == 6:
                    rate = _U64.unpack_from(data, a)[0]
                elif inner == 7:
                    ceil = _U64.unpack_from(data, a)[0]
        elif type_ == 7:  # TCA_STATS2
            for inner, a, _ in attributes(data, at, end):
                if inner == 1:
                    sent, packets = struct.unpack_from("=QI", data, a)
                elif inner == 3:
                    qlen, backlog, drops, _requeues, overlimits = struct.unpack_from("=IIIII", data, a)
                elif inner == 8:
                    packets = _U64.unpack_from(data, a)[0]
    if kind != "htb":
        return None
    above = 0 if parent == TC_H_ROOT else parent & 0xFFFF
    return ClassInfo(
        handle & 0xFFFF, above, rate, ceil, buffer, cbuffer, quantum, level,
        sent, packets, drops, backlog, qlen, overlimits,
    )  # fmt: skip


def _request(type_: int, body: bytes, attrs: bytes = b"", flags: int = NLM_F_REQUEST) -> bytes:
    """A read request; few enough and plain enough to need no template."""
    return HEADER.pack(HEADER.size + len(body) + len(attrs), type_, flags, 0, 0) + body + attrs


def _attr(type_: int, value: bytes) -> bytes:
    return _NLA.pack(4 + len(value), type_) + value + bytes(-len(value) & 3)


_SKIP_STATS = _attr(29, _U32.pack(1 << 3))
"""IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS: half the bytes of a link dump"""


class Netlink:
    """The devices, queues, filters and neighbours of the netns that the calling thread is in. Thread safe.

    :param group: mark of every device we make
    :param transport: an open one, of another netns; made here if None
    """

    def __init__(self, group: int, transport: Transport | None = None) -> None:
        self.group = group
        self.transport = transport or Transport()

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- writing

    def attempt(self, messages: Sequence[Message]) -> list[Failed]:
        """Every message was sent; those that failed, in order. The kernel goes on after a failing one."""
        failures = self.transport.send([m.data for m in messages])
        return [
            Failed(f.place, SubstrateError(m.what, m.operation, f.errno, f.detail))
            for f in failures
            if f.errno not in (m := messages[f.place]).fine
        ]

    def batch(self, messages: Sequence[Message]) -> None:
        """Every message was sent and none failed.

        :raises SubstrateError: the first that failed; the others were done or are in its notes
        """
        raise_first([failed.error for failed in self.attempt(messages)])

    # -- links

    def links(self, group: int | None = None) -> list[LinkInfo]:
        """All devices, or those of one group."""
        found = self.transport.dump(_request(RTM_GETLINK, _IFINFO.pack(0, 0, 0, 0, 0), _SKIP_STATS))
        links = (parse_link(r) for r in found if r.type == RTM_NEWLINK)
        return [link for link in links if group is None or link.group == group]

    def links_named(self, ifnames: Sequence[str]) -> dict[str, LinkInfo]:
        """Those of the devices that exist, by the name asked for (which may be an alternative one); one system call."""
        requests = [
            _request(
                RTM_GETLINK,
                _IFINFO.pack(0, 0, 0, 0, 0),
                _SKIP_STATS + _attr(3 if len(n.encode()) <= 15 else 53, n.encode() + b"\0"),
            )
            for n in ifnames
        ]
        return self._links(requests, ifnames)

    def link(self, ifname: str) -> LinkInfo | None:
        """The device of that name."""
        return self.links_named([ifname]).get(ifname)

    def link_by_index(self, ifindex: int) -> LinkInfo | None:
        request = _request(RTM_GETLINK, _IFINFO.pack(0, 0, ifindex, 0, 0), _SKIP_STATS)
        return self._links([request], ["it"], f"link {ifindex}").get("it")

    def _links(self, requests: list[bytes], names: Sequence[str], what: str = "") -> dict[str, LinkInfo]:
        replies, failures = self.transport.exchange(requests)
        for failure in failures:
            if failure.errno != errno.ENODEV:
                raise SubstrateError(what or f"link {names[failure.place]}", "read", failure.errno, failure.detail)
        return {names[i]: parse_link(r) for i, r in replies.items() if r.type == RTM_NEWLINK}

    def peers(self, links: Sequence[LinkInfo]) -> dict[str, LinkInfo]:
        """Other ends of veths as they are now, each in its own netns, by the name of this end; one system call.

        Read through the netns id, so no netns is entered: 10 us each.
        """
        links = [link for link in links if link.peer_ifindex and link.peer_netnsid >= 0]
        requests = [
            _request(
                RTM_GETLINK,
                _IFINFO.pack(0, 0, link.peer_ifindex, 0, 0),
                _SKIP_STATS + _attr(46, _I32.pack(link.peer_netnsid)),
            )
            for link in links
        ]
        return self._links(requests, [link.ifname for link in links])

    def nsid(self, netns_fd: int) -> int:
        """Id that this netns has for the one of ``netns_fd`` (what LinkInfo.peer_netnsid shows); -1: none."""
        request = _request(RTM_GETNSID, b"\0\0\0\0", _attr(3, _U32.pack(netns_fd)))
        replies, failures = self.transport.exchange([request])
        if failures:
            raise SubstrateError("netns", "read id of", failures[0].errno, failures[0].detail)
        reply = replies[0]
        for type_, at, _end in attributes(reply.data, reply.start + 4, reply.end):
            if type_ == 1:
                return int(_I32.unpack_from(reply.data, at)[0])
        return -1

    def set_altname(self, ifname: str, altname: str) -> None:
        """The device has that alternative name, besides others."""
        link = self.link(ifname)
        if link is None:
            raise SubstrateError(f"link {ifname}", "add name to", errno.ENODEV)
        if altname not in link.altnames:
            self.batch([altname_add(link.ifindex, altname, f"link {ifname}")])

    def set_gro(self, ifname: str, on: bool) -> None:
        """Generic receive offload is on, or off: on a veth that is the underlay (lab) it must be switched on, +40 %."""
        value = ctypes.create_string_buffer(struct.pack("=II", _ETHTOOL_SGRO, on))
        name = ifname.encode()
        request = struct.pack("16sP16x", name, ctypes.addressof(value))
        try:
            fcntl.ioctl(self.transport.fileno(), _SIOCETHTOOL, request)
        except OSError as err:
            raise SubstrateError(f"link {ifname}", f"switch gro {'on' if on else 'off'} of", err.errno or 0) from err

    # -- addresses, routes, neighbours

    def addresses(self, ifindex: int = 0, family: int = 0) -> list[AddressInfo]:
        """Addresses on a device, or on all (0); of one family, or all (0)."""
        found = self.transport.dump(_request(RTM_GETADDR, _IFADDR.pack(family, 0, 0, 0, ifindex)))
        infos = (_parse_address(r) for r in found if r.type == RTM_NEWADDR)
        return [a for a in infos if ifindex in (0, a.ifindex)]

    def address_owner(self, ip: str) -> LinkInfo | None:
        """The device that holds that address."""
        wanted = ipaddress.ip_address(ip)
        family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
        for found in self.addresses(family=family):
            if ipaddress.ip_interface(found.address).ip == wanted:
                return self.link_by_index(found.ifindex)
        return None

    def route_get(self, ip: str) -> Route:
        """How a packet to ``ip`` would leave.

        :raises SubstrateError: no route (ENETUNREACH)
        """
        raw = ipaddress.ip_address(ip).packed
        family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
        body = _RTMSG.pack(family, len(raw) * 8, 0, 0, 0, 0, 0, 0, 0)
        replies, failures = self.transport.exchange([_request(RTM_GETROUTE, body, _attr(1, raw))])
        if failures:
            raise SubstrateError(f"route to {ip}", "find", failures[0].errno, failures[0].detail)
        data, start, end = replies[0].data, replies[0].start, replies[0].end
        ifindex, gateway, source = 0, None, ""
        for type_, at, stop in attributes(data, start + _RTMSG.size, end):
            if type_ == 4:
                ifindex = _U32.unpack_from(data, at)[0]
            elif type_ == 5:
                gateway = socket.inet_ntop(family, data[at:stop])
            elif type_ == 7:
                source = socket.inet_ntop(family, data[at:stop])
            elif type_ == 18:  # RTA_VIA: a gateway of the other family
                via = struct.unpack_from("=H", data, at)[0]
                gateway = socket.inet_ntop(via, data[at + 2 : stop])
        return Route(ifindex, gateway, source)

    def neigh_managed(self, ifindex: int, ip: str) -> bool:
        """The kernel resolves ``ip`` on that device and keeps the entry fresh by itself; its old MAC stays meanwhile.

        A flap of the device **deletes** managed entries: call again when it came up.

        A permanent entry, which only an operator makes, is left alone: managing it would lose its MAC.

        :returns: False on kernels without managed entries (< 5.16): resolved once, ask again when it grows stale
        """
        raw = ipaddress.IPv4Address(ip).packed
        body = _NDMSG.pack(socket.AF_INET, ifindex, 0, 0, 0)
        replies, _ = self.transport.exchange([_request(RTM_GETNEIGH, body, _attr(1, raw))])  # ENOENT: not there yet
        if any(parse_neighbour(reply)[1].state & NUD_PERMANENT for reply in replies.values()):
            return True
        flags = NLM_F_REQUEST | NLM_F_CREATE
        what = f"neighbour {ip}"
        for ndm_flags, ext in ((0, NTF_EXT_MANAGED), (NTF_USE, 0)):
            data = TEMPLATES["neigh"].fill(RTM_NEWNEIGH, flags, ifindex, NUD_NONE, ndm_flags, raw, ext)
            failed = self.attempt([Message(data, what, "resolve")])
            if not failed:
                return bool(ext)
            if failed[0].error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                break
        raise failed[0].error

    def neigh_del(self, ifindex: int, ip: str) -> None:
        """No entry for ``ip`` on that device."""
        raw = ipaddress.IPv4Address(ip).packed
        data = TEMPLATES["neigh"].fill(RTM_DELNEIGH, NLM_F_REQUEST, ifindex, 0, 0, raw, 0)
        # Strict checking allows a delete request its destination only: cut off the flags behind it.
        data = data[: HEADER.size + _NDMSG.size + 8]
        struct.pack_into("=I", data, 0, len(data))
        self.batch([Message(data, f"neighbour {ip}", "delete", _GONE)])

    def neighbours(self, ifindex: int, family: int = socket.AF_INET) -> list[Neighbour]:
        """Entries of a device: (ip, mac or None while unresolved, NUD state)."""
        body = _NDMSG.pack(family, 0, 0, 0, 0)
        found = self.transport.dump(_request(RTM_GETNEIGH, body, _attr(8, _U32.pack(ifindex))))
        entries = (parse_neighbour(r) for r in found if r.type == RTM_NEWNEIGH)
        return [n for index, n in entries if index == ifindex]

    # -- traffic control

    def qdiscs(self, ifindex: int = 0) -> list[QdiscInfo]:
        """Qdiscs of a device, or of all (0); the kernel's built-in noqueue is not listed."""
        found = self.transport.dump(_request(RTM_GETQDISC, _TCMSG.pack(0, ifindex, 0, 0, 0)))
        infos = (_parse_qdisc(r) for r in found if r.type == RTM_NEWQDISC)
        return [q for q in infos if ifindex in (0, q.ifindex)]

    def classes(self, ifindex: int) -> list[ClassInfo]:
        """HTB classes of a device with their counters, read once, not one by one."""
        found = self.transport.dump(_request(RTM_GETTCLASS, _TCMSG.pack(0, ifindex, 0, 0, 0)))
        infos = (_parse_class(r) for r in found if r.type == RTM_NEWTCLASS)
        return [c for c in infos if c is not None]

    def filters(self, ifindex: int, hook: str) -> list[FilterInfo]:
        """cls_bpf filters at ``ingress`` or ``egress`` of a device; none if it has no clsact."""
        try:
            found = self.transport.dump(_request(RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, HOOKS[hook], 0)))
        except SubstrateError as err:
            if err.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV):
                return []
            raise
        filters = []
        for reply in found:
            data = reply.data
            _family, _index, handle, _parent, info = _TCMSG.unpack_from(data, reply.start)
            kind, name, prog_id = "", "", 0
            for type_, at, end in attributes(data, reply.start + _TCMSG.size, reply.end):
                if type_ == 1:
                    kind = _string(data, at, end)
                elif type_ == 2 and kind == "bpf":
                    for inner, a, e in attributes(data, at, end):
                        if inner == 7:
                            name = _string(data, a, e)
                        elif inner == 11:
                            prog_id = _U32.unpack_from(data, a)[0]
            if kind == "bpf" and handle:
                filters.append(FilterInfo(info >> 16, handle, name, prog_id))
        return filters


def raise_first(errors: Sequence[Exception]) -> None:
    """Raises the first, with the others as its notes; nothing if there are none."""
    if not errors:
        return
    first, *others = errors
    for other in others[:20]:
        first.add_note(f"also: {other}")
    if len(others) > 20:
        first.add_note(f"and {len(others) - 20} more")
    raise first


# ---------------------------------------------------------------------------------------------------- sysctls


def _sysctl_path(name: str) -> Path:
    """``net.ipv4.ip_forward``; slashes part it if it has any (device names have dots): ``net/ipv4/conf/u.0/mtu``."""
    parts = name.split("/") if "/" in name else name.split(".")
    if any(p in ("", ".", "..") for p in parts):
        raise ValueError(f"{name!r} is not a sysctl")
    return Path("/proc/sys").joinpath(*parts)


def read_sysctl(name: str) -> str:
    """Value of a sysctl; below ``net`` that of the calling thread's netns."""
    try:
        return _sysctl_path(name).read_text().rstrip("\n")
    except OSError as err:
        raise SubstrateError(f"sysctl {name}", "read", err.errno or 0) from err


def write_sysctl(name: str, value: str | int) -> None:
    """The sysctl has that value; below ``net`` in the calling thread's netns."""
    try:
        fd = os.open(_sysctl_path(name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(value).encode())
        finally:
            os.close(fd)
    except OSError as err:
        raise SubstrateError(f"sysctl {name}", f"write {value} to", err.errno or 0) from err
