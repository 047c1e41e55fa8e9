"""The page of figures and its plots, written from the JSON of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.floor import Speed, generation_floor, training_floor
from benchmarks.growth import GROWTHS, NUM_NEW
from benchmarks.scenarios import KEEPING_MEMORY, PROMPT, SCENARIOS, Scenario

STYLES: dict[str, dict[str, Any]] = {
    "peft": {"color": "#d55e00", "marker": "s", "label": "PEFT"},
    "antefix": {"color": "#0072b2", "marker": "o", "label": "antefix"},
    "base": {"color": "#000000", "marker": "", "linestyle": ":", "label": "bare base"},
    "floor": {"color": "#009e73", "marker": "", "linestyle": "--", "label": "arithmetic floor"},
}
"""Colours that colour-blind readers tell apart (Okabe & Ito 2008), and marks that print keeps apart."""


def write_page(page: Path, results: Path) -> None:
    """Write the tables and plots of every run whose JSON is in a folder."""
    parts = [_INTRODUCTION]
    for name, title in (("cpu", "On a CPU"), ("cuda", "On a GPU")):
        file = results / f"{name}.json"
        parts.append(f"## {title}")
        if not file.is_file():
            parts.append("Not measured.")
            continue
        found = json.loads(file.read_text())
        has_targets = name == "cpu"  # they are of the small model
        parts += [_environment(found), _table(found, has_targets), _bytes(found)]
        parts.append(_misses(found) if has_targets else _WHY_ON_GPU)
        missing = [*({s.name for s in SCENARIOS} - {entry["scenario"] for entry in found["results"]})]
        missing += [
            f"how cost grows with {growth.label}" for growth in GROWTHS if growth.name not in found.get("growth", {})
        ]
        if missing:
            parts.append(f"Not measured: {'; '.join(sorted(missing))}.")
        for growth in (growth for growth in GROWTHS if growth.name in found.get("growth", {})):
            picture = page.parent / "images" / f"{name}-{growth.name}.png"
            picture.parent.mkdir(exist_ok=True)
            _plot(found["growth"][growth.name], growth.label, picture)
            parts.append(f"![Seconds to generate {NUM_NEW} tokens, by {growth.label}](images/{picture.name})")
    page.write_text("\n\n".join(part for part in parts if part) + "\n")


_INTRODUCTION = """# What a prefix costs

Written by `make bench`. One base model is measured three times: bare, with PEFT's prefix, and with antefix's. The two
prefixes hold the same numbers; logits are compared before anything is timed. Calls take turns, one of each, in one
process with the same threads. Figures are medians.

A training step is a forward and a backward pass. The bare base is frozen, but its backward pass goes down to its
embeddings, as a prefix makes it do. PEFT answers requests for several prefixes in one batch per prefix. Making a prefix
active is timed alone, without the forward pass that follows. Peak memory is what PyTorch's allocator hands out above
what was held before; it is the same at each reading. The library `adapters` is not among the peers, because its newest
release, 1.3.0, requires Transformers 4.57."""


_WHY = """The floor counts matrix products only. On top of them come the exponentials, a second kernel call in each
layer (about 30 µs when cold, which is what remains of the cost of short prefixes and small batches), and the weighting
of the two parts. A few queries against a long prefix make thin products, in which a CPU's matrix routines do not reach
their full speed.

Memory comes from the C library with its default settings. It hands large blocks back when they are freed, so each copy
touches new pages. At 4,096 tokens, that is most of what PEFT's copies cost here: the last rows of the table show the
same work with freed memory kept (`MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647`)."""


_WHY_ON_GPU = """At these sizes, the GPU waits for the CPU: the bare base takes no longer to answer sixteen rows than
one. What counts is how many calls a layer makes and what each call costs the CPU. PEFT's prefix makes no calls of its
own while tokens are decoded, so it is the faster of the two here, until its copies fill the GPU's time. antefix calls
one kernel where the base calls one, through Triton; in a training step, it makes two calls for one, forward and
backward."""


_HOW_TO_READ = """To the right of the bare base, figures are ratios of medians to the base's. Brackets hold the least
and the most{}, also relative to the base's median. The base differs between rows because the machine
does from minute to minute: compare within a row."""


def _environment(found: dict[str, Any]) -> str:
    of = found["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    return (
        f"{of['processor']}, {of['threads']} threads, {of['dtype']}; {versions}; Python {of['python']}; commit "
        f"{of['commit']}. A large matrix product ran at {found['speed']['flops'] / 1e9:,.0f} GFLOP/s, reading memory "
        f"at {found['speed']['bytes'] / 1e9:,.0f} GB/s."
    )


def _table(found: dict[str, Any], has_targets: bool) -> str:
    """Return what each peer needs in proportion to the bare base's median, beside the floor and any target."""
    head = ["work", "bare base", "PEFT", "antefix", "floor", *["target"] * has_targets]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for scenario, measured in _pairs(found):
        ours = measured["antefix"]["median"]
        base = measured.get("base")
        cells = [
            scenario.name,
            _absolute(scenario, base) + (f" ({_range(base, base)})" if base and "min" in base else ""),
        ]
        for peer in ("peft", "antefix"):
            cells.append(_cell(scenario, measured, peer))
        floor = _floor(scenario, measured, Speed(**found["speed"]))
        cells.append(f"{floor:.2f}" if floor else "")
        if has_targets:
            cells.append(_target(scenario, ours, measured))
        lines.append(f"| {' | '.join(cells)} |")
    rounds = found["environment"].get("rounds")
    told = "" if rounds is None else f" of {rounds} rounds"
    return "\n".join([*lines, "", _HOW_TO_READ.format(told)])


def _cell(scenario: Scenario, measured: dict[str, Any], peer: str) -> str:
    if peer not in measured:
        return "refuses"
    if "base" not in measured:
        return _absolute(scenario, measured[peer])
    base, own = measured["base"], measured[peer]
    spread = f" ({_range(own, base)})" if "min" in own else ""
    return f"{own['median'] / base['median']:.2f}{spread}"


def _range(own: dict[str, float], base: dict[str, float]) -> str:
    return f"{own['min'] / base['median']:.2f}-{own['max'] / base['median']:.2f}"


def _absolute(scenario: Scenario, own: dict[str, float] | None) -> str:
    if own is None:
        return ""
    if scenario.measure == "memory":
        return f"{own['median'] / 2**20:,.0f} MiB"
    milliseconds = own["median"] * 1e3
    return f"{milliseconds:,.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def _target(scenario: Scenario, ours: float, measured: dict[str, Any]) -> str:
    targets: list[tuple[float | None, dict[str, float] | None, Callable[[float], str]]] = [
        (scenario.target, measured.get("base"), lambda t: f"{t:.2f}"),
        (scenario.target_to_peft, measured.get("peft"), lambda t: f"PEFT / {1 / t:.0f}"),
        (scenario.target_s, {"median": 1.0}, lambda t: f"{t * 1e3:.0f} ms"),
    ]
    return ", ".join(
        f"{text(target)}: {'met' if ours / part['median'] <= target else 'missed'}"
        for target, part, text in targets
        if target is not None and part is not None
    )


def _misses(found: dict[str, Any]) -> str:
    """Say by how much each missed target is missed, and how much of that no implementation could avoid."""
    lines = []
    for scenario, measured in _pairs(found):
        ours, flops = measured["antefix"]["median"], measured["flops_of_products"]
        if scenario.target is not None and ours / measured["base"]["median"] > scenario.target:
            why = ""
            if flops is not None:
                floor = _floor(scenario, measured, Speed(flops, found["speed"]["bytes"]))
                why = f"; products of these shapes ran at {flops / 1e9:,.0f} GFLOP/s and alone come to {floor:.2f}"
            ratio = ours / measured["base"]["median"]
            lines.append(f"- {scenario.name}: {ratio:.3f} instead of {scenario.target:.2f}{why}.")
        if scenario.target_to_peft is not None and ours / measured["peft"]["median"] > scenario.target_to_peft:
            times, wanted = measured["peft"]["median"] / ours, 1 / scenario.target_to_peft
            least = measured["peft"]["median"] / measured["base"]["median"]
            lines.append(
                f"- {scenario.name}: {times:.1f} times as fast as PEFT instead of {wanted:.0f}; the bare base, with no "
                f"prefix, is {least:.1f} times as fast."
            )
    return "\n".join(["Missed targets, and what stands in the way:", "", *lines, "", _WHY]) if lines else ""


def _bytes(found: dict[str, Any]) -> str:
    held = found.get("bytes_held")
    if held is None:
        return ""
    return (
        f"Memory held for the keys and values of a prefix of {held['num_virtual_tokens']:,} tokens, in a batch of "
        f"{held['batch']}: PEFT {held['peft'] / 2**20:,.0f} MiB, antefix {held['antefix'] / 2**20:,.0f} MiB."
    )


def _floor(scenario: Scenario, measured: dict[str, Any], speed: Speed) -> float | None:
    """Return the arithmetic floor in proportion to the bare base, for work whose arithmetic is that of attention."""
    if scenario.queries_and_tokens is None:
        return None
    base_s: float = measured["base"]["median"]
    queries, tokens = scenario.queries_and_tokens
    if scenario.name.startswith("training"):
        return training_floor(speed, base_s, queries, tokens) / base_s
    return generation_floor(speed, base_s, queries, tokens, PROMPT, 32) / base_s


def _pairs(found: dict[str, Any]) -> list[tuple[Scenario, dict[str, Any]]]:
    by_name = {scenario.name: scenario for scenario in SCENARIOS + KEEPING_MEMORY}
    return [
        (by_name[entry["scenario"]], {**entry["measured"], "flops_of_products": entry["flops_of_products"]})
        for entry in found["results"]
    ]


def _plot(points: list[dict[str, float]], label: str, path: Path) -> None:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for peer, style in STYLES.items():
        axes.plot([point["value"] for point in points], [point[peer] for point in points], **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    ticks = [point["value"] for point in points]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel(label)
    axes.set_ylabel(f"seconds for {NUM_NEW} tokens")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
