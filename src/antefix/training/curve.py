"""The loss curve of a training, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from antefix.training.figures import new_figure, write_png


def draw_loss_curve(
    history: Sequence[Mapping[str, float]], before: float, after: float, label: str, path: Path
) -> Path | None:
    """Draw a training's `loss` by `step` to a PNG, and what held-out data scored before and after it.

    `label` names what is drawn, with its unit. Returns the path; None without matplotlib.
    """
    if (figure := new_figure(6.4, 3.8)) is None:
        return None
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    steps = [entry["step"] for entry in history]
    axes.plot(steps, [entry["loss"] for entry in history], color="#0072b2", label="training")
    for when, loss, style in (("before", before, ":"), ("after", after, "--")):
        axes.axhline(loss, color="#d55e00", linestyle=style, label=f"held out, {when} training: {loss:.3f}")
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    write_png(figure, path)
    return path
