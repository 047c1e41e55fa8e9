"""The scheduler's side: which request waits for which prefix, and what the workers shall read, place and forget.

An exception here would end the engine for everybody, so a request that cannot have its prefix is failed alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import count

from vllm.logger import init_logger
from vllm.v1.request import Request

from antefix.vllm.orders import Orders, Placement, Reading, Reports
from antefix.vllm.placeholders import insert_placeholders, limit_answer
from antefix.vllm.ticket import Ticket, read_ticket

logger = init_logger(f"vllm.{__name__}")


@dataclass
class _Residence:
    """How far a prefix has come on its way into the memory of all workers."""

    reading: Reading
    num_done: int = 0
    """How many workers have read it."""


class PrefixScheduler:
    """The prefixes of the requests in flight; at most `max_resident_prefixes` are kept in the workers' memory.

    `room` is the number of positions that a request with a prefix may have.
    """

    def __init__(self, num_workers: int, room: int, max_resident_prefixes: int) -> None:
        self._num_workers = num_workers
        self._room = room
        self._most = max_resident_prefixes
        self._tickets: dict[str, Ticket] = {}
        self._refused: set[str] = set()
        self._seated: set[str] = set()
        """Requests that have blocks, and their prefix in them."""
        self._residences: OrderedDict[str, _Residence] = OrderedDict()
        self._numbers = count()
        self._orders = Orders()

    def admit(self, request: Request) -> None:
        """Make room for the prefix before a new request's prompt; a request that cannot have it is marked to fail."""
        try:
            self._admit(request, read_ticket(request.kv_transfer_params))
        except Exception as error:
            self._refuse(request, str(error))

    def num_matched(self, request: Request, num_computed: int) -> tuple[int | None, bool]:
        """Return how many tokens of the prefix are still to be placed; None: ask again, its file is being read."""
        self._seated.discard(request.request_id)
        ticket = self._tickets.get(request.request_id)
        if ticket is not None and num_computed >= ticket.num_virtual_tokens:
            return 0, False
        if request.request_id in self._refused:
            return 1, True
        if ticket is None:
            return 0, False
        residence = self._residences.get(ticket.content)
        if residence is None:
            self._read(ticket)
            return None, False
        self._residences.move_to_end(ticket.content)
        return (ticket.num_virtual_tokens - num_computed, False) if self._is_ready(residence) else (None, False)

    def allocated(self, request: Request, block_ids: tuple[list[int], ...], num_external: int) -> None:
        """Order what a request was given blocks for: the rest of its prefix, or to fail."""
        self._seated.add(request.request_id)
        if num_external == 0:
            return
        if request.request_id in self._refused:
            self._orders.fail.append(request.request_id)
            return
        ticket = self._tickets[request.request_id]
        stop = ticket.num_virtual_tokens
        self._orders.place.append(Placement(ticket.content, stop - num_external, stop, block_ids))

    def take_orders(self) -> Orders:
        """Return the orders of this step and begin those of the next."""
        orders, self._orders = self._orders, Orders()
        return orders

    def heed(self, reports: Reports) -> None:
        """Note which prefixes all workers have read, and which they could not."""
        for reading, reason in reports.failed.items():
            logger.error("A prefix could not be loaded: %s", reason)
            if self._awaited(reading):
                del self._residences[reading.ticket.content]
                self._orders.forget.append(reading.ticket.content)
                # Whoever waits for it fails now; for those who come later the file may have been repaired.
                waiting = [name for name in self._tickets if name not in self._seated]
                self._refused.update(name for name in waiting if self._tickets[name] == reading.ticket)
        for reading, num_workers in reports.ready.items():
            if residence := self._awaited(reading):
                residence.num_done += num_workers

    def finish(self, request: Request) -> None:
        """Forget a request."""
        self._tickets.pop(request.request_id, None)
        self._refused.discard(request.request_id)
        self._seated.discard(request.request_id)

    def _admit(self, request: Request, ticket: Ticket | None) -> None:
        if ticket is None:
            return
        left = self._room - ticket.num_virtual_tokens - request.num_prompt_tokens
        if left < 1:
            self._refuse(request, f"prefix and prompt leave no position of {self._room} for an answer.")
        elif _is_more_than_text(request):
            self._refuse(request, "prompt log-probabilities, sessions, images and embeddings cannot have a prefix.")
        else:
            salt = ticket.salt(request.cache_salt)
            insert_placeholders(request, ticket.num_virtual_tokens, salt)
            limit_answer(request, left)
            self._tickets[request.request_id] = ticket

    def _refuse(self, request: Request, reason: str) -> None:
        logger.warning("Request %s fails: %s", request.request_id, reason)
        request.skip_reading_prefix_cache = False  # vLLM would run it without its prefix otherwise
        self._refused.add(request.request_id)

    def _is_ready(self, residence: _Residence) -> bool:
        return residence.num_done == self._num_workers

    def _awaited(self, reading: Reading) -> _Residence | None:
        """Return what a report is about, None for a reading that was given up because another worker failed."""
        residence = self._residences.get(reading.ticket.content)
        return residence if residence and residence.reading == reading else None

    def _read(self, ticket: Ticket) -> None:
        """Order a file to be read, once there is room for it: what was placed in this step may not go yet."""
        in_use = {placement.content for placement in self._orders.place}
        ready = [content for content, residence in self._residences.items() if self._is_ready(residence)]
        idle = [content for content in ready if content not in in_use]
        too_many = len(self._residences) + 1 - self._most
        if too_many > len(idle):
            return
        for content in idle[: max(0, too_many)]:
            del self._residences[content]
            self._orders.forget.append(content)
        reading = Reading(next(self._numbers), ticket)
        self._residences[ticket.content] = _Residence(reading)
        self._orders.read.append(reading)


def _is_more_than_text(request: Request) -> bool:
    return bool(
        request.skip_reading_prefix_cache  # as prompt log-probabilities make it
        or request.resumable
        or request.mm_features
        or request.prompt_embeds is not None
    )
