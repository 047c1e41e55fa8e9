"""The model card of a prefix: what it belongs to, what it was trained on, how it did and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import SchedulerType, TrainerState, TrainingArguments
from transformers.models.auto import modeling_auto
from transformers.training_args import OptimizerNames

from antefix.errors import on_one_line
from antefix.prefix import Prefix
from antefix.sites import Site

_TEXT = """---
{data}
---

# {name}

A prefix for {base}: {tokens} virtual tokens at {sites}, trained with
prefix-tuning ([Li & Liang, 2021](https://arxiv.org/abs/2101.00190)). It holds no weights of the base model.

## How to load it

```python
import antefix
from huggingface_hub import hf_hub_download
{import_peft}from transformers import {auto}

model = {auto}.from_pretrained({base_name}{labels})
{adapter}bank = antefix.attach(model)
bank.load(hf_hub_download({repository}, "prefix.safetensors"), name="prefix")
with bank.use("prefix"):
    ...  # any forward or generate
```

## Training

{training}

## Results

{results}
"""


@dataclass(frozen=True)
class Subject:
    """What a card is about: all of a prefix except its tensors, which processes may hold in shards."""

    sites: Sequence[Site]
    num_virtual_tokens: int
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, prefix: Prefix) -> Subject:
        """Describe a prefix."""
        return cls(prefix.sites, prefix.num_virtual_tokens, prefix.metadata)

    def as_dict(self) -> dict[str, Any]:
        """Return the sites of the prefix, and the labels of its head, as plain data."""
        sites = [asdict(site) for site in self.sites]
        fingerprint = self.metadata.get("fingerprint")
        labels = {"labels": self.metadata["labels"]} if "labels" in self.metadata else {}
        return {"sites": sites, "num_virtual_tokens": self.num_virtual_tokens, "fingerprint": fingerprint, **labels}


def model_card(
    subject: Subject,
    state: TrainerState,
    args: TrainingArguments,
    model_name: str | None = None,
    datasets: Sequence[str] = (),
    with_adapter: bool = False,
    **labels: Any,
) -> str:
    """Return the card as Markdown, with the hub's metadata on top, to which `labels` such as `license` are added.

    `with_adapter` says that an adapter of PEFT lies beside the prefix, to be loaded first.
    """
    base = str(subject.metadata.get("base_model") or "")
    base_class = str(subject.metadata.get("base_class"))
    local = not base or Path(base).exists()
    data = ModelCardData(
        library_name="antefix",
        base_model=None if local else base,
        base_model_relation=None if local else "adapter",
        datasets=list(datasets) or None,
        **labels,
    )
    name = on_one_line(model_name or Path(args.output_dir or "prefix").absolute().name)
    repository = json.dumps(args.hub_model_id or f"you/{name}")
    return _TEXT.format(
        data=data.to_yaml(),
        name=name,
        base=f"`{base_class if local else base}`",
        tokens=subject.num_virtual_tokens,
        sites=_kinds(subject.sites),
        auto=_auto_class(base_class),
        base_name=json.dumps("path/to/the/base/model" if local else base),
        labels=f", num_labels={len(told)}" if isinstance(told := subject.metadata.get("labels"), list) else "",
        repository=repository,
        import_peft="from peft import PeftModel\n" if with_adapter else "",
        adapter=f"model = PeftModel.from_pretrained(model, {repository})\n" if with_adapter else "",
        training=_table(_training(state, args, datasets)),
        results=_results(state, args),
    )


def _kinds(sites: Sequence[Site]) -> str:
    layers: dict[str, int] = {}
    for site in sites:
        layers[site.kind] = layers.get(site.kind, 0) + 1
    names = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}
    return " and ".join(f"{number} {names[kind]} layers" for kind, number in layers.items())


def _auto_class(base_class: str) -> str:
    """Return the Auto class that loads a model class, or the class itself if there is none."""
    known = {
        "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSeq2SeqLM": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "AutoModelForSpeechSeq2Seq": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
        "AutoModelForImageTextToText": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    }
    return next((auto for auto, names in known.items() if base_class in names.values()), base_class)


def _training(state: TrainerState, args: TrainingArguments, datasets: Sequence[str]) -> dict[str, Any]:
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "data": ", ".join(datasets) or None,
        "steps": state.global_step,
        "epochs": round(state.epoch, 2) if state.epoch else None,
        "examples a step": batch,
        "learning rate": f"{args.learning_rate:g} ({SchedulerType(args.lr_scheduler_type).value})",
        "optimiser": OptimizerNames(args.optim).value,
        "weight decay": args.weight_decay,
        "seed": args.seed,
    }


def _results(state: TrainerState, args: TrainingArguments) -> str:
    """Return the scores of what was kept: those of the best step if it was loaded, else of the last evaluation."""
    scored = [log for log in state.log_history if any(name.startswith("eval_") for name in log)]
    best = state.best_global_step if args.load_best_model_at_end else None
    step = best if best else max((log["step"] for log in scored), default=None)
    found = {
        name.removeprefix("eval_").replace("_", " "): f"{value:.4g}"
        for log in scored
        if log["step"] == step
        for name, value in log.items()
        if name.startswith("eval_") and _is_score(name, value)
    }
    losses = [log["loss"] for log in state.log_history if "loss" in log]
    if losses:
        found["last loss in training"] = f"{losses[-1]:.4g}"
    return _table(found) if found else "It was not evaluated."


def _is_score(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and not name.endswith(("_runtime", "_per_second"))


def _table(rows: dict[str, Any]) -> str:
    lines = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| what | value |", "| --- | --- |", *lines])


def _cell(text: object) -> str:
    return on_one_line(text).replace("|", "\\|")
