"""`AntefixConnector`: where vLLM's scheduler and workers meet antefix, by the interface of its KV connectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorRole,
    KVConnectorTransferResults,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from antefix.errors import ConfigError
from antefix.vllm.geometry import cached_layers, check_engine, room_with_prefix
from antefix.vllm.loading import PrefixLoader
from antefix.vllm.orders import Orders, Reports
from antefix.vllm.scheduling import PrefixScheduler
from antefix.vllm.settings import MAX_RESIDENT_PREFIXES, USUAL_RESIDENT_PREFIXES

if TYPE_CHECKING:
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks


class AntefixConnector(KVConnectorBase_V1, SupportsHMA):
    """A scheduler's side or a worker's side, as vLLM asks for one; raises `UnsupportedModelError` before the start."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        check_engine(vllm_config, kv_cache_config)
        if self._kv_transfer_config.kv_load_failure_policy != "fail":
            raise ConfigError("kv_load_failure_policy must be 'fail': vLLM cannot compute a prefix from text.")
        parallel = vllm_config.parallel_config
        if role is KVConnectorRole.SCHEDULER:
            self._scheduler = PrefixScheduler(
                num_workers=parallel.world_size,
                room=room_with_prefix(kv_cache_config, vllm_config.model_config.max_model_len),
                max_resident_prefixes=self._kv_transfer_config.get_from_extra_config(
                    MAX_RESIDENT_PREFIXES, USUAL_RESIDENT_PREFIXES
                ),
            )
        else:
            self._modules = vllm_config.compilation_config.static_forward_context
            self._loader = PrefixLoader(
                cached_layers(kv_cache_config),
                vllm_config.model_config.dtype,
                get_tensor_model_parallel_rank(),
                parallel.tensor_parallel_size,
            )

    # The scheduler's side.

    def on_new_request(self, request: Request) -> None:
        """Make room for the prefix of a new request."""
        self._scheduler.admit(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Return how many tokens of the prefix must still be placed."""
        return self._scheduler.num_matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Order what a request was given blocks for."""
        self._scheduler.allocated(request, blocks.get_block_ids(), num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Orders:
        """Return this step's orders to the workers."""
        return self._scheduler.take_orders()

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """Heed what the workers report."""
        if isinstance(connector_output.kv_connector_worker_meta, Reports):
            self._scheduler.heed(connector_output.kv_connector_worker_meta)

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request; its blocks are free at once."""
        self._scheduler.finish(request)
        return False, None

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget a request of a model with several groups of layers."""
        return self.request_finished(request, [])

    # The worker's side.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Check, before the first request, that prefixes can be written into these caches."""
        self._loader.check(self._modules)

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Carry out this step's orders, before the forward where it depends on them."""
        self._loader.obey(cast(Orders, self._get_connector_metadata()), self._modules)

    def build_connector_worker_meta(self) -> Reports | None:
        """Return what became of the files to read."""
        return self._loader.report() or None

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Return the requests that cannot have their prefix."""
        failing = self._loader.take_failing()
        return KVConnectorTransferResults(finished_recving=failing, failed_recving=failing)

    def shutdown(self) -> None:
        """Stop reading files."""
        if self.role is KVConnectorRole.WORKER:
            self._loader.close()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Return at once: everything was placed before the forward."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Save nothing: prefixes are only read."""

    def wait_for_save(self) -> None:
        """Return at once: nothing is saved."""
