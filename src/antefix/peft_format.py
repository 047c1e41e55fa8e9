"""PEFT's checkpoints of prefix tuning and of cartridges: folders with a JSON file and one safetensors file.

The tensor `prompt_embeddings` has a row for each virtual token, laid out as `peft_layout` says; beside it may stand the
parameters of a head. PEFT saves this, too, where an MLP makes the prefix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from transformers import PreTrainedModel

from antefix.errors import ConfigError, PrefixFormatError
from antefix.peft_heads import modules_to_save
from antefix.peft_layout import PeftLayout, flatten, layout_for, peft_sites
from antefix.prefix import DTYPES, EXPECTED_DTYPES, Prefix, base_fingerprint, own_copy
from antefix.sites import Kind, Site, discover_sites, text_sites
from antefix.storage import are_finite, read_tensors, write_together

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PEFT_TYPES = ("PREFIX_TUNING", "CARTRIDGE")
_FLAT = "prompt_embeddings"
_TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


def read_peft(folder: str | os.PathLike[str], model: PreTrainedModel, sites: Sequence[Site] | None = None) -> Prefix:
    """Read a checkpoint folder of PEFT's prefix tuning or cartridges for a base model; PEFT is not needed.

    `sites` are the model's, found anew where they are not given. A trained head comes along in `Prefix.modules`.
    Raises `PrefixFormatError` for a folder that is no intact checkpoint of these, and `PrefixMismatchError`, saying
    what differs, for one of another base model.
    """
    folder = Path(folder)
    config = read_config(folder)
    layout = PeftLayout.of(config)
    sites = discover_sites(model) if sites is None else sites
    chosen = peft_sites(model, sites)
    layout.check_fits(chosen)
    tensors = _read_tensors(folder)
    flat = tensors.pop(_FLAT, None)
    expected = (layout.num_virtual_tokens, 2 * layout.num_layers * layout.token_dim)
    if flat is None or tuple(flat.shape) != expected or not flat.is_floating_point():
        found = "none" if flat is None else f"{flat.dtype} of shape {tuple(flat.shape)}"
        raise PrefixFormatError(
            f"'{folder / WEIGHTS_NAME}' must hold a floating-point '{_FLAT}' of shape {expected}; it has {found}."
        )
    pairs = layout.deal(flat, chosen)
    name = config.get("base_model_name_or_path") or model.config.name_or_path
    return Prefix(
        sites=chosen,
        keys={path: key for path, (key, _) in pairs.items()},
        values={path: value for path, (_, value) in pairs.items()},
        metadata={
            "base_model": name,
            "base_class": type(model).__name__,
            "fingerprint": base_fingerprint(sites, text_sites(model, sites), chosen),
            "peft": {"peft_type": config["peft_type"], "task_type": config.get("task_type")},
        },
        modules={_module_name(key, config, folder, model): tensor for key, tensor in tensors.items()},
    )


def write_peft(
    prefix: Prefix,
    folder: str | os.PathLike[str],
    model: PreTrainedModel,
    sites: Sequence[Site] | None = None,
    base_model: str | None = None,
    task_type: str | None = None,
) -> None:
    """Write a prefix as a checkpoint folder that `peft.PeftModel.from_pretrained` loads, or nothing at all.

    `base_model` is the name that PEFT shall load the base by, `task_type` one of PEFT's; by default those of the prefix
    and of the model. Raises `ConfigError` for what PEFT cannot express, and `PrefixMismatchError` for a prefix that was
    made for another base model.
    """
    folder = Path(folder)
    sites = discover_sites(model) if sites is None else sites
    prefix.check_fits(sites, text_sites(model, sites))
    chosen = peft_sites(model, sites)
    _check_expressible(prefix, chosen)
    layout = layout_for(prefix, chosen, 2 if model.config.is_encoder_decoder else 1)
    tensors = {_FLAT: own_copy(flatten(prefix, chosen, layout))}
    tensors |= {f"base_model.{name.replace(':', '.')}": own_copy(tensor) for name, tensor in prefix.modules.items()}
    if not are_finite(tensors.values()):
        raise PrefixFormatError(f"the prefix for '{folder}' holds numbers that are not finite, so it was not written.")
    task_type = task_type or _task_type(prefix, model, chosen[0].kind)
    if task_type not in _TASK_TYPES:
        raise ConfigError(f"task_type is {task_type!r}; PEFT has {', '.join(_TASK_TYPES)}.")
    config = {
        "peft_type": PEFT_TYPES[0],
        "task_type": task_type,
        "base_model_name_or_path": base_model or prefix.metadata.get("base_model") or None,
        "inference_mode": True,
        "modules_to_save": modules_to_save(prefix, model, task_type) or None,
        **vars(layout),
    }
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file; PEFT's checkpoints are folders.")
    weights = save(tensors, {"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True)
    write_together({folder / WEIGHTS_NAME: weights, folder / CONFIG_NAME: text.encode()})


def read_config(folder: Path) -> dict[str, Any]:
    """Return what PEFT says of a checkpoint; raises `PrefixFormatError` if it is none of these kinds of prefixes."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise PrefixFormatError(
            f"'{folder}' is no folder of a PEFT checkpoint: it has no {CONFIG_NAME}; of a "
            "folder of antefix train, name the prefix file in it."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PrefixFormatError(f"'{path}' is not intact JSON: {error}.") from error
    if not isinstance(config, dict):
        raise PrefixFormatError(f"'{path}' is damaged: it holds no JSON object.")
    if config.get("peft_type") not in PEFT_TYPES:
        raise PrefixFormatError(
            f"'{folder}' holds PEFT's {config.get('peft_type')!r}; antefix reads {' and '.join(PEFT_TYPES)}."
        )
    for name in ("base_model_name_or_path", "task_type"):
        if not isinstance(config.get(name), str | None):
            raise PrefixFormatError(f"'{path}' is damaged: its {name} is {config[name]!r}, which is no text.")
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file() and (folder / PICKLE_NAME).is_file():
        raise PrefixFormatError(
            f"'{folder}' holds {PICKLE_NAME}, a pickle, which can run any code when it is read; save it anew by PEFT's "
            "save_pretrained, which writes safetensors."
        )
    _, tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise PrefixFormatError(f"'{path}' holds '{name}' as {tensor.dtype}; {EXPECTED_DTYPES}.")
    if not are_finite(tensors.values()):
        raise PrefixFormatError(f"'{path}' holds numbers that are not finite.")
    return tensors


def _module_name(key: str, config: Mapping[str, Any], folder: Path, model: PreTrainedModel) -> str:
    """Return `{module path}:{parameter}` for the name that PEFT gives a tensor of one of its `modules_to_save`."""
    wanted = config.get("modules_to_save")
    ends = tuple(map(str, wanted)) if isinstance(wanted, list) else ()
    parts = key.removeprefix("base_model.").split(".")
    for length in range(1, len(parts)):
        module = ".".join(parts[:length])
        if module.endswith(ends):  # as PEFT reads it: 'norm' is 'model.norm' and 'post_attention_layernorm', too
            return f"{module}:{'.'.join(parts[length:])}"
    if ".".join(parts[:-1]) in _embeddings(model):
        raise PrefixFormatError(
            f"'{folder / WEIGHTS_NAME}' holds '{key}': PEFT saved the base's embeddings, too, as it does where the "
            "vocabulary was changed; save anew by PEFT's save_pretrained with save_embedding_layers=False."
        )
    raise PrefixFormatError(
        f"'{folder / WEIGHTS_NAME}' holds '{key}', which is neither '{_FLAT}' nor of a module in modules_to_save."
    )


def _embeddings(model: PreTrainedModel) -> set[str]:
    """Return the paths of the layers that turn tokens into vectors and back."""
    try:
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
    except NotImplementedError:  # so says a model of sounds or images that it has none
        return set()
    return {path for path, module in model.named_modules() if any(module is layer for layer in layers)}


def _check_expressible(prefix: Prefix, chosen: Sequence[Site]) -> None:
    others = [site for site in prefix.sites if site not in chosen]
    if others:
        kinds = " and ".join(sorted({site.kind for site in others}))
        raise ConfigError(
            f"PEFT has prefixes for the self-attention of a decoder alone, and this one stands at {kinds} attention "
            f"too, such as '{others[0].path}'; train one with sites=('decoder',)."
        )
    missing = [site for site in chosen if site not in prefix.sites]
    if missing:
        raise ConfigError(f"PEFT has prefixes for all layers alone, and this one has none at '{missing[0].path}'.")
    shapes = {(site.num_key_value_heads, site.key_dim, site.value_dim) for site in chosen}
    if len(shapes) > 1 or any(key_dim != value_dim for _, key_dim, value_dim in shapes):
        listed = ", ".join(f"{heads} heads of {key} and {value}" for heads, key, value in sorted(shapes))
        raise ConfigError(f"PEFT has one size for the keys and values of all layers; this prefix has {listed}.")


def _task_type(prefix: Prefix, model: PreTrainedModel, kind: Kind) -> str:
    known = prefix.metadata.get("peft")
    if isinstance(known, Mapping) and known.get("task_type"):
        return str(known["task_type"])
    if "labels" in prefix.metadata:  # it was trained to choose one, and has a head
        return "SEQ_CLS"
    if kind == "encoder" or not model.can_generate():
        raise ConfigError(
            f"{type(model).__name__} writes no text, so PEFT must be told the task: task_type='SEQ_CLS', 'TOKEN_CLS', "
            "'QUESTION_ANS' or 'FEATURE_EXTRACTION'."
        )
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
