"""`PrefixTrainer`: Transformers' Trainer, whose checkpoints hold what is trained and not the base model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from antefix.bank import PrefixBank
from antefix.sharding import whole
from antefix.storage import save_prefix, write_atomically
from antefix.training.card import Subject, model_card
from antefix.training.checkpoint import load_trained, save_trained, trained_tensors
from antefix.training.reference import reference_of

FILE_NAME = "prefix.safetensors"


class PrefixTrainer(Trainer):
    """Train one prefix of a bank, made active and trainable, with everything else of the model that is trainable.

    `save_model` writes `prefix.safetensors`, and a LoRA adapter beside it where the model is a `PeftModel`. Checkpoints
    hold that, the tensors that are trained, optimiser, schedule and random state, so training resumes from them.
    It is a mixin as well: `class PrefixDPOTrainer(PrefixTrainer, DPOTrainer)` saves prefixes, and takes the model
    without its prefix for the reference. `trainer_arguments` are those of the trainer, whose `model` is the bank's.
    Raises `ConfigError` for a prefix that cannot train, and where no reference is given and the base is none.
    """

    def __init__(self, bank: PrefixBank, name: str, **trainer_arguments: Any) -> None:
        bank.activate(name)
        bank.requires_grad_(name)
        self.bank = bank
        self.prefix_name = name
        self._subject = Subject.of(bank.prefix(name))
        trainer_arguments.setdefault("model", bank.model)
        if "ref_model" in inspect.signature(super().__init__).parameters and "ref_model" not in trainer_arguments:
            trainer_arguments["ref_model"] = reference_of(bank)
        with _trainable_although_quantized(trainer_arguments["model"]):
            super().__init__(**trainer_arguments)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the prefix; on every process, because each may hold a shard of it."""
        folder = Path(output_dir or self.args.output_dir or ".")
        prefix = self.bank.prefix(self.prefix_name)
        model: Any = self.accelerator.unwrap_model(self.model)
        adapters = _adapter_tensors(model) if hasattr(model, "peft_config") else None
        if self.args.should_save:
            save_prefix(prefix, folder / FILE_NAME)
            if adapters is not None:
                model.save_pretrained(folder, state_dict=adapters)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # type: ignore[override]  # TRL's and Transformers' differ in order
        self,
        *,
        model_name: str | None = None,
        dataset: str | Sequence[str] | None = None,
        dataset_name: str | None = None,
        tags: str | Sequence[str] | None = None,
        license: str | None = None,
        language: str | None = None,
        **unused: Any,
    ) -> None:
        """Write `README.md`: the base model, the prefix, what it was trained on, how it did and how to load it."""
        if not self.is_world_process_zero():
            return
        card = model_card(
            self._subject,
            self.state,
            self.args,
            model_name,
            [*_listed(dataset), *_listed(dataset_name)],
            tags=["antefix", "prefix-tuning", *_listed(tags)],
            license=license,
            language=language,
        )
        write_atomically(Path(self.args.output_dir or ".") / "README.md", card.encode())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        tensors = trained_tensors(self.bank.model)
        if self.args.should_save:
            save_trained(tensors, folder)
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        # Trainer would write the shards of the base model, too.
        plugin: Any = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trained(self.bank.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_trained(self.bank.model, Path(str(self.state.best_model_checkpoint)))


def _adapter_tensors(model: Any) -> dict[str, Tensor]:
    """Return the whole tensors of a PeftModel's adapters, which have an adapter's name in their own."""
    names = [f".{adapter}." for adapter in model.peft_config]
    return {
        name: whole(tensor) for name, tensor in model.state_dict().items() if any(part in f"{name}." for part in names)
    }


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()


@contextmanager
def _trainable_although_quantized(model: Any) -> Iterator[None]:
    """Let Trainer take a quantised base: it asks whether adapters of PEFT are there to be trained, and a prefix is."""
    loaded = getattr(model, "_hf_peft_config_loaded", None)
    if loaded is None or not getattr(model, "is_quantized", False):
        yield
        return
    model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        model._hf_peft_config_loaded = loaded
