"""The tag types a new PLC has, and those of them that PLCAPI lets people use like fields ("accessors")."""

from __future__ import annotations

from dataclasses import dataclass

_ADMIN = ("admin",)
_OWNERS = ("admin", "pi", "user")
_TECHS = ("admin", "pi", "tech")
_CONFIG = ("admin", "pi", "user", "tech", "node")


@dataclass(frozen=True)
class Stock:
    """One tag type of a new PLC; no roles means admins only."""

    tagname: str
    category: str
    description: str
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accessor:
    """A tag that reads and writes like a field of a class: ``GetSliceVref``, or ``vref`` in UpdateSlice."""

    cls: str
    suffix: str
    tagname: str


def _accessors(*rows: tuple[str, str, str]) -> dict[str, dict[str, Accessor]]:
    """Class → tag name → accessor."""
    table: dict[str, dict[str, Accessor]] = {}
    for classes, suffix, tagname in rows:
        for cls in classes.split():
            table.setdefault(cls, {})[tagname] = Accessor(cls, suffix, tagname)
    return table


ACCESSORS = _accessors(
    ("Slice", "Vref", "vref"),
    ("Slice", "InitscriptCode", "initscript_code"),
    ("Slice", "Initscript", "initscript"),
    ("Slice", "SshKey", "ssh_key"),
    ("Slice", "Hmac", "hmac"),
    ("Slice", "OmfControl", "omf_control"),
    ("Slice", "EnableHmac", "enable_hmac"),
    ("Slice Node", "Arch", "arch"),
    ("Slice Node", "Pldistro", "pldistro"),
    ("Slice Node", "Fcdistro", "fcdistro"),
    ("Site Person Node Slice", "Hrn", "hrn"),
    ("Node", "Virt", "virt"),
    ("Node", "Deployment", "deployment"),
    ("Node", "Extensions", "extensions"),
    ("Node", "PlainBootstrapfs", "plain-bootstrapfs"),
    ("Node", "Serial", "serial"),
    ("Node", "Kvariant", "kvariant"),
    ("Node", "Kargs", "kargs"),
    ("Interface", "Ifname", "ifname"),
    ("Interface", "Driver", "driver"),
    ("Interface", "Alias", "alias"),
)

_RLIMITS = ("as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "openfd", "rss", "stack")

#: Categories, names, descriptions and roles as a stock PLCAPI 7.1 has them (planetlab.md §3.5).
STOCK: tuple[Stock, ...] = (
    Stock("ip_addresses", "slice/rspec", "Add an ip address to a slice/sliver.", _ADMIN),
    Stock(
        "isolate_loopback",
        "slice/rspec",
        "Create an isolated loopback interface within the vserver rather than sharing with all vservers.",
        _ADMIN,
    ),
    Stock("cpu_pct", "slice/rspec", "Reserved CPU percent", _ADMIN),
    Stock("cpu_share", "slice/rspec", "Number of CPU shares", _ADMIN),
    Stock("cpu_cores", "slice/rspec", "Number of CPU cores", _ADMIN),
    Stock("cpu_freezable", "slice/rspec", "Slice processes should be frozen if cpu_cores is 0", _ADMIN),
    Stock("net_min_rate", "slice/rspec", "Minimum bandwidth (kbps)", _ADMIN),
    Stock("net_max_rate", "slice/rspec", "Maximum bandwidth (kbps)", _ADMIN),
    Stock("net_i2_min_rate", "slice/rspec", "Minimum bandwidth over I2 routes (kbps)", _ADMIN),
    Stock("net_i2_max_rate", "slice/rspec", "Maximum bandwidth over I2 routes (kbps)", _ADMIN),
    Stock("net_max_kbyte", "slice/rspec", "Maximum daily network Tx KByte limit.", _ADMIN),
    Stock("net_thresh_kbyte", "slice/rspec", "KByte limit before warning and throttling.", _ADMIN),
    Stock("net_i2_max_kbyte", "slice/rspec", "Maximum daily network Tx KByte limit to I2 hosts.", _ADMIN),
    Stock("net_i2_thresh_kbyte", "slice/rspec", "KByte limit to I2 hosts before warning and throttling.", _ADMIN),
    Stock("net_share", "slice/rspec", "Number of bandwidth shares", _ADMIN),
    Stock("net_i2_share", "slice/rspec", "Number of bandwidth shares over I2 routes", _ADMIN),
    Stock("disk_max", "slice/rspec", "Disk quota (1k disk blocks)", _ADMIN),
    Stock("capabilities", "slice/rspec", "VServer bcapabilities (separate by commas)", _ADMIN),
    Stock("vsys", "slice/rspec", "Bind vsys script fd's to a slice's /vsys directory.", ("pi", "user", "tech")),
    Stock(
        "vsys_vnet",
        "slice/rspec",
        "Specify the IP range that can be used in a given slice\n"
        "for virtual devices involved in topologies, e.g. 192.168.100.0/24",
        _ADMIN,
    ),
    Stock(
        "codemux",
        "slice/rspec",
        "Demux HTTP between slices using localhost ports. Value in the form 'host, localhost port'.",
        _ADMIN,
    ),
    Stock("delegations", "slice/rspec", "Coma seperated list of slices to give delegation authority to.", _OWNERS),
    Stock("type", "slice/general", "Type of slice (e.g. vserver)", _ADMIN),
    Stock("system", "slice/general", "Is a default system slice (1) or not (0 or unset)", _ADMIN),
    Stock("enabled", "slice/general", "Slice enabled (1 or unset) or suspended (0)", _ADMIN),
    Stock("drl", "slice/general", "Is a default Distributed Rate Limiting slice (1) or not (0 or unset)", _ADMIN),
    Stock("rawdisk", "slice/access", "map unused raw disk devices into the slice", _ADMIN),
    Stock("interface", "slice/network", "The interfaces of the sliver, a dictionary or a list of them", _ADMIN),
    Stock("exempt_slice_until", "slice/myops", "Exclude this slice from MyOps until given date (YYYYMMDD)", _ADMIN),
    Stock("vref", "slice/config", "vserver reference image name", ("admin", "pi", "user", "node")),
    Stock("initscript", "slice/usertools", "Slice initialization script name", _OWNERS),
    Stock("initscript_code", "slice/usertools", "Slice initialization script code", _OWNERS),
    Stock("omf_control", "slice/usertools", "Pattern of the slices that OMF controls", _OWNERS),
    Stock("enable_hmac", "slice/usertools", "Make the sliver an HMAC key", _OWNERS),
    Stock("hmac", "slice/auth", "Sliver authorization key.", ("admin", "pi", "node")),
    Stock("ssh_key", "slice/auth", "Public key of the sliver, written by its node", ("admin", "node")),
    Stock("ipv6_address", "slice/usertools", "IPv6 address of the sliver, written by its node", ("admin", "node")),
    Stock("arch", "node/slice/config", "node arch or slivers arch", _CONFIG),
    Stock("pldistro", "node/slice/config", "PlanetLab distribution to use for node or slivers", _CONFIG),
    Stock("fcdistro", "node/slice/config", "Fedora or CentOS distribution to use for node or slivers", _CONFIG),
    Stock("hrn", "accessor", "SFA human readable name", ("admin", "pi", "user", "tech", "node")),
    Stock("virt", "node/operation", "typically 'vs' or 'lxc'", _ADMIN),
    Stock("deployment", "node/operation", 'typically "alpha", "beta", or "production"', _ADMIN),
    Stock("extensions", "node/config", "space-separated list of extensions to install", _ADMIN),
    Stock("plain-bootstrapfs", "node/config", "use uncompressed bootstrapfs when set", _TECHS),
    Stock("serial", "node/bootcd", "serial to use when creating the boot CD -- see GetBootMedium", _TECHS),
    Stock("kvariant", "node/bootcd", "the variant to use for creating the boot CD -- see GetBootMedium", _TECHS),
    Stock("kargs", "node/bootcd", "extra args to pass the kernel on the Boot CD -- see GetBootMedium", _TECHS),
    Stock("ifname", "interface/config", "linux name", _TECHS),
    Stock("driver", "interface/config", "driver name", _TECHS),
    Stock("alias", "interface/config", "interface alias", _TECHS),
    Stock("isrootonsite", "person/accounts", "keys go to the root accounts of the nodes of the site", _ADMIN),
    *(
        Stock(f"{limit}_{edge}", "slice/limit", f"Per sliver RLIMIT {limit}_{edge}.", _ADMIN)
        for limit in _RLIMITS
        for edge in ("min", "soft", "hard")
    ),
)
