"""What vLLM calls in each of its processes, by the entry point `vllm.general_plugins`."""

from __future__ import annotations

import os

from antefix.vllm.lifetime import end_with_parent
from antefix.vllm.settings import ROSTER


def register() -> None:
    """Make a server's engine end with the server."""
    if os.environ.get(ROSTER):
        end_with_parent()
