"""What the scheduler's side of the connector tells the workers at each step, and what they report back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

from antefix.vllm.ticket import Ticket


@dataclass(frozen=True)
class Placement:
    """Write the tokens `start` to `stop` of a prefix into a request's blocks, given for each group of layers."""

    content: str
    start: int
    stop: int
    block_ids: tuple[list[int], ...]


@dataclass(frozen=True)
class Reading:
    """One attempt to read a prefix's file; the number tells it from earlier ones."""

    number: int
    ticket: Ticket


@dataclass
class Orders(KVConnectorMetadata):
    """One step's orders: contents to forget, files to read, prefixes to place, requests that cannot have theirs."""

    forget: list[str] = field(default_factory=list)
    read: list[Reading] = field(default_factory=list)
    place: list[Placement] = field(default_factory=list)
    fail: list[str] = field(default_factory=list)


@dataclass
class Reports(KVConnectorWorkerMetadata):
    """What became of readings: how many workers have ended each well, and why one could not."""

    ready: Counter[Reading] = field(default_factory=Counter)
    failed: dict[Reading, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Tell whether there is anything to report."""
        return bool(self.ready or self.failed)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """Return the reports of several workers in one."""
        assert isinstance(other, Reports)
        return Reports(self.ready + other.ready, self.failed | other.failed)
