"""The worker's side: prefixes read from their files in the background, and written into the blocks of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from antefix.errors import PrefixFormatError, PrefixMismatchError, UnsupportedModelError
from antefix.prefix import Prefix
from antefix.storage import load_prefix
from antefix.vllm.geometry import CachedLayer
from antefix.vllm.orders import Orders, Placement, Reading, Reports
from antefix.vllm.slots import heads_of_rank, slots_of
from antefix.vllm.ticket import Ticket


class PrefixLoader:
    """The prefixes in this worker's memory: for each of its layers `(token, key or value, kv_head, head_dim)`.

    They lie on the host, page-locked beside a GPU, so that they take nothing from what vLLM has planned; the blocks
    that requests share are on the device.
    """

    def __init__(self, layers: Sequence[CachedLayer], dtype: torch.dtype, rank: int, num_ranks: int) -> None:
        self._layers = layers
        self._dtype = dtype
        self._rank = rank
        self._num_ranks = num_ranks
        self._rows: dict[str, list[torch.Tensor]] = {}
        self._reading: dict[Reading, Future[list[torch.Tensor]]] = {}
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="antefix")
        self._failing: set[str] = set()

    def check(self, modules: Mapping[str, Any]) -> None:
        """Raise `UnsupportedModelError` unless the attention of every layer has a way to write into its cache."""
        for layer in self._layers:
            if not hasattr(modules[layer.name].impl, "do_kv_cache_update"):
                raise UnsupportedModelError(
                    f"vLLM's {type(modules[layer.name].impl).__name__} has no way to write a prefix into its cache; "
                    "choose another by --attention-backend."
                )

    def obey(self, orders: Orders, modules: Mapping[str, Any]) -> None:
        """Carry out a step's orders; `modules` are vLLM's attention layers by name."""
        for content in orders.forget:
            self._rows.pop(content, None)
            for given_up in [reading for reading in self._reading if reading.ticket.content == content]:
                self._reading.pop(given_up).cancel()
        for reading in orders.read:
            self._reading[reading] = self._reader.submit(self._read, reading.ticket)
        for placement in orders.place:
            self._place(placement, modules)
        self._failing.update(orders.fail)

    def report(self) -> Reports:
        """Return which files were read since the last report, and which could not be."""
        reports = Reports()
        for reading in [reading for reading, future in self._reading.items() if future.done()]:
            future = self._reading.pop(reading)
            error = future.exception()
            if error is None:
                self._rows[reading.ticket.content] = future.result()
                reports.ready[reading] += 1
            else:
                reports.failed[reading] = str(error)
        return reports

    def take_failing(self) -> set[str]:
        """Return the requests that were ordered to fail since this was asked last."""
        failing, self._failing = self._failing, set()
        return failing

    def close(self) -> None:
        """Stop reading."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read(self, ticket: Ticket) -> list[torch.Tensor]:
        prefix = load_prefix(ticket.path)
        if prefix.num_virtual_tokens != ticket.num_virtual_tokens or prefix.content_hash() != ticket.content:
            raise PrefixFormatError(
                f"'{ticket.path}' has changed since it was added as '{ticket.name}'; add it again to serve the new one."
            )
        return [self._of_layer(prefix, layer) for layer in self._layers]

    def _of_layer(self, prefix: Prefix, layer: CachedLayer) -> torch.Tensor:
        """Return this rank's heads `(token, key or value, kv_head, head_dim)` of a layer."""
        sites = [site for site in prefix.sites if site.layer == layer.layer]
        if len(sites) != 1 or {sites[0].key_dim, sites[0].value_dim} != {layer.head_size}:
            raise PrefixMismatchError(f"the prefix does not have heads of {layer.head_size} for '{layer.name}'.")
        heads = heads_of_rank(sites[0].num_key_value_heads, self._rank, self._num_ranks)
        both = torch.stack([held[sites[0].path][heads] for held in (prefix.keys, prefix.values)], dim=1)
        if both.shape[0] != layer.num_key_value_heads:
            raise PrefixMismatchError(
                f"the prefix has {both.shape[0]} heads for '{layer.name}' on this rank; vLLM has "
                f"{layer.num_key_value_heads}."
            )
        rows = both.permute(2, 1, 0, 3).to(self._dtype).contiguous()
        return rows.pin_memory() if torch.cuda.is_available() else rows

    def _place(self, placement: Placement, modules: Mapping[str, Any]) -> None:
        by_group: dict[int, tuple[slice | list[int], torch.Tensor]] = {}
        for layer, rows in zip(self._layers, self._rows[placement.content], strict=True):
            module = modules[layer.name]
            if layer.group not in by_group:
                by_group[layer.group] = _positions_and_slots(placement, layer, module.kv_cache.device)
            positions, slots = by_group[layer.group]
            key, value = rows[positions].to(module.kv_cache.device, non_blocking=True).unbind(1)
            # The layout of a cache is the attention backend's own, and so is the way to write into it.
            module.impl.do_kv_cache_update(module, key, value, module.kv_cache, slots)


def _positions_and_slots(
    placement: Placement, layer: CachedLayer, device: torch.device
) -> tuple[slice | list[int], torch.Tensor]:
    block_ids = placement.block_ids[layer.group]
    positions, slots = slots_of(block_ids, layer.block_size, placement.start, placement.stop)
    is_whole = len(positions) == placement.stop - placement.start
    return (
        slice(placement.start, placement.stop) if is_whole else positions,
        torch.tensor(slots, dtype=torch.long, device=device),
    )
