"""`antefix walkthrough`: every shape on the way from virtual tokens to attention, by a model's configuration."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from antefix.bank import attach
from antefix.config import PrefixConfig
from antefix.encoder import PrefixEncoder
from antefix.meta import shapes_only
from antefix.sites import KINDS, Site

Rows = list[tuple[str, str]]


def walkthrough(
    model: Annotated[str, typer.Option(help="Configuration: a Hub name, a folder, a config.json, or 'embedded'.")],
    num_virtual_tokens: Annotated[int, typer.Option(min=1, help="Length of the prefix.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in the batch.")] = 8,
    num_tokens: Annotated[int, typer.Option(min=1, help="Real tokens per row.")] = 2,
    encoder_hidden_size: Annotated[int, typer.Option(min=1, help="Width of the MLP.")] = 512,
) -> None:
    """Print the shapes of a prefix, from its parameters to attention; no weights are created or read."""
    base = shapes_only(model)
    config = PrefixConfig(num_virtual_tokens, init="zero", encoder_hidden_size=encoder_hidden_size)
    bank = attach(base)
    console = Console()
    kinds = [kind for kind in KINDS if any(site.kind == kind for site in bank.sites)]
    for kind in kinds:
        sites = [site for site in bank.sites if site.kind == kind]
        _print(console, f"{kind}: {len(sites)} sites", encoder_rows(sites, config, batch_size))
    main = [site for site in bank.sites if site.kind == ("decoder" if "decoder" in kinds else "encoder")]
    submodules = 2 if "cross" in kinds else 1
    shapes = {(site.num_key_value_heads, site.key_dim, site.value_dim) for site in main}
    if len(shapes) == 1 and main[0].key_dim == main[0].value_dim:  # else one view of a row cannot hold both
        _print(
            console, "the same as a cache holds it (PEFT)", cache_rows(main, num_virtual_tokens, batch_size, submodules)
        )
    bank.add("walkthrough", config)
    _print(console, "one forward", attention_rows(base, batch_size, num_tokens))


def encoder_rows(sites: list[Site], config: PrefixConfig, batch_size: int) -> Rows:
    """Return name and shape of what a `PrefixEncoder` holds and makes, without and with the MLP."""
    tokens = torch.arange(config.num_virtual_tokens).expand(batch_size, -1)
    with torch.device("meta"):
        flat = PrefixEncoder(sites, config)
        mlp = PrefixEncoder(sites, PrefixConfig(**{**vars(config), "reparameterization": "mlp"}))
    made = flat.keys_and_values()
    key, value = made[sites[0].path]
    return [
        ("embedding", _shape(flat.embedding.weight)),
        ("with the MLP: embedding", _shape(mlp.embedding.weight)),
        *((f"with the MLP: {name}", _shape(tensor)) for name, tensor in mlp.transform.named_parameters()),
        ("virtual tokens, were they repeated for each row", _shape(tokens)),
        ("output for those", _shape(flat(tokens.to("meta")))),
        ("output as antefix asks for it: once, for all rows", _shape(flat())),
        ("key of the first site", _shape(key)),
        ("value of the first site", _shape(value)),
    ]


def cache_rows(sites: list[Site], num_virtual_tokens: int, batch_size: int, submodules: int) -> Rows:
    """Return the shapes that the same numbers take on their way into a key/value cache."""
    site = sites[0]
    flat = torch.empty(batch_size, num_virtual_tokens, sum(s.width for s in sites), device="meta")
    view = flat.view(batch_size, num_virtual_tokens, len(sites) * 2, site.num_key_value_heads, site.key_dim)
    both = torch.cat([view] * submodules, dim=2)
    layers = both.permute(2, 0, 3, 1, 4).split(submodules * 2)
    rows = [("output", _shape(flat)), ("view", _shape(view))]
    if submodules == 2:
        rows.append(("with both submodules", _shape(both)))
    return [*rows, (f"{len(layers)} layers of", _shape(layers[0]))]


def attention_rows(model: PreTrainedModel, batch_size: int, num_tokens: int) -> Rows:
    """Run one forward with the active prefix and return the shapes of its attention."""
    inputs = {"input_ids": torch.zeros(batch_size, num_tokens, dtype=torch.long, device="meta")}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    output: Any = model(**inputs, output_attentions=True, output_hidden_states=True)
    names = {
        "encoder_attentions": "encoder attention over prefix and sequence",
        "decoder_attentions": "decoder attention over prefix and sequence",
        "cross_attentions": "cross-attention over prefix and encoder output",
        "attentions": "attention over prefix and sequence",
        "decoder_hidden_states": "decoder output",
        "hidden_states": "output",
    }
    found = [(text, output.get(name)) for name, text in names.items()]
    return [(text, _shape(tensors[-1])) for text, tensors in found if tensors]


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _print(console: Console, title: str, rows: Rows) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, shape in rows:
        table.add_row(name, shape)
    console.print(table)
