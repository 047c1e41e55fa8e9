"""What vLLM calls in each of its processes, by the entry point `vllm.general_plugins`."""

from __future__ import annotations

import os

from antefix.vllm.lifetime import end_with_parent
from antefix.vllm.settings import CONNECTOR, ROSTER


def register() -> None:
    """Make the connector known to vLLM by its name, and a server's engine end with the server."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "antefix.vllm.connector", CONNECTOR)
    if os.environ.get(ROSTER):
        end_with_parent()
