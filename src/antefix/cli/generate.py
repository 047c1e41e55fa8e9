"""`antefix generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from transformers import PreTrainedModel, TextStreamer, set_seed

from antefix.errors import ConfigError
from antefix.storage import verify_prefix
from antefix.training.base import attach_writer, load_base, load_tokenizer
from antefix.training.chats import Chats, in_chats
from antefix.training.generation import ends_of, generate_ids
from antefix.training.provenance import Provenance
from antefix.training.room import Room
from antefix.training.rows import is_table, read_rows
from antefix.training.settings import MAX_SEED
from antefix.training.templates import Template, unescape
from antefix.training.tokens import TextPreprocessor, padding_id

MIN_TEMPERATURE = 0.01
"""Below this, logits divided by the temperature leave the range of fp16, and then of fp32."""


def generate(
    model: Annotated[
        str | None,
        typer.Option(help="Base model: a Hub name, a folder, or 'embedded'. [default: the prefix's]"),
    ] = None,
    prefix: Annotated[Path | None, typer.Option(help="Prefix file; without one, the bare base answers.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="The whole prompt; \\n is a line break. No template is added, except for the chat template if the "
            "prefix was trained on conversations."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts: .txt with one per line, taken as they are, or .jsonl/.csv/.parquet for the template or the "
            "conversations that the prefix was trained with."
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Template for the rows of --file, instead of the prefix's.")
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(help="Field that holds a conversation in the rows of --file; --prompt is then a user's message."),
    ] = None,
    answer_tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer for the answers, if it is not the model's. [default: the prefix's]"),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens to write.")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 writes the likeliest token; above 0, it samples from all.")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens with this total probability."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed for sampling.")] = 0,
) -> None:
    """Answer a prompt, or each prompt of a file, and print the answers as they are written."""
    _check_prompts(prompt, file, template, messages)
    if 0 < temperature < MIN_TEMPERATURE:
        raise ConfigError(f"temperature is {temperature}; it must be 0 or at least {MIN_TEMPERATURE}.")
    loaded = verify_prefix(prefix) if prefix is not None else None
    provenance = Provenance.of(loaded) if loaded is not None else Provenance()
    model = _base_model(model, provenance)
    if template is not None:
        template = unescape(template)
    elif messages is None:
        template, messages = (provenance.wording.get(name) for name in ("prompt", "messages"))
    chats = Chats(str(messages), load_tokenizer(model, "model")) if messages else None
    prompts = _read_prompts(prompt, file, template, chats)
    base, preprocessor = load_base(model, answer_tokenizer or _answer_tokenizer(provenance))
    preprocessor = in_chats(preprocessor) if chats is not None else preprocessor
    bank = attach_writer(base)
    if loaded is not None:
        bank.add("prefix", loaded)
        bank.activate("prefix")
    try:
        rows = [preprocessor.prompt_ids(text) for text in prompts]
    except TypeError as error:
        raise ConfigError("a prompt holds half a surrogate pair, which is no text.") from error
    if [] in rows:
        raise ConfigError("a prompt has no tokens, and this base's tokenizer opens none; write something.")
    room = Room(bank, "prefix" if loaded is not None else None)
    for ids in rows:
        room.check(len(ids), max_new_tokens, "the prompt or set a lower --max-new-tokens")
    set_seed(seed)
    for ids in rows:
        _stream(base, preprocessor, ids, max_new_tokens, temperature, top_p)


def _check_prompts(prompt: str | None, file: Path | None, template: str | None, messages: str | None) -> None:
    if (prompt is None) == (file is None):
        raise ConfigError("give either --prompt or --file.")
    if template is not None and messages:
        raise ConfigError("--messages is given, so the chat template writes the prompts; leave --template out.")
    if template is not None and (file is None or not is_table(file)):
        raise ConfigError(
            "--template fills the rows of a .jsonl, .csv or .parquet; other prompts are taken as they are."
        )


def _base_model(model: str | None, provenance: Provenance) -> str:
    """Return the base model that is given or that the prefix tells.

    Raises `ConfigError` if there is none, or if the prefix was trained to choose labels.
    """
    model = model or provenance.base_model
    if model is None:
        raise ConfigError("there is no prefix that tells its base model; give --model.")
    if provenance.training.get("task") == "classification":
        raise ConfigError(
            "the prefix was trained to choose a label, and generate writes text; score it by antefix evaluate, or load "
            "it into a bank of AutoModelForSequenceClassification."
        )
    return model


def _answer_tokenizer(provenance: Provenance) -> str | None:
    told = provenance.training.get("answer_tokenizer")
    return told if isinstance(told, str) else None


def _read_prompts(prompt: str | None, file: Path | None, template: object, chats: Chats | None) -> list[str]:
    if file is not None and is_table(file):
        rows = read_rows(file)
        if chats is not None:
            return [chats.prompt(row) for row in rows]
        if not isinstance(template, str):
            raise ConfigError(f"the rows of '{file}' need --template or --messages to become prompts.")
        parsed = Template(template)
        return [parsed.fill(row, where) for where, row in rows]
    if file is not None and file.suffix != ".txt":
        raise ConfigError(f"--file is '{file}'; it must be prompts line by line in .txt, or .jsonl, .csv or .parquet.")
    prompts = [unescape(prompt)] if prompt is not None else _read_lines(cast(Path, file))
    return prompts if chats is None else [chats.ask(text) for text in prompts]


def _read_lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file '{file}' cannot be read: {error}.") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"the file '{file}' holds no prompts.")
    return prompts


def _stream(
    model: PreTrainedModel,
    preprocessor: TextPreprocessor,
    ids: list[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> None:
    input_ids = torch.tensor([ids], device=model.device)
    generate_ids(
        model,
        ends_of(model) | preprocessor.ends,
        temperature,
        top_p,
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_id(preprocessor.answer_tokenizer),
        streamer=TextStreamer(
            preprocessor.answer_tokenizer,
            skip_prompt=True,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        ),
    )
