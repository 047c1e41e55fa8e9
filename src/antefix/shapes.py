"""Array annotations: those of `jaxtyping` where it is installed, plain placeholders where it is not.

The tests install `jaxtyping` and `beartype` and check every annotated shape at run time; users need neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class Float:
            """Stand for a floating-point tensor in an annotation."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Int = Float

__all__ = ["Bool", "Float", "Int"]
