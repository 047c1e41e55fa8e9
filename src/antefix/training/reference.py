"""`BareBase`: the base model without a prefix, as a model of its own that shares every weight.

Preference training compares the model with a reference that stays as it was. If only a prefix is trained, that
reference is the same model with the prefix off, so no second copy is needed in memory.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from antefix.bank import PrefixBank
from antefix.observation import evaluation_mode
from antefix.trained import MODULE_NAME


class BareBase(nn.Module):
    """Computes what a bank's model computes without a prefix, in evaluation mode; it has no parameters of its own.

    Other attributes, such as its config, are the model's; modules among them are without a prefix, too.
    """

    def __init__(self, bank: PrefixBank, module: nn.Module | None = None) -> None:
        super().__init__()
        # Not by assignment, as nn.Module would register the model and list its parameters a second time.
        self.__dict__.update(bank=bank, module=bank.model if module is None else module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, with no prefix in use."""
        with self.bank.use(None), evaluation_mode(self.module):
            return self.module(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate with the model, with no prefix in use."""
        with self.bank.use(None), evaluation_mode(self.module):
            return cast(Any, self.module).generate(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights of the base model, by which TRL recognises a reference that it has seen before."""
        state = self.module.state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state.items() if MODULE_NAME not in name.split(".")}

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.__dict__["module"], name)
        return BareBase(self.bank, value) if isinstance(value, nn.Module) else value
