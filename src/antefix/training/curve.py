"""The loss curve of a training, as a picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from antefix.storage import write_atomically


def draw_loss_curve(metrics: dict[str, Any], path: Path) -> Path | None:
    """Draw training loss by step, and held-out loss before and after, to a PNG; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return None
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    steps = [entry["step"] for entry in metrics["train_loss"]]
    axes.plot(steps, [entry["loss"] for entry in metrics["train_loss"]], color="#0072b2", label="training")
    for when, style in (("before", ":"), ("after", "--")):
        loss = metrics[when]["loss"]
        axes.axhline(loss, color="#d55e00", linestyle=style, label=f"held out, {when} training: {loss:.3f}")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss (nats a token)")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
    return path
