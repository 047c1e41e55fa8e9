"""Draw the figures of `docs/concepts.md`: `python -m scripts.draw_concepts` writes them to `docs/images`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PREFIX, REAL, GREY = "#0072b2", "#e69f00", "#999999"
"""Okabe & Ito (2008)."""


def main() -> None:
    """Draw all figures."""
    for name, figure in (("places", places()), ("masks", masks()), ("split", split())):
        figure.savefig(IMAGES / f"concepts-{name}.png", dpi=150)


def places() -> Figure:
    """Draw where keys and values of a prefix stand: before the sequence's own, in every layer."""
    figure, axes = _canvas(7.2, 3.2, (0, 14), (-0.9, 5.2))
    for layer in range(3):
        for token in range(3):
            _box(axes, token, 1.5 * layer, PREFIX, f"k v {token}")
        for token in range(5):
            _box(axes, 4 + token, 1.5 * layer, REAL, f"k v {token}")
        axes.text(9.4, 1.5 * layer + 0.5, f"layer {layer}", va="center")
        if layer:
            for token in range(5):
                axes.annotate("", (4.45 + token, 1.5 * layer), (4.45 + token, 1.5 * layer - 0.5), arrowprops=_ARROW)
    for token, word in enumerate(("The", "Blue", "Spice", "is", "a")):
        axes.text(4.45 + token, -0.5, word, ha="center", va="center")
    axes.text(1.45, -0.5, "no tokens, no layers: trained", ha="center", va="center", color=PREFIX)
    axes.text(11.2, 3.5, "the prefix: the same\nfor every row", color=PREFIX, va="center")
    axes.text(11.2, 2.0, "the sequence: computed\nfrom the layer below", color="#8a5f00", va="center")
    return figure


def masks() -> Figure:
    """Draw who sees whom: causal, with a window of two, and in an encoder."""
    length, prefix = 5, 3
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    query, key = np.indices((length, length))
    seen = {"causal": key <= query, "window of 2": (key <= query) & (key > query - 2), "encoder": key >= 0}
    for axes, (title, real) in zip(figure.subplots(1, 3), seen.items(), strict=True):
        for row in range(length):
            for column in range(prefix + length):
                own = column >= prefix
                color = (REAL if own else PREFIX) if not own or real[row, column - prefix] else "white"
                axes.add_patch(FancyBboxPatch((column, row), 0.8, 0.8, boxstyle="square,pad=0", fc=color, ec=GREY))
        axes.set(xlim=(-0.3, prefix + length), ylim=(length, -0.3), title=title, aspect="equal")
        axes.set_xticks([1.4, 5.4], ["prefix", "sequence"])
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.axes[0].set_ylabel("query")
    return figure


def split() -> Figure:
    """Draw how rows share one prefix: two attentions and a merge by the logarithm of their sums."""
    figure, axes = _canvas(7.2, 3.0, (0, 14.4), (0.3, 6))
    for row in range(3):
        height = 1.6 * row + 0.6
        _box(axes, 5.6, height, GREY, f"q {row}")
        _box(axes, 8.8, height, REAL, f"k v {row}")
        axes.annotate("", (3.2, 2.65), (5.5, height + 0.45), arrowprops=_ARROW)
        axes.annotate("", (8.7, height + 0.45), (6.6, height + 0.45), arrowprops=_ARROW)
        axes.text(12.2, height + 0.45, r"$\frac{e^{a}\,x + e^{b}\,y}{e^{a} + e^{b}}$", va="center", fontsize=12)
    for token in range(3):
        _box(axes, 0.2 + token, 2.2, PREFIX, f"k v {token}")
    axes.text(1.65, 3.4, "read once by all rows:\noutput x, log of sum a", ha="center", color=PREFIX)
    axes.text(9.25, 5.2, "each row its own:\ny and b", ha="center", color="#8a5f00")
    axes.text(12.9, 5.2, "merged", ha="center")
    axes.text(6.05, 5.2, "queries", ha="center")
    return figure


_ARROW = {"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0}


def _canvas(width: float, height: float, xlim: tuple[float, float], ylim: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=xlim, ylim=ylim)
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, color: str, text: str) -> None:
    axes.add_patch(FancyBboxPatch((x, y), 0.9, 0.9, boxstyle="round,pad=0,rounding_size=0.1", fc=color, ec="white"))
    axes.text(x + 0.45, y + 0.45, text, ha="center", va="center", color="white", fontsize=8)


if __name__ == "__main__":
    main()
