"""Heatmaps that print and colour-blind readers keep apart: one ramp from dark to light, with its scale beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from antefix.storage import write_atomically

MOST_TICKS = 24


def draw_heatmap(
    numbers: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str, str],
    path: Path,
) -> Path | None:
    """Draw numbers by row and column to a PNG; None without matplotlib. `labels` are of rows, columns and numbers."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    size = (min(4 + 0.28 * len(columns), 14), min(1.6 + 0.28 * len(rows), 14))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(numbers, aspect="auto", cmap="cividis", interpolation="nearest")
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = -(-len(names) // MOST_TICKS)
        axis.set_ticks(range(0, len(names), step), names[::step])
    if max(map(len, columns)) > 3:
        axes.tick_params("x", rotation=90)
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=labels[2])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path
