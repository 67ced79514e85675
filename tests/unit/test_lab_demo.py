"""The demo's pure parts: what it reads from ping, traceroute and iperf, and what it picks."""

from __future__ import annotations

import io
import re

import pytest

from nodemanager_trellis.errors import SubstrateError
from nodemanager_trellis.lab import demo, topology
from nodemanager_trellis.lab.demo import Demo, Failed, Line
from nodemanager_trellis.lab.progress import Progress

REPLY = "64 bytes from 10.255.0.2: icmp_seq={} ttl=63 time=0.1 ms\n"


def ping(sent, lost=()):
    replies = "".join(REPLY.format(i) for i in range(1, sent + 1) if i not in lost)
    summary = f"{sent} packets transmitted, {sent - len(lost)} received, 0% loss"
    return f"PING x\n{replies}\n--- x ping statistics ---\n{summary}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(ping(5), (5, [])), (ping(5, {2, 3}), (5, [2, 3])), (ping(5, {5}), (5, [])), (ping(5, {4, 5}), (5, [4]))],
)
def test_lost_pings(text, expected):
    """The request under way at the end is not a loss; all others are."""
    assert expected == demo.lost_pings(text)


def test_ping_that_never_ran():
    """No summary, no number."""
    with pytest.raises(Failed, match="unreachable"):
        demo.lost_pings("ping: network unreachable")


def test_hops():
    """Addresses in order, a star for silence."""
    text = "traceroute to 10.255.0.3, 30 hops max\n 1  192.168.2.10  0.05 ms\n 2  *\n 3  10.255.0.3  0.1 ms\n"
    assert demo.hops(text) == ["192.168.2.10", "*", "10.255.0.3"]


def test_theory():
    """1406 bytes of TCP in 1514 on the wire."""
    assert (demo.INNER_MTU, demo.WIRE_BYTES) == (1458, 1514)
    assert round(demo.TCP_SHARE, 4) == 0.9287


def test_bird_config_names_its_own_loopback():
    """Router id and source address are the sliver's."""
    text = demo.bird_config(7)
    assert "router id 10.255.0.7;" in text
    assert "krt_prefsrc = 10.255.0.7;" in text
    assert re.search(r'interface "a\*".*hello 1; dead 4;', text)


def test_choices_on_abilene():
    """Three links of different rates; the longest way is Seattle - New York."""
    topo = topology.abilene()
    rates = [link.rate_bps for link in demo.chosen_links(topo)]
    assert rates == [10_000_000, 50_000_000, 100_000_000]
    assert demo.farthest(topo) == ("seat", "newy")


@pytest.mark.parametrize("spec", ["line:2", "line:3", "ring:5", "grid:3x3"])
def test_choices_on_others(spec):
    """As many links as there are, no link twice, and two nodes far apart."""
    topo = topology.resolve(spec)
    picked = demo.chosen_links(topo)
    assert len(picked) == min(3, len(topo.links)) == len(set(picked))
    a, b = demo.farthest(topo)
    assert len(topo.path(a, b)) >= 2


def test_link_addresses():
    """The smaller id has .1 of its /30."""
    assert (demo.link_address(1, 2), demo.link_address(2, 1)) == ("192.168.2.9", "192.168.2.10")


def test_examples_are_found():
    """In the source tree."""
    assert demo.example("make_slice.py").endswith("examples/make_slice.py")


def new_demo(tmp_path):
    return Demo(None, topology.line(3), "x_y", tmp_path, Progress(io.StringIO()), io.StringIO())


def test_a_failed_line_does_not_stop_the_rest(tmp_path):
    """Each kind of error becomes a line with a reason; the report is not ok."""
    show = new_demo(tmp_path)

    def broken(err):
        def check():
            raise err

        return check

    assert show.try_line("good", lambda: ("all 6 pairs ping", {"pairs": 6}))
    for err in (Failed("no"), SubstrateError("u0", "create", 1), KeyError("x"), OSError(5, "io")):
        assert not show.try_line("bad", broken(err))
    assert [line.ok for line in show.lines] == [True, False, False, False, False]
    text = show.out.getvalue().splitlines()
    assert text[0] == "ok   all 6 pairs ping"
    assert text[1] == "FAIL bad: no"
    assert all(line.startswith("FAIL bad: ") for line in text[1:])
    assert show.document()["ok"] is False
    assert show.document()["lines"][0]["figures"] == {"pairs": 6}


def test_rate_must_be_within_three_percent(tmp_path):
    """More than asked is as wrong as less."""
    show = new_demo(tmp_path)
    theory = 10_000_000 * demo.TCP_SHARE
    assert "-1.0%" in show._compare(theory * 0.99, 10_000_000)
    for share in (0.96, 1.04):
        with pytest.raises(Failed):
            show._compare(theory * share, 10_000_000)


def test_line_text():
    """ok and FAIL line up."""
    assert str(Line(True, "x")) == "ok   x"
    assert str(Line(False, "x", "y")) == "FAIL x: y"


def test_progress_is_plain_without_a_terminal():
    """One line when a step begins, one when it is complete; no control characters."""
    stream = io.StringIO()
    progress = Progress(stream)
    for done in range(4):
        progress.step("nodes", done, 3)
    progress.stage("hidden", 1, 2)
    progress.clear()
    lines = stream.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["nodes", "nodes 3/3"]
    assert "\r" not in stream.getvalue()


def test_progress_is_a_bar_on_a_terminal():
    """It is drawn over itself and goes away."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(stream)
    progress.step("nodes", 1, 2)
    assert "[##############..............] nodes 1/2" in stream.getvalue()
    progress.clear()
    assert stream.getvalue().endswith("\r")
