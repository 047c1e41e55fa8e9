"""Prefixes on vLLM: `Prefixes` and `engine_args` for an engine of your own, `antefix serve` for a server."""

from antefix.vllm.prefixes import Prefixes
from antefix.vllm.settings import engine_args

__all__ = ["Prefixes", "engine_args"]
