"""What an inspection found, as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import starmap

import torch

from antefix.inspect.contents import Contents
from antefix.inspect.drift import Drift
from antefix.inspect.run import BASE, WHOLE, Inspection
from antefix.sites import Site
from antefix.training.report import Table

MAX_TOKENS = 12
_RUN = ("learning_rate", "epochs", "batch_size", "seed")
_TOLD = {
    "composition": ("kind", "num_virtual_tokens", "weights", "parts"),
    "training": ("prompt", "answer", "data", *_RUN),
    "distillation": ("document", *_RUN),
}


def summary(name: str, found: Contents) -> Table:
    """Return what a file holds, one row per property."""
    kinds = {
        kind: sum(site.kind == kind for site in found.sites) for kind in dict.fromkeys(s.kind for s in found.sites)
    }
    told = found.metadata
    rows = [
        ("virtual tokens", f"{found.num_virtual_tokens:,}"),
        ("sites", ", ".join(f"{number} {kind}" for kind, number in kinds.items())),
        ("shapes", _shapes(found)),
        ("keys and values", f"{found.num_bytes:,} bytes, {', '.join(found.dtypes)}"),
        ("content", found.content),
        ("base model", f"{told.get('base_model') or '?'} ({told.get('base_class') or '?'})"),
        ("fingerprint", str(told.get("fingerprint") or "?")),
    ]
    if found.modules:
        rows.append(("modules", ", ".join(f"{module} {shape}" for module, shape in found.modules.items())))
    for about, wanted in _TOLD.items():
        if isinstance(settings := told.get(about), Mapping):
            named = [(one, _escaped(settings[one])) for one in wanted if one in settings]
            rows.append((about, ", ".join(starmap("{}={}".format, named))))
    return ("prefix", name), rows


def _escaped(setting: object) -> object:
    """Return the text of a template with the line breaks escaped, as a command line takes it."""
    return setting.replace("\\", "\\\\").replace("\n", "\\n") if isinstance(setting, str) else setting


def _shapes(found: Contents) -> str:
    """Return the shapes of key and value, once if all sites have the same."""
    tokens = found.num_virtual_tokens
    shapes = (
        ((site.num_key_value_heads, tokens, site.key_dim), (site.num_key_value_heads, tokens, site.value_dim))
        for site in found.sites
    )
    return "; ".join(f"key {key}, value {value}" for key, value in dict.fromkeys(shapes))


def norms(found: Contents) -> Table:
    """Return norms by layer: the mean over the heads, and their range."""
    rows = [
        (layer_name(site), *(_range(of[site.path]) for of in (found.key_norms, found.value_norms)))
        for site in found.sites
    ]
    return ("layer", "norm of keys (by head)", "norm of values (by head)"), rows


def layers(held: Contents, found: Inspection) -> Table:
    """Return by layer the share of attention that the prefix gets, and the change of the loss without that layer."""
    whole = found.losses[WHOLE]
    rows = []
    for site in held.sites:
        by_head = found.shares[site.path].sum(dim=1).tolist()
        without = found.losses.get(f"without {layer_name(site)}")
        worth = "" if without is None else f"{round(without - whole, 4) + 0.0:+.4f}"
        rows.append((layer_name(site), _range([100 * share for share in by_head], "%"), worth))
    return ("layer", "attention to the prefix (by head)", "loss without it"), rows


def losses(found: Inspection) -> Table:
    """Return the losses of the bare base and of the prefix."""
    return ("", "loss (nats)"), [(name, f"{found.losses[name]:.4f}") for name in (BASE, WHOLE)]


def tokens(found: Inspection) -> Table:
    """Return the virtual tokens that get most attention, averaged over all heads, and how far each has moved."""
    used = usage(found)
    order = sorted(range(len(used)), key=used.__getitem__, reverse=True)[:MAX_TOKENS]
    heading = ["token", "share of attention"]
    rows = [[str(number), f"{100 * used[number]:.2f}%"] for number in order]
    if found.drift is not None:
        heading += ["started as", "keys moved", "values moved"]
        for row, number in zip(rows, order, strict=True):
            row.extend(_moved(found.drift, number))
    return heading, rows


def usage(found: Inspection) -> list[float]:
    """Return the share of attention that each virtual token gets, averaged over all heads of all sites."""
    by_site = torch.stack([share.mean(dim=0) for share in found.shares.values()])
    return list(by_site.mean(dim=0).tolist())


def similar(names: Sequence[str], matrix: Sequence[Sequence[float]]) -> Table:
    """Return the similarity of each two prefixes."""
    return ("", *names), [(name, *(f"{number:.3f}" for number in row)) for name, row in zip(names, matrix, strict=True)]


def layer_name(site: Site) -> str:
    """Return the name of a site's layer, such as 'decoder 3'."""
    return f"{site.kind} {site.layer}"


def _moved(found: Drift, number: int) -> list[str]:
    return [repr(found.texts[number]), f"{100 * found.keys[number]:.0f}%", f"{100 * found.values[number]:.0f}%"]


def _range(numbers: Sequence[float], unit: str = "") -> str:
    low, high = min(numbers), max(numbers)
    return f"{sum(numbers) / len(numbers):.2f}{unit} ({low:.2f} to {high:.2f})"
