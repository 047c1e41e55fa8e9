"""Heatmaps that stay readable in print and to the colour-blind: one ramp from dark to light, and its scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from antefix.training.figures import new_figure, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICKS = 24
MAX_NUMBERED_CELLS, MAX_NUMBERED_COLUMNS = 200, 20
"""In a heatmap with more cells or columns, no numbers are written."""


def draw_heatmap(
    numbers: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str, str],
    path: Path,
) -> Path | None:
    """Draw numbers by row and column to a PNG; `labels` are those of rows, columns and numbers.

    Returns the path; None without matplotlib.
    """
    figure = new_figure(width=min(4 + 0.34 * len(columns), 14), height=min(1.6 + 0.28 * len(rows), 14))
    if figure is None:
        return None
    axes = figure.add_subplot()
    image = axes.imshow(numbers, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    if len(rows) * len(columns) <= MAX_NUMBERED_CELLS and len(columns) <= MAX_NUMBERED_COLUMNS:
        _write_numbers(axes, numbers, image.get_clim()[1])
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = -(-len(names) // MAX_TICKS)
        axis.set_ticks(range(0, len(names), step), names[::step], parse_math=False)
    if max(map(len, columns)) > 3:
        axes.tick_params("x", rotation=90)
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=labels[2])
    write_png(figure, path)
    return path


def _write_numbers(axes: Axes, numbers: Sequence[Sequence[float]], most: float) -> None:
    for row, across in enumerate(numbers):
        for column, number in enumerate(across):
            if not math.isnan(number):  # a layer with fewer heads than others has none there
                color = "black" if number > 0.5 * most else "white"
                axes.text(column, row, f"{number:.2g}", ha="center", va="center", fontsize=7, color=color)
