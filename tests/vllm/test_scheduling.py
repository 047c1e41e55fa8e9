"""The two sides of the connector without an engine: orders, reports, and what comes late."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from antefix.vllm.geometry import CachedLayer
from antefix.vllm.loading import PrefixLoader
from antefix.vllm.scheduling import PrefixScheduler
from antefix.vllm.ticket import Ticket

ROOM = 64


class ByHand:
    """A reader whose files are read when the test says so."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, *job: Any) -> Future[Any]:
        self.futures.append(Future())
        self.futures[-1].set_running_or_notify_cancel()  # a thread that reads cannot be called back
        return self.futures[-1]


class Worker:
    """A worker's side that writes into a list instead of a cache."""

    def __init__(self) -> None:
        layer = CachedLayer("layer", 0, 0, block_size=4, num_key_value_heads=1, head_size=2)
        self.loading = PrefixLoader([layer], torch.float32, 0, 1)
        self.reader = self.loading._reader = ByHand()  # type: ignore[assignment]
        self.written: list[list[int]] = []
        impl = SimpleNamespace(do_kv_cache_update=lambda m, k, v, cache, slots: self.written.append(slots.tolist()))
        self.modules = {"layer": SimpleNamespace(impl=impl, kv_cache=torch.zeros(1))}

    def succeed(self, attempt: int) -> None:
        self.reader.futures[attempt].set_result([torch.ones(8, 2, 1, 2)])

    def fail(self, attempt: int) -> None:
        self.reader.futures[attempt].set_exception(OSError("gone"))


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTEFIX_SECRET", "a secret")


def request(name: str, ticket: Ticket | None = None, **settings: Any) -> Any:
    prompt = [5, 6, 7]
    params = SimpleNamespace(repetition_penalty=1.0, max_tokens=50, min_tokens=0)
    found = SimpleNamespace(
        request_id=name, kv_transfer_params=ticket.signed() if ticket else None, prompt_token_ids=prompt,
        _all_token_ids=list(prompt), num_prompt_tokens=3, cache_salt=None, block_hashes=[], max_tokens=50,
        sampling_params=params, skip_reading_prefix_cache=False,
        resumable=False, mm_features=[], prompt_embeds=None, update_block_hashes=lambda: None,
    )  # fmt: skip
    return SimpleNamespace(**(vars(found) | settings))


TICKET = Ticket("p", str(Path("p.safetensors")), 8, "content")


def step(scheduling: PrefixScheduler, workers: list[Worker]) -> None:
    """Carry out one step on all workers, and report."""
    orders = scheduling.take_orders()
    reports = []
    for worker in workers:
        worker.loading.obey(orders, worker.modules)
        reports.append(worker.loading.report())
    scheduling.heed(reports[0].aggregate(reports[1]) if len(reports) > 1 else reports[0])


def test_a_request_waits_for_all_workers() -> None:
    workers = [Worker(), Worker()]
    scheduling = PrefixScheduler(num_workers=2, room=ROOM, max_resident_prefixes=1)
    one = request("one", TICKET)
    scheduling.admit(one)
    assert (one.num_prompt_tokens, one._all_token_ids, one.max_tokens) == (11, [0] * 8 + [5, 6, 7], 50)
    assert scheduling.num_matched(one, 0) == (None, False)
    step(scheduling, workers)
    workers[0].succeed(0)
    step(scheduling, workers)
    assert scheduling.num_matched(one, 0) == (None, False)
    workers[1].succeed(0)
    step(scheduling, workers)
    assert scheduling.num_matched(one, 0) == (8, False)
    scheduling.allocated(one, ([3, 9],), 8)
    step(scheduling, workers)
    assert workers[0].written == workers[1].written == [[12, 13, 14, 15, 36, 37, 38, 39]]
    assert scheduling.num_matched(one, 4) == (4, False)
    assert scheduling.num_matched(one, 8) == (0, False)


def one_worker_has_failed() -> tuple[PrefixScheduler, list[Worker]]:
    """Return two workers, of which the first could not read a file that the second is still reading."""
    workers = [Worker(), Worker()]
    scheduling = PrefixScheduler(num_workers=2, room=ROOM, max_resident_prefixes=4)
    scheduling.admit(request("one", TICKET))
    scheduling.num_matched(request("one", TICKET), 0)
    step(scheduling, workers)
    workers[0].fail(0)
    step(scheduling, workers)
    return scheduling, workers


def test_a_failure_that_comes_late_does_not_touch_the_next_attempt() -> None:
    scheduling, workers = one_worker_has_failed()
    assert scheduling.num_matched(request("one"), 0) == (1, True)
    two = request("two", TICKET)
    scheduling.admit(two)
    assert scheduling.num_matched(two, 0) == (None, False)
    step(scheduling, workers)
    workers[0].succeed(1)
    step(scheduling, workers)
    workers[1].fail(0)
    workers[1].succeed(1)
    step(scheduling, workers)
    assert scheduling.num_matched(two, 0) == (8, False)
    scheduling.allocated(two, ([1, 2],), 8)
    step(scheduling, workers)
    assert len(workers[0].written) == len(workers[1].written) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in turn", "the other way round"])
@pytest.mark.parametrize("is_there", [True, False], ids=["one is there", "both are gone"])
def test_a_file_of_the_same_content_is_read_where_another_is_gone(order: tuple[int, int], is_there: bool) -> None:
    worker = Worker()
    scheduling = PrefixScheduler(num_workers=1, room=ROOM, max_resident_prefixes=1)
    tickets = [Ticket("a", "gone.safetensors", 8, "content"), Ticket("b", "there.safetensors", 8, "content")]
    requests = [request(ticket.name, ticket) for ticket in tickets]
    for waiting in requests:
        scheduling.admit(waiting)
    scheduling.num_matched(requests[0], 0)
    found: dict[int, tuple[int | None, bool]] = {}
    for _ in range(8):
        step(scheduling, [worker])
        for number, reading in enumerate(worker.loading._reading, len(worker.reader.futures) - 1):  # type: ignore[attr-defined]
            is_good = is_there and reading.ticket.name == "b"
            worker.succeed(number) if is_good else worker.fail(number)
        step(scheduling, [worker])
        for number in order:
            if number not in found and (matched := scheduling.num_matched(requests[number], 0))[0] is not None:
                found[number] = matched
    assert found[1] == ((8, False) if is_there else (1, True))
    assert found[0] in ((1, True), found[1])  # or it is answered by what the other file holds


def test_requests_fail_while_others_for_the_same_file_keep_coming() -> None:
    worker = Worker()
    scheduling = PrefixScheduler(num_workers=1, room=ROOM, max_resident_prefixes=1)
    waiting: list[Any] = []
    for number in range(6):
        waiting.append(request(str(number), TICKET))
        scheduling.admit(waiting[-1])
        waiting = [one for one in waiting if scheduling.num_matched(one, 0) != (1, True)]
        step(scheduling, [worker])
        if worker.loading._reading:
            worker.fail(-1)
        step(scheduling, [worker])
    assert [one.request_id for one in waiting] == ["5"]


def test_who_has_its_prefix_does_not_fail_with_those_who_wait_for_the_file() -> None:
    worker = Worker()
    scheduling = PrefixScheduler(num_workers=1, room=ROOM, max_resident_prefixes=1)
    tickets = {"running": TICKET, "other": Ticket("q", "q.safetensors", 8, "other"), "late": TICKET}
    requests = {name: request(name, ticket) for name, ticket in tickets.items()}
    for attempt, name in enumerate(["running", "other", "late", "running"]):  # at last, it was preempted
        if attempt < len(requests):
            scheduling.admit(requests[name])
        assert scheduling.num_matched(requests[name], 0) == (None, False)
        step(scheduling, [worker])
        worker.succeed(attempt) if attempt < 2 else worker.fail(attempt)
        step(scheduling, [worker])
        assert scheduling.num_matched(requests[name], 0) == ((8, False) if attempt < 2 else (1, True))
        scheduling.allocated(requests[name], ([1, 2],), 8)
        step(scheduling, [worker])


def test_a_success_that_comes_late_leaves_nothing_behind() -> None:
    scheduling, workers = one_worker_has_failed()
    step(scheduling, workers)
    workers[1].succeed(0)
    step(scheduling, workers)
    assert not workers[1].loading._rows
    assert not workers[1].loading._reading


@pytest.mark.parametrize(
    "settings",
    [
        {"kv_transfer_params": {"antefix": {"name": "p"}}},
        {"skip_reading_prefix_cache": True},
        {"resumable": True},
        {"mm_features": [1]},
        {"prompt_embeds": torch.zeros(2, 2)},
        {"num_prompt_tokens": ROOM - 8},
        {"sampling_params": SimpleNamespace()},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_cannot_have_a_prefix_fails_and_raises_nothing(settings: dict[str, Any]) -> None:
    scheduling = PrefixScheduler(num_workers=1, room=ROOM, max_resident_prefixes=1)
    refused = request("refused", TICKET, **settings)
    scheduling.admit(refused)
    assert scheduling.num_matched(refused, 0) == (1, True)
    assert refused.skip_reading_prefix_cache is False
    scheduling.allocated(refused, ([1],), 1)
    assert scheduling.take_orders().fail == ["refused"]
    scheduling.finish(refused)
    assert scheduling.num_matched(refused, 0) == (0, False)


def test_an_answer_ends_where_the_positions_do() -> None:
    scheduling = PrefixScheduler(num_workers=1, room=20, max_resident_prefixes=1)
    one = request("one", TICKET)
    one.sampling_params.min_tokens = 12
    scheduling.admit(one)
    assert (one.max_tokens, one.sampling_params.max_tokens, one.sampling_params.min_tokens) == (9, 9, 9)


def test_a_repetition_penalty_sees_no_token_that_the_user_did_not_write() -> None:
    one = request("one", TICKET, sampling_params=SimpleNamespace(repetition_penalty=1.3, max_tokens=50, min_tokens=0))
    PrefixScheduler(num_workers=1, room=ROOM, max_resident_prefixes=1).admit(one)
    assert set(one.prompt_token_ids) == {5, 6, 7}
    assert one.num_prompt_tokens == len(one._all_token_ids) == 8 + 3


def test_reports_may_come_a_step_late() -> None:
    """Asynchronous scheduling orders step N + 1 before it hears of step N."""
    worker = Worker()
    scheduling = PrefixScheduler(num_workers=1, room=ROOM, max_resident_prefixes=1)
    tickets = [TICKET, Ticket("q", "q.safetensors", 8, "other content")]
    requests = [request(ticket.name, ticket) for ticket in tickets]
    for waiting in requests:
        scheduling.admit(waiting)
    unheard, placed, num_read = None, [], 0
    for _ in range(20):
        for waiting in [waiting for waiting in requests if waiting.request_id not in placed]:
            matched, is_async = scheduling.num_matched(waiting, 0)
            if matched:
                assert (matched, is_async) == (8, False)
                scheduling.allocated(waiting, ([1, 2],), matched)
                placed.append(waiting.request_id)
        orders = scheduling.take_orders()
        if unheard is not None:
            scheduling.heed(unheard)
        worker.loading.obey(orders, worker.modules)
        for attempt in range(num_read, len(worker.reader.futures)):  # type: ignore[attr-defined]
            worker.succeed(attempt)
            num_read += 1
        unheard = worker.loading.report()
        assert len(worker.loading._rows) <= 1
    assert placed == ["p", "q"]
    assert len(worker.written) == 2
