"""Draws the ratios as an SVG: for each operation a group of horizontal bars, one a subject.

Called by `__main__` for `--svg`. Bars grow from the line of the raw loop, to the right where a subject is faster and to
the left where it is slower. The scale is logarithmic, so that half as fast and twice as fast are equally long.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

from benchmarks.harness import MEASURE
from benchmarks.report import figure
from benchmarks.targets import OURS, TITLES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.report import Measured

COLOURS: Final = {
    "sqlite": "#0f766e",
    "memory": "#7cc4bb",
    "diskcache": "#b45309",
    "jsondisk": "#e8b87a",
    "sqlitedict": "#6d4aa8",
    "sqlitedict-json": "#b9a6dc",
    "langgraph": "#64748b",
}
_WIDTH: Final = 900
_LEFT: Final = 210
_RIGHT: Final = 20
_TOP: Final = 116
_BAR: Final = 12
_GAP: Final = 14
# Room beyond the longest bars for the figures at their ends.
_ROOM: Final = 44
_TICKS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
_INK: Final = "#1f2937"
_QUIET: Final = "#6b7280"
_STYLE: Final = (
    "text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 12px; "
    f"fill: {_INK}; }} .title {{ font-size: 16px; font-weight: 600; }} .quiet {{ fill: {_QUIET}; }} "
    ".figure { font-size: 10px; } .ours { font-weight: 700; }"
)


class _Scale:
    """Where a ratio stands from left to right."""

    def __init__(self, ratios: Iterable[float]) -> None:
        logs = [math.log10(ratio) for ratio in ratios]
        self._low = min([*logs, -0.5])
        self._high = max([*logs, 0.5])

    def __call__(self, ratio: float) -> float:
        room = _WIDTH - _LEFT - _RIGHT - 2 * _ROOM
        return _LEFT + _ROOM + room * (math.log10(ratio) - self._low) / (self._high - self._low)

    def ticks(self) -> list[float]:
        return [tick for tick in _TICKS if self._low <= math.log10(tick) <= self._high]


def draw(measured: Measured, subtitle: str) -> str:
    """The SVG text of a run's ratios, of operations and of queries."""
    groups = list(_groups(measured))
    scale = _Scale(ratio for _, bars in groups for _, ratio in bars)
    height = _TOP + sum(len(bars) * _BAR + _GAP for _, bars in groups) + 30
    shown = list(dict.fromkeys(name for _, bars in groups for name, _ in bars))
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
        f'<title id="title">Speed beside a hand-written loop, by operation. {escape(subtitle)}</title>',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        '<text class="title" x="20" y="28">Speed beside a hand-written APSW and orjson loop</text>',
        f'<text class="quiet" x="20" y="47">{escape(subtitle)}</text>',
        *_legend(shown),
        *_grid(scale, height),
        *_bars(scale, groups),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _groups(measured: Measured) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """A title and the bars of each group."""
    found = [measured.operations, None if measured.queries is None else measured.queries.alone]
    for results in filter(None, found):
        for name, by_subject in results.seconds.items():
            ratios = [(subject, results.ratio(name, subject)) for subject in by_subject if subject != MEASURE]
            bars = [(subject, ratio) for subject, ratio in ratios if ratio is not None]
            if bars:
                yield TITLES.get(name, name), bars


def _legend(names: Sequence[str]) -> list[str]:
    lines: list[str] = []
    x = 20.0
    for name in names:
        lines.append(f'<rect x="{x:.1f}" y="60" width="11" height="11" rx="2" fill="{_colour(name)}"/>')
        lines.append(f'<text x="{x + 16:.1f}" y="70">{escape(name)}</text>')
        x += 36 + 6.6 * len(name)
    return lines


def _grid(scale: _Scale, height: int) -> list[str]:
    raw = scale(1.0)
    lines = [
        f'<text class="quiet" x="{raw - 10:.1f}" y="{_TOP - 14}" text-anchor="end">← slower</text>',
        f'<text class="quiet" x="{raw + 10:.1f}" y="{_TOP - 14}">faster →</text>',
    ]
    for tick in scale.ticks():
        x, is_raw = scale(tick), tick == 1.0
        colour, width = (_INK, 1.2) if is_raw else ("#e5e7eb", 1)
        label = f"{MEASURE} = 1" if is_raw else f"{tick:g} ×"
        lines.append(
            f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 30}" stroke="{colour}" '
            f'stroke-width="{width}"/>'
        )
        lines.append(f'<text class="quiet" x="{x:.1f}" y="{height - 12}" text-anchor="middle">{label}</text>')
    return lines


def _bars(scale: _Scale, groups: Sequence[tuple[str, list[tuple[str, float]]]]) -> list[str]:
    lines: list[str] = []
    y = float(_TOP)
    zero = scale(1.0)
    for title, bars in groups:
        middle = y + len(bars) * _BAR / 2 + 4
        lines.append(f'<text x="{_LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(title)}</text>')
        for name, ratio in bars:
            end = scale(ratio)
            x, width = min(zero, end), max(abs(end - zero), 1)
            lines.append(
                f'<rect x="{x:.1f}" y="{y + 1:.1f}" width="{width:.1f}" height="{_BAR - 2}" rx="1.5" '
                f'fill="{_colour(name)}"/>'
            )
            at, anchor = (end + 4, "start") if ratio >= 1 else (end - 4, "end")
            style = "figure ours" if name == OURS else "figure"
            lines.append(
                f'<text class="{style}" x="{at:.1f}" y="{y + _BAR - 2.5:.1f}" text-anchor="{anchor}">'
                f"{figure(ratio)}</text>"
            )
            y += _BAR
        y += _GAP
    return lines


def _colour(name: str) -> str:
    return COLOURS.get(name, _QUIET)
