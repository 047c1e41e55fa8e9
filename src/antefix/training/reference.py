"""`BareBase`: the base model without a prefix, as a model of its own that shares every weight.

Preference training compares the model with a reference that stays as it was. Where only a prefix is trained, that
reference is the same model with the prefix off, so a second copy in memory is one too many.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from antefix.bank import MODULE_NAME, PrefixBank
from antefix.errors import ConfigError


class BareBase(nn.Module):
    """Compute what the model of a bank computes without a prefix; it has no parameters and no modules of its own.

    What it is asked beyond a forward, such as its config or its output embeddings, the model answers.
    """

    def __init__(self, bank: PrefixBank, module: nn.Module | None = None) -> None:
        super().__init__()
        # Past nn.Module, which would register the model and list its parameters a second time.
        self.__dict__.update(bank=bank, module=bank.model if module is None else module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, with no prefix in use."""
        with self.bank.use(None):
            return self.module(*args, **kwargs)

    @property
    def base_model(self) -> nn.Module:
        """The model beneath the head, without a prefix as well."""
        return BareBase(self.bank, self.module.base_model)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights of the base model, by which TRL recognises a reference that it has met before."""
        state = self.module.state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in state.items() if MODULE_NAME not in name.split(".")}

    def __getattr__(self, name: str) -> Any:
        return getattr(cast(nn.Module, self.__dict__["module"]), name)


def reference_of(bank: PrefixBank) -> BareBase:
    """Return the model that training leaves as it is; raises `ConfigError` where it trains more than prefixes."""
    trained = [name for name, parameter in bank.model.named_parameters() if parameter.requires_grad]
    others = [name for name in trained if MODULE_NAME not in name.split(".")]
    if others:
        raise ConfigError(
            f"'{others[0]}' is trained beside the prefix, so the model without the prefix does not stay as it is; "
            "pass a ref_model to compare with."
        )
    return BareBase(bank)
