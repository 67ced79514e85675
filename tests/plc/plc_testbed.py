"""A testbed like the one whose answers were recorded: Abilene, eleven nodes, three VINI slices, two system slices."""

from __future__ import annotations

import http.client
import json
import socket
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodemanager_trellis.plc.auth import sign
from nodemanager_trellis.plc.service import Plc, Settings

FIXTURES = Path(__file__).parent.parent / "fixtures" / "plcapi"
ROOT = {"AuthMethod": "password", "Username": "root@plc.test", "AuthString": "root-secret"}
#: As recorded: person 2 is an admin, 3 a PI (and user) of princeton, 4 a user there.
OP = {"AuthMethod": "password", "Username": "op@plc.test", "AuthString": "op-secret"}
ADA = {"AuthMethod": "password", "Username": "ada@princeton.vini.test", "AuthString": "ada-secret"}
BOB = {"AuthMethod": "password", "Username": "bob@princeton.vini.test", "AuthString": "bob-secret"}

#: The settings of the recorded PLC.
SETTINGS = Settings(name="Test", hrn_root="planetlab.test", vsys_defaults=("setup-link", "setup-nat"))

VINI_TAG_TYPES = {
    "topo_rspec": "VINI virtual links of a sliver: list of (remote node_id, remote ip, rate, local virtual ip, "
    "remote virtual ip, virtual net)",
    "vini_topo": "How the virtual topology is made",
    "egre_key": "EGRE tunnel key of the slice",
    "netns": "Private network namespace (1)",
    "hosts": "Extra /etc/hosts lines",
}

LATER = 1924992000
"""2031-01-01: when the recorded slices expire"""


def fixture(name: str) -> Any:
    """One recorded document."""
    return json.loads((FIXTURES / name).read_text())


def abilene() -> dict[str, Any]:
    """GetSlivers answers of the eleven nodes by host name, in the order of their recorded identifiers."""
    answers = [json.loads(path.read_text()) for path in FIXTURES.glob("abilene-*.json")]
    return {answer["hostname"]: answer for answer in sorted(answers, key=lambda answer: answer["node_id"])}


@dataclass
class Bed:
    """A running PLC and how to reach it."""

    plc: Plc
    url: str
    host: str
    port: int

    def proxy(self, timeout_s: float = 60) -> xmlrpc.client.ServerProxy:
        """A client like those of operators' scripts."""
        return xmlrpc.client.ServerProxy(self.url, allow_none=True, transport=_Transport(timeout_s))

    def fault(self, method: str, *params: Any) -> tuple[int, str]:
        """Code and text of the fault that the call gives."""
        try:
            answer = getattr(self.proxy(), method)(*params)
        except xmlrpc.client.Fault as fault:
            return fault.faultCode, fault.faultString
        raise AssertionError(f"{method} was accepted: {answer!r}")

    def raw(self, data: bytes, timeout_s: float = 30) -> bytes:
        """What the server sends back for these bytes, until it closes."""
        with socket.create_connection((self.host, self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            chunks = []
            while chunk := connection.recv(65536):
                chunks.append(chunk)
            return b"".join(chunks)

    def post(self, body: bytes, **headers: str) -> tuple[int, bytes]:
        """HTTP status and body of a POST."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("POST", "/PLCAPI/", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def node_auth(self, hostname: str) -> dict[str, Any]:
        """A session of the node, got with its key as nodes do."""
        text = self.proxy().GenerateNodeConfFile(OP, hostname)
        values = dict(line.split("=", 1) for line in text.splitlines())
        node_id = int(values["NODE_ID"].strip('"'))
        auth = {"AuthMethod": "hmac", "node_id": node_id, "value": sign(values["NODE_KEY"].strip('"'), ())}
        return {"AuthMethod": "session", "session": self.proxy().GetSession(auth)}


class _Transport(xmlrpc.client.Transport):
    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = super().make_connection(host)
        connection.timeout = self._timeout_s
        return connection


def populate(bed: Bed) -> None:
    """Make the recorded testbed with the calls that its operator used."""
    api = bed.proxy()
    answers = abilene()
    people(api, answers)
    sites = {"princeton": "Princeton", "gt": "Georgia Tech"}
    for base, name in sites.items():
        abbreviated = {"gt": "GT"}.get(base, name)
        api.AddSite(OP, {"name": name, "abbreviated_name": abbreviated, "login_base": base,
                         "url": f"http://www.{base}.vini.test/"})  # fmt: skip
        api.UpdateSite(OP, base, {"max_slices": 100 if base == "princeton" else 5})
    api.UpdateSite(OP, "gt", {"max_slivers": 100})
    for person in (ADA, BOB):
        api.AddPersonToSite(OP, person["Username"], "princeton")
    for tagname, description in VINI_TAG_TYPES.items():
        api.AddTagType(OP, {"tagname": tagname, "description": description, "category": "slice/vini"})
    api.AddTagType(OP, {"tagname": "i2member", "description": "Internet2 member", "category": "node/vini"})
    api.AddNodeGroup(OP, "Internet2", "i2member", "1")
    nodes(api, answers)
    some = next(iter(answers.values()))
    for script in some["initscripts"]:
        api.AddInitScript(OP, {key: script[key] for key in ("name", "enabled", "script")})
    for file in some["conf_files"]:
        api.AddConfFile(OP, {k: v for k, v in file.items() if k not in ("conf_file_id", "node_ids", "nodegroup_ids")})
    slices(api, answers)


def people(api: Any, answers: dict[str, Any]) -> None:
    """Accounts and keys."""
    for auth, roles in ((OP, ["admin"]), (ADA, ["pi", "user"]), (BOB, ["user"])):
        email = auth["Username"]
        first = email.split("@")[0].capitalize()
        api.AddPerson(ROOT, {"first_name": first, "last_name": "Test", "email": email, "password": auth["AuthString"]})
        api.UpdatePerson(ROOT, email, {"enabled": True})
        for role in roles:
            api.AddRoleToPerson(ROOT, role, email)
    slivers = {s["name"]: s for answer in answers.values() for s in answer["slivers"]}
    keys = {
        ADA["Username"]: slivers["princeton_iias"]["keys"],
        BOB["Username"]: slivers["princeton_line3"]["keys"],
        ROOT["Username"]: [{"key": key} for key in next(iter(answers.values()))["accounts"][1]["keys"]],
    }
    for email, of_person in keys.items():
        for key in of_person:
            api.AddPersonKey(OP, email, {"key_type": "ssh", "key": key["key"]})


def nodes(api: Any, answers: dict[str, Any]) -> None:
    """Sites, nodes and their primary interfaces."""
    for hostname, answer in answers.items():
        base = answer["hrn"].split(".")[2]
        if not api.GetSites(OP, [base]):
            api.AddSite(OP, {"name": base, "abbreviated_name": base, "login_base": base})
        api.AddNode(OP, base, {"hostname": hostname, "boot_state": "boot", "model": "Dell PowerEdge 2850"})
        for interface in answer["interfaces"]:
            skip = ("interface_id", "node_id", "interface_tag_ids", "last_updated")
            fields = {k: v for k, v in interface.items() if k not in skip and v is not None}
            api.AddInterface(OP, hostname, fields)
        api.AddNodeTag(OP, hostname, "i2member", "1")


def slices(api: Any, answers: dict[str, Any]) -> None:
    """The slices, their nodes, members and tags."""
    about = {
        "princeton_iias": ("Internet in a slice: the Abilene backbone", [ADA]),
        "gt_mesh4": ("Full mesh of four", [ADA]),
        "princeton_line3": ("Three nodes in a line", [BOB]),
    }
    names = sorted({(s["slice_id"], s["name"]) for answer in answers.values() for s in answer["slivers"]})
    for _, name in names:
        found = {host: s for host, a in answers.items() for s in a["slivers"] if s["name"] == name}
        some = next(iter(found.values()))
        description, members = about.get(name, ("a system slice", []))
        fields = {"name": name, "description": description, "url": f"http://www.vini.test/{name}",
                  "instantiation": some["instantiation"]}  # fmt: skip
        api.AddSlice(OP, fields)
        api.UpdateSlice(OP, name, {"expires": LATER})
        if not name.startswith("pl_"):
            api.AddSliceToNodes(OP, name, list(found))
        for member in members:
            api.AddPersonToSlice(OP, member["Username"], name)
        made = {(t["tagname"], t["value"]) for t in api.GetSliceTags(OP, {"name": name})}
        for host, sliver in found.items():
            for tag in sliver["attributes"]:
                pair = (tag["tagname"], tag["value"])
                if tag["tagname"] == "topo_rspec":
                    api.AddSliceTag(OP, name, *pair, host)
                elif pair not in made:
                    api.AddSliceTag(OP, name, *pair)
                    made.add(pair)
