"""GetSlivers: the recorded answers, precedence of tags, who is listed."""

from __future__ import annotations

from typing import Any

import pytest
from plc_testbed import OP, Bed, abilene


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without identifiers and times of its server, and without an order that means nothing."""

    def strip(record: dict[str, Any], *names: str) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key not in names}

    return {
        **strip(answer, "timestamp", "node_id"),
        "interfaces": [strip(i, "interface_id", "node_id", "interface_tag_ids") for i in answer["interfaces"]],
        "initscripts": [strip(s, "initscript_id") for s in answer["initscripts"]],
        "conf_files": [strip(f, "conf_file_id") for f in answer["conf_files"]],
        "accounts": {a["name"]: sorted(a["keys"]) for a in answer["accounts"]},
        "slivers": {
            s["name"]: {
                **strip(s, "slice_id", "name"),
                "keys": sorted(key["key"] for key in s["keys"]),
                "attributes": sorted((a["tagname"], a["value"]) for a in s["attributes"]),
            }
            for s in answer["slivers"]
        },
    }


@pytest.mark.parametrize("hostname", list(abilene()))
def test_get_slivers_equals_recorded_answer(bed: Bed, hostname: str) -> None:
    """The whole answer of each Abilene node equals the real server's, identifiers and times apart."""
    ours = bed.proxy().GetSlivers(OP, hostname)

    assert plain(abilene()[hostname]) == plain(ours)
