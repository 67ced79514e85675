"""Rates and sizes are parsed, printed and converted in one place."""

import json

import pytest
from strategies import FIXTURES

from nodemanager_trellis import units

BWLIMIT = json.loads((FIXTURES / "bwlimit" / "bwlimit.json").read_text())["rates"]


def parsed(text):
    """bit/s, or -1 as bwlimit says it."""
    try:
        return units.parse_rate(text)
    except ValueError:
        return -1


def test_rates_are_read_as_bwlimit_reads_them():
    """Every rate text that the original bwlimit was asked gives the same number here."""
    assert BWLIMIT["rates"] == {text: parsed(text) for text in BWLIMIT["rates"]}


def test_rates_are_written_exactly_where_bwlimit_rounds():
    """Texts differ from bwlimit's only where it loses digits, and ours reads back to the same number."""
    ours = {number: units.format_rate(int(number)) for number in BWLIMIT["formatted"]}
    different = {number for number, text in BWLIMIT["formatted"].items() if ours[number] != text}

    assert {"1001", "1499", "1500", "999999", "1000001", "999999999"} == different
    assert all(parsed(BWLIMIT["formatted"][number]) != int(number) for number in different)
    assert all(parsed(text) == int(number) for number, text in ours.items())


@pytest.mark.parametrize(
    ("text", "rate_bps"),
    [
        ("100mbit", 100_000_000),
        ("100MBit", 100_000_000),
        ("10mbps", 80_000_000),
        ("1kibps", 8192),
        ("1tibit", 2**40),
        ("1.", 1),
        ("0.1gbit", 100_000_000),
        ("1.9bit", 1),
    ],
)
def test_rate_spellings(text, rate_bps):
    """Decimal, binary and byte suffixes are exact; fractions of a bit are dropped."""
    assert rate_bps == units.parse_rate(text)


@pytest.mark.parametrize(
    "text", ["", ".", "bit", "-1bit", "+1", "1 bit", " 1", "1e3", "1mb", "1mbit\n", "١mbit", "nan", "1_0"]
)
def test_not_rates(text):
    """Anything else is a ValueError with a short message."""
    with pytest.raises(ValueError, match="is not a rate such as 100mbit"):
        units.parse_rate(text)


def test_long_text_is_refused():
    """Thousands of digits are no rate."""
    with pytest.raises(ValueError):
        units.parse_rate("9" * 5000 + "x")
    with pytest.raises(ValueError):
        units.parse_rate("9" * 60_000)


@pytest.mark.parametrize(
    ("rate_bps", "text"),
    [
        (0, "0 bit/s"),
        (999, "999 bit/s"),
        (1500, "1.5 kbit/s"),
        (92_840_000, "92.8 Mbit/s"),
        (999_600, "1000 kbit/s"),
        (25e9, "25 Gbit/s"),
        (2.5e12, "2500 Gbit/s"),
    ],
)
def test_human_rate(rate_bps, text):
    """People get three digits and a unit, never an exponent."""
    assert text == units.human_rate(rate_bps)


def test_bytes_per_second_round_up():
    """A rate above zero never becomes zero bytes a second."""
    assert [0, 1, 1, 2, 12_500_000] == [units.bytes_per_second(n) for n in (0, 1, 8, 9, 10**8)]


def test_queue_bytes():
    """A queue drains in the time asked for, but is never below its floor."""
    assert 250_000 == units.queue_bytes(10**8, 20, 3000)
    assert 3000 == units.queue_bytes(8000, 20, 3000)


def test_htb_buffer():
    """A burst is the 64 ns ticks that it takes at its rate, and a zero rate does not divide by zero."""
    assert 1 == units.psched_ticks(64)
    assert 1875 == units.htb_buffer(1500, 10**8)
    assert units.htb_buffer(1, 0) > 0


def test_egre_overhead():
    """Outer Ethernet, IPv4, GRE and key: what is left of 1500 bytes, after the inner header, is VINI's 1458."""
    assert 1458 == 1500 - units.EGRE_OVERHEAD_BYTES
