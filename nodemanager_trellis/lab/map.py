"""Draw a lab's network: SVG for the eye, a table and characters for the terminal.

Pure: it is given a topology and what is known about its links, and returns text.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

from nodemanager_trellis.lab.topology import LabNode, Topology
from nodemanager_trellis.units import human_rate

_WIDTH, _HEIGHT = 1200, 760
_MARGIN_X, _TOP, _BOTTOM = 110, 140, 120
_COLOURS = ((0.0, "#9aa5b1"), (0.02, "#2b83ba"), (0.4, "#4dac26"), (0.7, "#e69f00"), (0.9, "#d7191c"))
"""Share of the asked rate in use, from → colour of the link."""
_UNKNOWN = "#9aa5b1"


@dataclasses.dataclass(frozen=True, slots=True)
class LinkState:
    """What is known about one virtual link, in the direction that carries more."""

    a: str
    b: str
    asked_bps: int
    """rate the slice asked for, bit/s on the wire"""
    used_bps: float | None = None
    """what flows now, bit/s on the wire; None: not looked"""
    measured_bps: float | None = None
    """what a test got through, bit/s on the wire; None: not tested"""
    problem: str = ""
    """why it does not work as asked; '' when it does"""

    def use(self) -> float | None:
        """Share of the asked rate: what was measured, else what flows now."""
        value = self.measured_bps if self.measured_bps is not None else self.used_bps
        return None if value is None or not self.asked_bps else value / self.asked_bps

    def label(self) -> str:
        """``9.98 of 10 Mbit/s``, or only what was asked."""
        value = self.measured_bps if self.measured_bps is not None else self.used_bps
        return human_rate(self.asked_bps) if value is None else f"{_short(value, self.asked_bps)}"


def _short(value: float, asked: int) -> str:
    have, want = human_rate(value), human_rate(asked)
    number, _, unit = have.partition(" ")
    return f"{number} of {want}" if unit == want.partition(" ")[2] else f"{have} of {want}"


def colour(state: LinkState) -> str:
    """By use: grey nothing, blue little, green some, amber much, red nearly all."""
    use = state.use()
    if use is None:
        return _UNKNOWN
    return next(name for least, name in reversed(_COLOURS) if use >= least or least == 0.0)


def layout(nodes: Sequence[LabNode], width: float, height: float) -> dict[str, tuple[float, float]]:
    """Position of each node in a ``width`` × ``height`` box, y downwards: by coordinates, or on a circle."""
    if any(node.position is None for node in nodes):
        points = {}
        for i, node in enumerate(nodes):
            angle = 2 * math.pi * i / len(nodes) - math.pi / 2
            points[node.name] = ((1 + math.cos(angle)) / 2, (1 - math.sin(angle)) / 2)
    else:
        points = {node.name: node.position for node in nodes if node.position is not None}
    xs, ys = [x for x, _ in points.values()], [y for _, y in points.values()]
    span_x, span_y = max(xs) - min(xs), max(ys) - min(ys)
    return {
        name: (
            (x - min(xs)) / span_x * width if span_x else width / 2,
            (max(ys) - y) / span_y * height if span_y else height / 2,
        )
        for name, (x, y) in points.items()
    }


# -------------------------------------------------------------------- SVG


def svg(topo: Topology, states: Sequence[LinkState], title: str = "", notes: Sequence[str] = ()) -> str:
    """The network as an SVG document, white background, readable without colours too (every link bears its numbers)."""
    places = layout(topo.nodes, _WIDTH - 2 * _MARGIN_X, _HEIGHT - _TOP - _BOTTOM)
    at = {name: (x + _MARGIN_X, y + _TOP) for name, (x, y) in places.items()}
    heading = html.escape(title or topo.name)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="DejaVu Sans, Verdana, sans-serif">',
        f"<title>{heading}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="40" y="46" font-size="24" font-weight="bold" fill="#1f2933">{heading}</text>',
    ]
    out += [
        f'<text x="40" y="{70 + 19 * i}" font-size="14" fill="#52606d">{html.escape(note)}</text>'
        for i, note in enumerate(notes[:2])
    ]
    lines = [(*at[state.a], *at[state.b]) for state in states]
    boxes = [(x - 13, y - 13, x + 13, y + 13) for x, y in at.values()]
    out += [_svg_line(state, at) for state in states]
    names = [_svg_node(node, *at[node.name], boxes, lines) for node in topo.nodes]
    out += [_svg_label(state, at, boxes, lines) for state in sorted(states, key=lambda s: math.dist(at[s.a], at[s.b]))]
    out += names
    out.append(_svg_legend(states))
    out.append("</svg>")
    return "\n".join(out) + "\n"


_Box = tuple[float, float, float, float]
"""left, top, right, bottom; of a line: its two ends"""


def _best(
    candidates: Sequence[tuple[float, float, float]], half: float, tall: float, boxes: list[_Box], lines: list[_Box]
) -> _Box:
    """The box around one of ``candidates`` (x, y, dislike) that covers least of what is there already; added to it."""

    def cost(candidate: tuple[float, float, float]) -> float:
        x, y, dislike = candidate
        box = (x - half, y - tall, x + half, y + tall)
        outside = max(0.0, 8 - box[0]) + max(0.0, box[2] - _WIDTH + 8)
        covered = sum(_overlap(box, other) for other in boxes)
        crossed = sum(_crossed(box, line) for line in lines)
        return covered + 8 * crossed + 1000 * outside + dislike

    x, y, _ = min(candidates, key=cost)
    boxes.append((x - half, y - tall, x + half, y + tall))
    return boxes[-1]


def _overlap(one: _Box, other: _Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    return wide * tall if wide > 0 and tall > 0 else 0.0


def _crossed(box: _Box, line: _Box) -> float:
    """How much of the line lies in the box, px (sampled)."""
    x1, y1, x2, y2 = line
    steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 4))
    inside = sum(
        box[0] <= x1 + (x2 - x1) * i / steps <= box[2] and box[1] <= y1 + (y2 - y1) * i / steps <= box[3]
        for i in range(steps + 1)
    )
    return 4.0 * inside


def _svg_line(state: LinkState, at: dict[str, tuple[float, float]]) -> str:
    (x1, y1), (x2, y2) = at[state.a], at[state.b]
    width = 2.5 + 1.6 * max(0.0, math.log10(max(state.asked_bps, 1) / 1e6))
    dash = ' stroke-dasharray="7 6"' if state.problem else ""
    tip = html.escape(f"{state.a} - {state.b}: {state.label()}{'; ' + state.problem if state.problem else ''}")
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour(state)}"'
        f' stroke-width="{width:.1f}" stroke-linecap="round"{dash}><title>{tip}</title></line>'
    )


def _svg_label(state: LinkState, at: dict[str, tuple[float, float]], boxes: list[_Box], lines: list[_Box]) -> str:
    (x1, y1), (x2, y2) = at[state.a], at[state.b]
    text = state.label() + (" !" if state.problem else "")
    half = 3.6 * len(text) + 6
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    across = (-(y2 - y1) / length, (x2 - x1) / length)
    candidates = []
    for share in (0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74):
        for aside in (0.0, 12.0, -12.0, 24.0, -24.0, 40.0, -40.0, 60.0, -60.0):
            dislike = 300 * abs(share - 0.5) + 9 * abs(aside)
            x, y = x1 + (x2 - x1) * share + across[0] * aside, y1 + (y2 - y1) * share + across[1] * aside
            candidates.append((x, y, dislike))
    others = [line for line in lines if line != (x1, y1, x2, y2)]
    left, top, right, bottom = _best(candidates, half, 10.0, boxes, others)
    x, y = (left + right) / 2, (top + bottom) / 2
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" rx="4"'
        f' fill="#ffffff" fill-opacity="0.94" stroke="{colour(state)}" stroke-width="1.2"/>'
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}" font-size="12.5" text-anchor="middle" fill="#1f2933">'
        f"{html.escape(text)}</text>"
    )


def _svg_node(node: LabNode, x: float, y: float, boxes: list[_Box], lines: list[_Box]) -> str:
    half = (9.0 * len(node.name) + 8.2 * len(node.place)) / 2 + 4
    candidates = [(x, y + 25, 0.0), (x, y - 25, 1.0), (x + half + 16, y, 2.0), (x - half - 16, y, 3.0)]
    left, top, right, bottom = _best(candidates, half, 10.0, boxes, lines)
    place = f'<tspan dx="6" fill="#52606d" font-weight="normal">{html.escape(node.place)}</tspan>' if node.place else ""
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="11" fill="#243b53" stroke="#ffffff" stroke-width="3">'
        f"<title>{html.escape(node.hostname)}</title></circle>"
        f'<text x="{(left + right) / 2:.1f}" y="{(top + bottom) / 2 + 5:.1f}" font-size="14" font-weight="bold"'
        f' text-anchor="middle" fill="#1f2933" stroke="#ffffff" stroke-width="4" paint-order="stroke"'
        f' stroke-linejoin="round">{html.escape(node.name)}{place}</text>'
    )


def _svg_legend(states: Sequence[LinkState]) -> str:
    y = _HEIGHT - 34
    parts = [f'<text x="40" y="{y + 5}" font-size="13" fill="#52606d">share of the asked rate:</text>']
    names = ("not tested, or nothing", "2 to 40 %", "40 to 70 %", "70 to 90 %", "over 90 %")
    x = 222
    for (_, shade), name in zip(_COLOURS, names, strict=True):
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 34}" y2="{y}" stroke="{shade}" stroke-width="6"/>')
        parts.append(f'<text x="{x + 42}" y="{y + 5}" font-size="13" fill="#1f2933">{name}</text>')
        x += 62 + 8 * len(name)
    if any(state.problem for state in states):
        parts.append(f'<text x="{x}" y="{y + 5}" font-size="13" fill="#1f2933">dashed, "!": with a problem</text>')
    return "".join(parts)


# -------------------------------------------------------------------- text


def table(topo: Topology, states: Sequence[LinkState]) -> str:
    """One line a link: ends, asked rate, what flows, what was measured, problem; without columns that say nothing."""
    place = {node.name: node.place or node.hostname for node in topo.nodes}
    rows = [("link", "between", "asked", "now", "measured", "")]
    for state in states:
        measured = "-" if state.measured_bps is None else human_rate(state.measured_bps)
        now = "-" if state.used_bps is None else human_rate(state.used_bps)
        between = f"{place[state.a]} - {place[state.b]}"
        rows.append((f"{state.a}-{state.b}", between, human_rate(state.asked_bps), now, measured, state.problem))
    shown = [i for i in range(6) if i < 3 or any(row[i] not in ("-", "") for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in shown}
    lines = []
    for row in rows:
        cells = [row[i].rjust(widths[i]) if 2 <= i <= 4 else row[i].ljust(widths[i]) for i in shown]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def picture(topo: Topology, columns: int = 78, rows: int = 22) -> str:
    """The network drawn with characters."""
    longest = max(len(node.name) for node in topo.nodes)
    places = layout(topo.nodes, columns - longest - 3, rows - 1)
    cell = {name: (round(x) + longest // 2 + 1, round(y)) for name, (x, y) in places.items()}
    canvas = [[" "] * columns for _ in range(rows)]
    for link in topo.links:
        _draw(canvas, cell[link.a], cell[link.b])
    for name, (x, y) in cell.items():
        label = f"[{name}]"
        start = max(0, min(columns - len(label), x - len(label) // 2))
        canvas[y][start : start + len(label)] = label
    lines = ["".join(row).rstrip() for row in canvas]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return "\n".join(lines) + "\n"


def _draw(canvas: list[list[str]], start: tuple[int, int], end: tuple[int, int]) -> None:
    (x1, y1), (x2, y2) = sorted((start, end))
    wide, tall = x2 - x1, y2 - y1
    steps = max(abs(wide), abs(tall), 1)
    flat, steep = abs(tall) * 4 < abs(wide), abs(wide) * 2 < abs(tall)
    mark = "-" if flat else "|" if steep else ("\\" if tall > 0 else "/")
    for i in range(steps + 1):
        x, y = round(x1 + wide * i / steps), round(y1 + tall * i / steps)
        canvas[y][x] = mark if canvas[y][x] in (" ", mark) else "+"
