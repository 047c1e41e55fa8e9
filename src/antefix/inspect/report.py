"""What an inspection found, as files: `inspection.json` and heatmaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from antefix.errors import ConfigError
from antefix.inspect.contents import Contents
from antefix.inspect.plots import draw_heatmap
from antefix.inspect.run import Inspection
from antefix.inspect.tables import layer_name
from antefix.storage import write_atomically
from antefix.training.plain_json import as_json

MAX_NAME_BYTES = 200
"""A file's name may have 255, and that of a picture ends with what it shows."""


def check_names(names: Iterable[str]) -> None:
    """Raise `ConfigError` for a name that cannot be that of a file in the report's folder."""
    for name in names:
        if Path(name).name != name or "\0" in name or len(name.encode()) > MAX_NAME_BYTES:
            raise ConfigError(f"the prefix is named {name!r}, which names no file; name it as NAME=FILE.")


def write_report(
    found: Mapping[str, Contents],
    similarity: Sequence[Sequence[float]],
    inspections: Mapping[str, Inspection],
    folder: Path,
) -> list[Path]:
    """Write what was found of prefixes, by names that `check_names` takes, to a folder; return the paths."""
    path = folder / "inspection.json"
    whole = {
        "prefixes": {name: one.as_dict() for name, one in found.items()},
        "similarity": {name: dict(zip(found, row, strict=True)) for name, row in zip(found, similarity, strict=True)},
        "on_data": {name: _as_dict(one) for name, one in inspections.items()},
    }
    write_atomically(path, as_json(whole))
    return [path, *filter(None, _pictures(found, similarity, inspections, folder))]


def _pictures(
    found: Mapping[str, Contents],
    similarity: Sequence[Sequence[float]],
    inspections: Mapping[str, Inspection],
    folder: Path,
) -> list[Path | None]:
    drawn = []
    for name, one in found.items():
        layers = [layer_name(site) for site in one.sites]
        heads = _numbers(max(site.num_key_value_heads for site in one.sites))
        for what, norms in (("keys", one.key_norms), ("values", one.value_norms)):
            numbers = _filled([norms[site.path] for site in one.sites], len(heads))
            labels = ("layer", "key/value head", f"norm of {what}")
            drawn.append(draw_heatmap(numbers, layers, heads, labels, folder / f"{name}-{what}.png"))
        if name in inspections:
            drawn += _attention(one, inspections[name], layers, folder / name)
    if len(found) > 1:
        names = list(found)
        labels = ("", "", "similarity of values")
        drawn.append(draw_heatmap(similarity, names, names, labels, folder / "similarity.png"))
    return drawn


def _attention(one: Contents, inspection: Inspection, layers: Sequence[str], path: Path) -> list[Path | None]:
    shares = [inspection.shares[site.path] for site in one.sites]
    heads = _numbers(max(len(share) for share in shares))
    by_head = _filled([share.sum(dim=1).tolist() for share in shares], len(heads))
    by_token = [share.mean(dim=0).tolist() for share in shares]
    label = "share of attention"
    return [
        draw_heatmap(by_head, layers, heads, ("layer", "head", label), path.with_name(f"{path.name}-attention.png")),
        draw_heatmap(
            by_token, layers, _numbers(one.num_virtual_tokens), ("layer", "virtual token", label),
            path.with_name(f"{path.name}-tokens.png"),
        ),
    ]  # fmt: skip


def _as_dict(inspection: Inspection) -> dict[str, Any]:
    return {
        "num_examples": inspection.num_examples,
        "losses": dict(inspection.losses),
        "attention": {path: share.tolist() for path, share in inspection.shares.items()},
        "drift": asdict(inspection.drift) if inspection.drift else None,
    }


def _numbers(count: int) -> list[str]:
    return list(map(str, range(count)))


def _filled(rows: Sequence[Sequence[float]], width: int) -> list[list[float]]:
    """Return rows of one width, filled up with NaN, which is not drawn, if a layer has fewer heads than others."""
    return [[*row, *[float("nan")] * (width - len(row))] for row in rows]
