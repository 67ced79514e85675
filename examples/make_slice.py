#!/usr/bin/env python3
"""Make a VINI slice: its virtual network is written into tags, node by node.

    make_slice.py --url https://plc.example.org/PLCAPI/ --user op@example.org --password-file pw vini_abilene
    make_slice.py --topology links.json vini_mynet       # links.json: [["node1.a.test", "node1.b.test", "20mbit"], ...]

It uses nothing but xmlrpc.client, and runs against any PLC that speaks PLCAPI. It may be run again: tags are updated or
added, nodes that left the topology lose their topo_rspec. URL, user and password may also come from the environment
(TRELLIS_PLC_URL, TRELLIS_PLC_USER, TRELLIS_PLC_PASSWORD). A node is named by its host name or by one of its labels.
"""

import argparse
import json
import os
import sys
import xmlrpc.client

ABILENE = [
    ["seat", "snva", "50mbit"],
    ["seat", "dnvr", "40mbit"],
    ["snva", "losa", "100mbit"],
    ["snva", "dnvr", "30mbit"],
    ["losa", "hous", "60mbit"],
    ["dnvr", "kans", "80mbit"],
    ["kans", "hous", "20mbit"],
    ["kans", "indi", "100mbit"],
    ["hous", "atla", "50mbit"],
    ["indi", "chic", "100mbit"],
    ["indi", "atla", "10mbit"],
    ["chic", "newy", "50mbit"],
    ["atla", "wash", "40mbit"],
    ["wash", "newy", "20mbit"],
]

TAG_TYPES = {
    "vini_topo": "VINI: where the slice's topology comes from",
    "egre_key": "VINI: GRE key of the slice's virtual links",
    "netns": "The slivers have a network stack of their own",
    "topo_rspec": "VINI: virtual links of one sliver",
}


def addresses(a, b):
    """VINI's addresses for the link of two nodes: (of the smaller id, of the larger id, network)."""
    low, high = sorted((a, b))
    if not 1 <= low < high <= 127:
        raise ValueError(f"VINI has no addresses for the node ids {a} and {b}: they must differ and lie in 1..127")
    link = (low << 7) + high
    base, last = f"192.168.{link >> 6}.", (link & 63) << 2
    return f"{base}{last + 1}", f"{base}{last + 2}", f"{base}{last}/30"


def find_node(nodes, name):
    """The node with that host name, or the only one that has the name as a label."""
    for node in nodes:
        if node["hostname"] == name:
            return node
    found = [node for node in nodes if name in node["hostname"].split(".")]
    if len(found) != 1:
        raise SystemExit(f"{name}: {'no such node' if not found else 'several nodes have this label'} at PLC")
    return found[0]


def read_topology(text):
    """JSON list of [node, node, rate] (or of {"a": ..., "b": ..., "rate": ...}), alone or as "links" of an object."""
    links = json.loads(text)
    if isinstance(links, dict):
        links = links["links"]
    return [
        [link["a"], link["b"], link.get("rate", "100mbit")] if isinstance(link, dict) else list(link) for link in links
    ]


def topo_rspecs(links, nodes, address):
    """Each node's topo_rspec: node_id -> list of (remote_node_id, remote_ip, rate, local_vip, remote_vip, net)."""
    rspecs = {}
    for one, other, rate in links:
        a, b = find_node(nodes, one)["node_id"], find_node(nodes, other)["node_id"]
        of_low, of_high, network = addresses(a, b)
        for here, there in ((a, b), (b, a)):
            local, remote = (of_low, of_high) if here < there else (of_high, of_low)
            rspecs.setdefault(here, []).append((there, address[there], rate, local, remote, network))
    return rspecs


def free_key(taken):
    """The lowest GRE key in 1..255 that no slice of this PLC uses."""
    used = {int(value) for value in taken if value.strip().isdigit()}
    for key in range(1, 256):
        if key not in used:
            return str(key)
    raise SystemExit("all 255 GRE keys are in use")


class Plc:
    """PLCAPI with our auth structure in front of every call."""

    def __init__(self, url, user, password):
        self.server = xmlrpc.client.ServerProxy(url, allow_none=True)
        self.auth = {"AuthMethod": "password", "Username": user, "AuthString": password}

    def __getattr__(self, method):
        return lambda *arguments: getattr(self.server, method)(self.auth, *arguments)

    def set_tag(self, slice_name, tagname, value, node_id=None):
        """Update the tag or add it. Returns whether anything changed."""
        tags = [t for t in self.GetSliceTags({"name": slice_name, "tagname": tagname}) if t["node_id"] == node_id]
        tags = [t for t in tags if t.get("nodegroup_id") is None]
        if not tags:
            self.AddSliceTag(slice_name, tagname, value, *([node_id] if node_id else []))
        elif tags[0]["value"] != value:
            self.UpdateSliceTag(tags[0]["slice_tag_id"], value)
        for tag in tags[1:]:
            self.DeleteSliceTag(tag["slice_tag_id"])
        return not tags or tags[0]["value"] != value or len(tags) > 1

    def add_tag_types(self):
        known = {t["tagname"] for t in self.GetTagTypes({"tagname": sorted(TAG_TYPES)}, ["tagname"])}
        for tagname, description in TAG_TYPES.items():
            if tagname not in known:
                try:
                    self.AddTagType({"tagname": tagname, "description": description, "category": "slice/vini"})
                except xmlrpc.client.Fault as fault:  # somebody else was faster
                    if fault.faultCode != 102:
                        raise

    def add_slice(self, name):
        """Site and slice, if they are not there. Returns the slice's node ids."""
        found = self.GetSlices([name], ["slice_id", "node_ids"])
        if found:
            return found[0]["node_ids"]
        login_base = name.split("_")[0]
        if not self.GetSites({"login_base": login_base}, ["site_id"]):
            self.AddSite(
                {
                    "name": f"Site {login_base}",
                    "abbreviated_name": login_base,
                    "login_base": login_base,
                    "url": f"http://{login_base}.vini.test/",
                    "max_slices": 100,
                }
            )
        self.AddSlice(
            {
                "name": name,
                "description": "a virtual network made by make_slice.py",
                "url": f"http://{login_base}.vini.test/",
                "max_nodes": 1000,
            }
        )
        return []


def make_slice(plc, name, links, settings):
    """Everything, in the order of the VINI aggregate: nodes, slice-wide tags, then each node's links."""
    plc.add_tag_types()
    bound = plc.add_slice(name)
    nodes = plc.GetNodes({"peer_id": None}, ["node_id", "hostname"])
    primary = plc.GetInterfaces({"is_primary": True}, ["node_id", "ip"])
    rspecs = topo_rspecs(links, nodes, {interface["node_id"]: interface["ip"] for interface in primary})

    missing = sorted(set(rspecs) - set(bound))
    if missing:
        plc.AddSliceToNodes(name, missing)

    if "egre_key" not in settings:
        keys = plc.GetSliceTags({"tagname": "egre_key"}, ["name", "value"])
        own = [tag["value"] for tag in keys if tag["name"] == name]
        settings["egre_key"] = own[0] if own else free_key([tag["value"] for tag in keys])
    changed = sum(plc.set_tag(name, tagname, value) for tagname, value in settings.items())

    for node_id, rspec in sorted(rspecs.items()):
        changed += plc.set_tag(name, "topo_rspec", str(rspec), node_id)
    for tag in plc.GetSliceTags({"name": name, "tagname": "topo_rspec"}):
        if tag["node_id"] not in rspecs:
            plc.DeleteSliceTag(tag["slice_tag_id"])
            changed += 1
    return rspecs, settings["egre_key"], changed


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slice", help="name of the slice, <login_base>_<name>")
    parser.add_argument("--url", default=os.environ.get("TRELLIS_PLC_URL", "https://localhost/PLCAPI/"))
    parser.add_argument("--user", default=os.environ.get("TRELLIS_PLC_USER", ""))
    parser.add_argument("--password-file", metavar="FILE", help="else the environment's TRELLIS_PLC_PASSWORD")
    parser.add_argument("--topology", metavar="FILE", help="JSON list of [node, node, rate]; else Abilene's 14 links")
    parser.add_argument("--egre-key", metavar="KEY", help="1..255; else the lowest free one")
    parser.add_argument("--net-max-rate", metavar="KBIT", default="1000000", help="of the whole sliver, kbit/s")
    parser.add_argument("--net-min-rate", metavar="KBIT", default="1000")
    parser.add_argument("--tag", metavar="NAME=VALUE", action="append", default=[], help="any other slice-wide tag")
    arguments = parser.parse_args(argv)

    password = os.environ.get("TRELLIS_PLC_PASSWORD", "")
    if arguments.password_file:
        with open(arguments.password_file, encoding="utf-8") as file:
            password = file.read().strip()
    links = ABILENE
    if arguments.topology:
        with open(arguments.topology, encoding="utf-8") as file:
            links = read_topology(file.read())

    settings = {
        "vini_topo": "manual",
        "netns": "1",
        "capabilities": "CAP_NET_ADMIN,CAP_NET_RAW",
        "net_min_rate": arguments.net_min_rate,
        "net_max_rate": arguments.net_max_rate,
    }
    if arguments.egre_key:
        settings["egre_key"] = arguments.egre_key
    settings.update(pair.split("=", 1) for pair in arguments.tag)

    rspecs, key, changed = make_slice(Plc(arguments.url, arguments.user, password), arguments.slice, links, settings)
    print(f"{arguments.slice}: {len(rspecs)} nodes, {len(links)} links, GRE key {key}, {changed} tags written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
