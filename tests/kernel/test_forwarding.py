"""The forwarding benchmark measures every variant and leaves nothing."""

from __future__ import annotations

import os
import pathlib

import pytest

from nodemanager_trellis.benchmarks import forwarding
from nodemanager_trellis.errors import SubstrateError

pytestmark = pytest.mark.kernel


def left() -> list[pathlib.Path]:
    stamp = f"{forwarding.PREFIX}{os.getpid()}n*"
    return [*forwarding.NETNS.glob(stamp), *forwarding.BPFFS.glob(stamp)]


def test_every_variant_is_measured() -> None:
    said: list[str] = []
    result = forwarding.run(rounds=1, seconds=0.1, progress=said.append)

    assert [v.name for v in forwarding.VARIANTS] == list(result["variants"])
    assert 1.0 == result["variants"]["native"]["ratio_to_native"]
    for row in result["variants"].values():
        assert row["ns_per_packet"] > 0
        assert row["pps"] > 0
        assert len(row["rounds"]) == 1
    assert len(said) == 2 * len(forwarding.VARIANTS)
    assert len(forwarding.table(result).splitlines()) == 1 + len(forwarding.VARIANTS)
    assert left() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SubstrateError("it", "break")])
def test_nothing_is_left_when_it_is_stopped(error: BaseException | type[BaseException]) -> None:
    def stop(text: str) -> None:
        if text.startswith("round"):
            raise error

    with pytest.raises((KeyboardInterrupt, SubstrateError)):
        forwarding.run(rounds=1, seconds=0.05, progress=stop)
    assert left() == []
