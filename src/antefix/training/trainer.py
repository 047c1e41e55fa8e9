"""`PrefixTrainer`: Transformers' Trainer, whose checkpoints hold what is trained and not the base model."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils.import_utils import is_peft_available

from antefix.bank import PrefixBank
from antefix.errors import ConfigError, DivergedError, PrefixFormatError
from antefix.sharding import whole
from antefix.storage import save_prefix, write_atomically
from antefix.training.bypass import calling_output_heads
from antefix.training.card import Subject, model_card
from antefix.training.checkpoint import Trained
from antefix.training.quantized import in_their_dtypes, trainable_although_quantized
from antefix.training.reference import BareBase

FILE_NAME = "prefix.safetensors"


class PrefixTrainer(Trainer):
    """Train one prefix of a bank, and with it the adapters of a `PeftModel` that are trainable.

    `save_model` writes `prefix.safetensors`, and a LoRA adapter beside it if the model is a `PeftModel`. Checkpoints
    also hold the tensors that are trained, optimiser, schedule and random state, so training resumes from them.
    It is a mixin as well: `class PrefixDPOTrainer(PrefixTrainer, DPOTrainer)` saves prefixes, and takes the model
    without its prefix as the reference. `head_learning_rate` is that of modules trained beside the prefix, such as a
    classifier's head, which needs a far lower one; without it they train at the prefix's. `trainer_arguments` are those
    of the trainer, whose `model` is the bank's by default. Raises `ConfigError` if the prefix cannot be trained, if the
    model is not the bank's, if something is trained that would not be saved, and if the base is needed as the reference
    but is trained itself.
    """

    def __init__(
        self, bank: PrefixBank, name: str, head_learning_rate: float | None = None, **trainer_arguments: Any
    ) -> None:
        if trainer_arguments.get("model_init") is not None:
            raise ConfigError("model_init makes a model anew, but a prefix trains on that of its bank; leave it out.")
        if not isinstance(bank, PrefixBank):
            raise ConfigError(
                f"PrefixTrainer takes a bank and the name of a prefix first, not a {type(bank).__name__}; give it "
                "antefix.attach(model), and the rest by name."
            )
        if head_learning_rate is not None and (trainer_arguments.get("optimizers") or (None,))[0] is not None:
            raise ConfigError(
                "head_learning_rate is for an optimiser that Trainer makes; put a group of its own into yours."
            )
        _refuse_other_writers(trainer_arguments.get("args"))
        bank.activate(name)
        self.bank = bank
        self.prefix_name = name
        self.head_learning_rate = head_learning_rate
        self._calls_heads = False
        self._train_only_this()
        self._subject = Subject.of(bank.prefix(name))
        trainer_arguments.setdefault("model", bank.outer_model)
        if self._takes_reference and trainer_arguments.get("ref_model") is None:
            trainer_arguments["ref_model"] = BareBase(bank)
        with trainable_although_quantized(trainer_arguments["model"]), in_their_dtypes(bank.modules(name)):
            super().__init__(**trainer_arguments)
        if self._made_reference:
            self.ref_model = BareBase(bank)
        self._check_arguments()
        self._check_trained()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Make the optimiser as `Trainer` does, and set heads apart in groups with their own learning rate."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.head_learning_rate is not None:
            heads = self.bank.heads(self.prefix_name).values()
            head = [p for module in heads for p in module.parameters()]
            _set_apart(optimizer, head, self.head_learning_rate)
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer.train` does, with this trainer's prefix in use."""
        self._train_only_this()  # again: another trainer of this bank, or LoRA layers that TRL put in, froze it
        with self.bank.use(self.prefix_name):
            return super().train(*args, **kwargs)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the trainer does; raises `ConfigError` if it bypasses a trained output layer."""
        if self._calls_heads:
            return super().compute_loss(*args, **kwargs)
        with calling_output_heads(self.bank.model, self.bank.heads(self.prefix_name)):
            loss = super().compute_loss(*args, **kwargs)
        self._calls_heads = True  # watch once only: a model compiled meanwhile keeps the hooks
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `Trainer.evaluate` does, with this trainer's prefix in use."""
        with self.bank.use(self.prefix_name):
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Predict as `Trainer.predict` does, with this trainer's prefix in use."""
        with self.bank.use(self.prefix_name):
            return super().predict(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the prefix; every process must call this, as each may hold a shard.

        Raises `DivergedError` if the prefix holds NaN or infinite numbers.
        """
        folder = Path(output_dir or self.args.output_dir or ".")
        prefix = self.bank.prefix(self.prefix_name)
        model: Any = self._whole_model
        sharded = _gathered(model) if _is_peft_model(model) and self.is_fsdp_enabled else None
        if self.args.should_save:
            try:
                save_prefix(prefix, folder / FILE_NAME)
            except PrefixFormatError as error:
                raise DivergedError(str(error)) from error
            if _is_peft_model(model):
                model.save_pretrained(folder, state_dict=sharded)
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
            _is_peft_model(self._whole_model),
            tags=["antefix", "prefix-tuning", *_listed(tags)],
            license=license,
            language=language,
        )
        write_atomically(Path(self.args.output_dir or ".") / "README.md", card.encode())

    @property
    def _whole_model(self) -> nn.Module:
        return cast(nn.Module, self.accelerator.unwrap_model(self.model))

    @property
    def _trained(self) -> Trained:
        return Trained(self._whole_model, self.bank.modules(self.prefix_name), self._subject.as_dict())

    @property
    def _takes_reference(self) -> bool:
        return "ref_model" in inspect.signature(super().__init__).parameters

    @property
    def _made_reference(self) -> bool:
        """Whether the trainer chose its own reference, which is wrong here.

        It loads the base anew by its name, though this one may differ from that; or, for a PeftModel, it takes the
        model with the adapters off, which leaves the prefix on.
        """
        found = getattr(self, "ref_model", self)
        has_adapters_off = found is None and _is_peft_model(self._whole_model)
        is_wanted = bool(getattr(self.args, "beta", 0.0))
        return is_wanted and (has_adapters_off or (found is not self and not self._takes_reference))

    def _train_only_this(self) -> None:
        for name in self.bank.names:
            if self.bank.modules(name):
                self.bank.requires_grad_(name, False)
        self.bank.requires_grad_(self.prefix_name)

    def _check_arguments(self) -> None:
        """Refuse ways of training that do not work with a prefix."""
        if self.args.n_gpu > 1:
            raise ConfigError(
                f"one process has {self.args.n_gpu} GPUs, and Trainer would copy the model to each, where no prefix "
                "follows; start a process for each by torchrun, or show this one a single GPU by CUDA_VISIBLE_DEVICES."
            )
        if self.is_deepspeed_enabled and self.args.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end does not work under DeepSpeed, which keeps parameters apart; bank.load the "
                "prefix of the best checkpoint instead."
            )

    def _check_trained(self) -> None:
        """Refuse parameters that would be trained but not saved, or not trained at all."""
        model = self._whole_model
        if not any(module is self.bank.model for module in model.modules()):
            raise ConfigError(f"the {type(model).__name__} that is to be trained is not the model of this bank.")
        own = {id(p) for module in self.bank.modules(self.prefix_name) for p in module.parameters()}
        if own.isdisjoint(map(id, model.parameters())):
            raise ConfigError(
                f"the prefix '{self.prefix_name}' is made by a module of your own, which is no part of the model, so "
                "no trainer finds its parameters; train it in a loop of your own."
            )
        others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
        if others and not _is_peft_model(model):
            way_out = "freeze it, or name its module in trainable_modules, whose trained copy is saved with the prefix"
            if hasattr(self.bank.model, "peft_config"):
                way_out = "if it is of an adapter, pass the PeftModel as model"
            raise ConfigError(f"'{others[0]}' is trained beside the prefix, but would not be saved; {way_out}.")
        if not isinstance(getattr(self, "ref_model", None), BareBase):
            return
        if others:
            way_out = "pass a ref_model to compare with" if self._takes_reference else "set beta to 0 to have none"
            raise ConfigError(
                f"'{others[0]}' is trained beside the prefix, so the model without the prefix does not stay as it is; "
                f"{way_out}."
            )
        if getattr(self.args, "sync_ref_model", False):
            raise ConfigError("sync_ref_model needs a reference with weights of its own; pass a ref_model.")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        tensors = self._trained.gathered()
        if self.args.should_save:
            self._trained.save(tensors, folder)
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        # Trainer's own method would write the shards of the base model, too.
        plugin: Any = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(cast(Any, self.lr_scheduler).state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Trainer uploads the output folder, and copies into it only files whose names it knows.
        if self.is_world_process_zero():
            shutil.copy(Path(checkpoint_folder) / FILE_NAME, Path(self.args.output_dir or ".") / FILE_NAME)
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._trained.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        self._trained.load(Path(str(self.state.best_model_checkpoint)))


def _is_peft_model(model: nn.Module) -> bool:
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def _gathered(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a PeftModel that may belong to its adapters, gathered from shards."""
    names = [f".{adapter}." for adapter in cast(Any, model).peft_config]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return {
        name: whole(tensor)
        for name, tensor in model.state_dict().items()
        if name in trained or any(part in f"{name}." for part in names)
    }


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()


def _refuse_other_writers(args: Any) -> None:
    for name in ("use_vllm", "use_transformers_continuous_batching"):
        if getattr(args, name, False):
            raise ConfigError(
                f"{name} generates in an engine of its own, which no prefix reaches; leave it out, and completions are "
                "generated with the prefix."
            )


def _set_apart(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], learning_rate: float) -> None:
    """Move parameters to groups with this learning rate, in an optimiser that has not stepped yet."""
    moved = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        apart = [parameter for parameter in group["params"] if id(parameter) in moved]
        if apart:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in moved]
            optimizer.add_param_group({**group, "params": apart, "lr": learning_rate})
