"""Reports as JSON that any reader takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def as_json(report: Mapping[str, Any]) -> bytes:
    """Return plain data as JSON, which knows neither NaN nor infinity: such numbers become null."""
    text = json.dumps(_finite(report), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="backslashreplace")  # bytes of a path that are no UTF-8, as JSON escapes them


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
