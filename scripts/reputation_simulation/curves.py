"""Draw the share of bad outputs over time as SVG files. Needs nothing but text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reputation_simulation.figures import Figures

WIDTH, HEIGHT, MARGIN = 640, 320, 48
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#5d6d7e", "#117a65", "#a04000", "#2c3e50", "#7d3c98")


def draw(folder: Path, found: Mapping[str, Mapping[str, Figures]]) -> None:
    """Write one file for each section, with a curve for each case."""
    folder.mkdir(parents=True, exist_ok=True)
    for section, cases in found.items():
        curves = {case: figures.bad_by_epoch for case, figures in cases.items()}
        (folder / f"{section}.svg").write_text(picture(f"{section}: bad outputs by epoch", curves))


def picture(title: str, curves: Mapping[str, Sequence[float]]) -> str:
    """Make one picture."""
    top = max((max(curve, default=0.0) for curve in curves.values()), default=0.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 160} {HEIGHT}" font-size="11">',
        f'<text x="{MARGIN}" y="20" font-size="13">{title}</text>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - 8}" fill="none" stroke="#888"/>',
        f'<text x="4" y="{MARGIN + 4}">{top:.1%}</text><text x="20" y="{HEIGHT - MARGIN}">0</text>',
    ]
    for number, (name, curve) in enumerate(curves.items()):
        colour, y = COLOURS[number % len(COLOURS)], MARGIN + 16 * number
        points = " ".join(f"{_x(at, len(curve)):.1f},{_y(value / top):.1f}" for at, value in enumerate(curve))
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}"/>',
            f'<text x="{WIDTH + 4}" y="{y}" fill="{colour}">{name}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _x(at: int, num: int) -> float:
    return MARGIN + (WIDTH - MARGIN - 8) * at / max(1, num - 1)


def _y(share: float) -> float:
    return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * share
