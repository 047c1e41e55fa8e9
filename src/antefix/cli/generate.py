"""`antefix generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel, TextStreamer, set_seed

from antefix.bank import PrefixBank, attach
from antefix.errors import ConfigError, ContextLengthError
from antefix.storage import load_prefix
from antefix.training.data import ExampleTokenizer, Template, is_table, read_rows, unescape
from antefix.training.evaluation import generate_ids, padding_id
from antefix.training.run import load_base


def generate(
    model: Annotated[str, typer.Option(help="Base model: a hub name, a folder, or 'embedded'.")],
    prefix: Annotated[Path | None, typer.Option(help="Prefix file; without one, the bare base answers.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt, as it is; \\n is a line break.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: .txt with one a line, or .jsonl/.csv for the template the prefix was trained with."
        ),
    ] = None,
    template: Annotated[str | None, typer.Option(help="Another template for the rows of --file.")] = None,
    answer_tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer of the answers, where it is not the model's.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 writes the likeliest token; above, it samples.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Answer a prompt, or each prompt of a file, and write the answers as they come."""
    if (prompt is None) == (file is None):
        raise ConfigError("give either --prompt or --file.")
    loaded = load_prefix(prefix) if prefix is not None else None
    trained_with = loaded.metadata.get("training", {}).get("prompt") if loaded is not None else None
    prompts = (
        [unescape(prompt)]
        if prompt is not None
        else _read_prompts(file, unescape(template) if template else trained_with)
    )
    base, encoder = load_base(model, answer_tokenizer)
    bank = attach(base)
    if loaded is not None:
        bank.add("prefix", loaded)
        bank.activate("prefix")
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    rows = [encoder.prompt_ids(text) for text in prompts]
    for ids in rows:
        _check_context(base, bank, len(ids), max_new_tokens)
    set_seed(seed)
    for ids in rows:
        _stream(base, encoder, ids, max_new_tokens, sampling)


def _read_prompts(file: Path | None, template: str | None) -> list[str]:
    assert file is not None
    if not is_table(file):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file '{file}' cannot be read: {error}.") from error
        prompts = [unescape(line) for line in lines if line.strip()]
        if not prompts:
            raise ConfigError(f"the file '{file}' holds no prompts.")
        return prompts
    if template is None:
        raise ConfigError(f"the rows of '{file}' need --template to become prompts.")
    parsed = Template(template)
    return [parsed.fill(row, where) for where, row in read_rows(file)]


def _check_context(model: PreTrainedModel, bank: PrefixBank, prompt_tokens: int, max_new_tokens: int) -> None:
    """Refuse, before anything is written, what passes the positions the base model was made for."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    virtual = sum(bank.prefix(name).num_virtual_tokens for name in bank.names)
    # An encoder-decoder reads the prompt in one stack and writes the answer in the other.
    real = max(prompt_tokens, max_new_tokens) if model.config.is_encoder_decoder else prompt_tokens + max_new_tokens
    if virtual + real > limit:
        raise ContextLengthError(
            f"the prefix ({virtual} tokens), the prompt ({prompt_tokens}) and the answer (up to {max_new_tokens}) need "
            f"more than the {limit} positions of this model; shorten the prompt or set a lower --max-new-tokens."
        )


def _stream(
    model: PreTrainedModel, encoder: ExampleTokenizer, ids: list[int], max_new_tokens: int, sampling: dict[str, Any]
) -> None:
    input_ids = torch.tensor([ids], device=model.device)
    generate_ids(
        model,
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        pad_token_id=padding_id(encoder),
        streamer=TextStreamer(encoder.answer_tokenizer, skip_prompt=True, skip_special_tokens=True),
        **sampling,
    )
