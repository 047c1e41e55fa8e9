"""PEFT's checkpoint folders without PEFT: round trips, what PEFT cannot express, and folders that are damaged."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

import antefix
from antefix.initialize import random_prefix
from antefix.peft_format import read_peft, write_peft
from antefix.peft_layout import PeftLayout
from antefix.prefix import Prefix, geometry_fingerprint
from antefix.sites import Site
from tests.conftest import build_model
from tests.parity.compare import attach
from tests.parity.families import FAMILIES

TOKENS = 4


def at(model: PreTrainedModel, *kinds: str) -> Prefix:
    """Return a random prefix at some kinds of a model's attention."""
    return random_prefix([site for site in antefix.discover_sites(model) if site.kind in kinds], TOKENS)


def replaced(prefix: Prefix, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Prefix:
    keys, values = ({path: change(path, t) for path, t in part.items()} for part in (prefix.keys, prefix.values))
    return Prefix(prefix.sites, keys, values, prefix.metadata, prefix.modules)


def assert_equal(prefix: Prefix, other: Prefix) -> None:
    assert prefix.sites == other.sites
    for ours, theirs in ((prefix.keys, other.keys), (prefix.values, other.values), (prefix.modules, other.modules)):
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype
            assert torch.equal(tensor, theirs[name])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a checkpoint of the small Llama, which has 3 layers with 2 key/value heads of 8."""
    model = build_model("llama")
    write_peft(at(model, "decoder"), tmp_path / "peft", model)
    return tmp_path / "peft"


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_exact(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build_model(name)
    prefix = replaced(at(model, "decoder"), lambda _, tensor: tensor.to(dtype))
    write_peft(prefix, tmp_path / "new" / "peft", model, base_model="some/base")
    loaded = read_peft(tmp_path / "new" / "peft", model)
    assert_equal(loaded, prefix)
    assert loaded.metadata["base_model"] == "some/base"
    bank = antefix.attach(model)
    bank.load(tmp_path / "new" / "peft", "p")
    assert_equal(bank.prefix("p"), prefix)
    assert bank.prefix("p").metadata["fingerprint"] == geometry_fingerprint(bank.sites)


def test_a_row_holds_key_and_value_of_each_layer_in_turn(folder: Path) -> None:
    flat = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
    prefix = read_peft(folder, build_model("llama"))
    path = prefix.sites[1].path
    assert flat.shape == (TOKENS, 3 * 2 * 16)
    assert torch.equal(flat[2, 2 * 16 : 3 * 16], torch.cat([prefix.keys[path][head, 2] for head in range(2)]))
    assert torch.equal(flat[2, 3 * 16 : 4 * 16], torch.cat([prefix.values[path][head, 2] for head in range(2)]))


@pytest.mark.parametrize(
    ("num_layers", "keys"),
    [(1, [0]), (2, [0, 0]), (3, [0, 4, 2]), (4, [0, 4, 0, 4]), (5, [0, 4, 8, 2, 6]), (6, [0, 4, 8, 0, 4, 8])],
)
def test_an_encoder_decoder_is_dealt_out_two_by_two(num_layers: int, keys: list[int]) -> None:
    """The row behind itself, cut into groups of four: key, value, and two that are never used."""
    row = list(range(2 * num_layers)) * 2
    groups = [row[start : start + 4] for start in range(0, len(row), 4)]
    assert [group[0] for group in groups] == keys
    layout = PeftLayout(TOKENS, num_layers, 1, 1, num_transformer_submodules=2)
    assert [layout.key_number(layer) for layer in range(num_layers)] == keys


def test_a_layer_more_keeps_layers_of_an_encoder_decoder_apart(tmp_path: Path) -> None:
    model = build_model("t5")
    prefix = at(model, "decoder")
    first = prefix.sites[0].path
    equal = Prefix(
        prefix.sites,
        dict.fromkeys(prefix.keys, prefix.keys[first]),
        dict.fromkeys(prefix.values, prefix.values[first]),
    )
    for held, num_layers in ((prefix, 3), (equal, 2)):
        write_peft(held, tmp_path, model)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["num_layers"] == num_layers
        assert_equal(read_peft(tmp_path, model), held)


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def test_a_head_goes_with_its_prefix(tmp_path: Path) -> None:
    model = bert()
    bare = at(model, "encoder")
    modules = {"classifier:weight": torch.randn(2, 16), "classifier:bias": torch.randn(2)}
    prefix = Prefix(bare.sites, bare.keys, bare.values, modules=modules)
    with pytest.raises(antefix.ConfigError, match="task_type='SEQ_CLS'"):
        write_peft(prefix, tmp_path, model)
    with pytest.raises(antefix.ConfigError, match="only with a trained head"):
        write_peft(bare, tmp_path, model, task_type="SEQ_CLS")
    assert not list(tmp_path.iterdir())
    write_peft(prefix, tmp_path, model, task_type="SEQ_CLS")
    loaded = read_peft(tmp_path, model)
    assert_equal(loaded, prefix)
    write_peft(loaded, tmp_path, model)  # which knows its task by now
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    save_file({**load_file(tmp_path / "adapter_model.safetensors"), "other": torch.ones(1)}, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(antefix.PrefixFormatError, match="'other', which is neither"):
        read_peft(tmp_path, model)


@pytest.mark.parametrize(
    ("wanted", "module"), [("norm", "model.layers.0.post_attention_layernorm"), ("head", "lm_head")]
)
def test_a_module_is_any_whose_path_ends_as_peft_was_told(wanted: str, module: str, folder: Path) -> None:
    model = build_model("llama")
    weight = torch.randn_like(model.get_submodule(module).weight)
    file, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = {**load_file(file), f"base_model.{module}.weight": weight}
    file.unlink()
    save_file(tensors, file)
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "modules_to_save": [wanted]}))
    assert torch.equal(read_peft(folder, model).modules[f"{module}:weight"], weight)


@pytest.mark.parametrize(
    ("task_type", "trained", "message"),
    [
        ("SEQ_CLS", ["bert.pooler.dense"], r"PEFT loads 'classifier' whole .* has no 'classifier.weight'"),
        (
            "TOKEN_CLS",
            ["head.dense", "classifier"],
            r"'head.score' whole .* has no 'head.score.weight'",
        ),
        ("SEQ_CLS", ["head", "classifier"], r"PEFT trains 'head.score' by itself .* inside of another"),
    ],
)
def test_a_part_of_what_peft_trains_whole_is_refused(
    task_type: str, trained: list[str], message: str, tmp_path: Path
) -> None:
    model = bert()
    parts = {"dense": torch.nn.Linear(16, 16), "score": torch.nn.Linear(16, 2)}
    model.head = torch.nn.Sequential(OrderedDict(parts))
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(TOKENS, init="random", trainable_modules=trained))
    with pytest.raises(antefix.ConfigError, match=message):
        write_peft(bank.prefix("p"), tmp_path / "out", model, task_type=task_type)
    assert not (tmp_path / "out").exists()
    write_peft(bank.prefix("p"), tmp_path / "out", model, task_type="FEATURE_EXTRACTION")
    assert read_peft(tmp_path / "out", model).modules.keys() == bank.prefix("p").modules.keys()


def without(prefix: Prefix, layer: int) -> Prefix:
    sites = [site for site in prefix.sites if site.layer != layer]
    return Prefix(sites, {s.path: prefix.keys[s.path] for s in sites}, {s.path: prefix.values[s.path] for s in sites})


@pytest.mark.parametrize(
    ("name", "make", "error", "message"),
    [
        ("t5", lambda model: at(model, "decoder", "encoder"), antefix.ConfigError, "stands at encoder attention too"),
        ("t5", lambda model: at(model, "decoder", "cross"), antefix.ConfigError, "stands at cross attention too"),
        ("t5", lambda model: at(model, "encoder"), antefix.ConfigError, "stands at encoder attention too"),
        ("llama", lambda model: without(at(model, "decoder"), 1), antefix.ConfigError, r"none at '.*layers\.1"),
        ("llama", lambda _: at(build_model("gpt2"), "decoder"), antefix.PrefixMismatchError, "does not fit"),
        (
            "llama",
            lambda model: replaced(at(model, "decoder"), lambda _, tensor: tensor / 0),
            antefix.PrefixFormatError,
            "not finite",
        ),
    ],
)
def test_what_peft_cannot_have_is_refused(
    name: str,
    make: Callable[[PreTrainedModel], Prefix],
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    model = build_model(name)
    with pytest.raises(error, match=message):
        write_peft(make(model), tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sites", "error", "message"),
    [
        ([Site("a.0", "decoder", 0, 2, 6, 4)], antefix.ConfigError, "2 heads of 6 and 4"),
        ([Site("a.0", "decoder", 0, 2, 6, 6), Site("a.1", "decoder", 1, 1, 6, 6)], antefix.ConfigError, "one size"),
        ([Site("a.3", "decoder", 3, 2, 6, 6)], antefix.UnsupportedModelError, "attention in layers 3"),
    ],
)
def test_models_peft_has_no_prefixes_for(
    sites: Sequence[Site], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = build_model("llama")
    model.get_submodule = lambda path: model  # type: ignore[method-assign,assignment] - sites of a model never built
    with pytest.raises(error, match=message):
        write_peft(random_prefix(sites, TOKENS), tmp_path / "out", model, sites)


def test_layers_that_share_their_keys_are_refused(folder: Path) -> None:
    model = build_model("llama")
    model.model.layers[2].self_attn.is_kv_shared_layer = True
    for run in (lambda: read_peft(folder, model), lambda: write_peft(at(model, "decoder"), folder, model)):
        with pytest.raises(antefix.UnsupportedModelError, match="share their keys and values"):
            run()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt2", "4 heads with keys of 8 and values of 8 instead of 2 with 8"),
        ("t5", "2 layers of attention instead of 3.*4 heads with keys of 10 and values of 10 instead of 2 with 8"),
    ],
)
def test_another_base_is_told_what_differs(name: str, message: str, folder: Path) -> None:
    with pytest.raises(antefix.PrefixMismatchError, match=message):
        read_peft(folder, build_model(name))


def setting(name: str, value: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))

    return damage


def tensors(**held: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: save_file(held, folder / "adapter_model.safetensors")


class _Trap:
    """Something whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was read",)


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Trap()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not intact JSON"),
        (lambda folder: (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x00"), "not intact JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000), "not intact JSON"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]"), "no JSON object"),
        (setting("peft_type", "LORA"), "PEFT's 'LORA'"),
        (setting("peft_type", ["PREFIX_TUNING"]), "antefix reads PREFIX_TUNING and CARTRIDGE"),
        (setting("num_layers", None), "num_layers=None"),
        (setting("num_layers", True), "num_layers=True"),
        (setting("num_virtual_tokens", -4), "num_virtual_tokens=-4"),
        (setting("num_virtual_tokens", 5), r"shape \(5, 96\)"),
        (setting("token_dim", 15), "describes no prefix"),
        (setting("num_transformer_submodules", 3), "describes no prefix"),
        (setting("task_type", 3), "task_type is 3"),
        (setting("base_model_name_or_path", {}), "base_model_name_or_path is {}"),
        (tensors(other=torch.ones(1)), "it has none"),
        (tensors(prompt_embeddings=torch.ones(TOKENS, 95)), r"torch.float32 of shape \(4, 95\)"),
        (tensors(prompt_embeddings=torch.ones(TOKENS, 96, dtype=torch.int64)), "torch.int64"),
        (tensors(prompt_embeddings=torch.full((TOKENS, 96), torch.nan)), "not finite"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"nonsense"), "not an intact safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "not an intact safetensors"),
        (pickled, "adapter_model.bin, a pickle"),
    ],
)
def test_damaged_folders_are_refused(damage: Callable[[Path], object], message: str, folder: Path) -> None:
    damage(folder)
    model = build_model("llama")
    with pytest.raises(antefix.PrefixFormatError, match=message):
        read_peft(folder, model)
    with pytest.raises(antefix.PrefixFormatError, match=message):
        antefix.attach(model).load(folder, "p")


def test_both_files_are_replaced_or_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    model = build_model("llama")
    prefix = replaced(at(model, "decoder"), lambda _, tensor: tensor + 1.0)
    flushed: list[int] = []

    def fail_second(handle: int) -> None:
        flushed.append(handle)
        if len(flushed) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr("antefix.storage.os.fsync", fail_second)
    with pytest.raises(OSError, match="no space"):
        write_peft(prefix, folder, model)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    monkeypatch.undo()
    write_peft(prefix, folder, model)
    assert_equal(read_peft(folder, model), prefix)
    assert {file.name for file in folder.iterdir()} == before.keys()
    with pytest.raises(antefix.ConfigError, match="is a file"):
        write_peft(prefix, folder / "adapter_config.json", model)


@pytest.mark.parametrize("shown_images", [True, False])
def test_a_vision_language_model_fits_whether_or_not_images_were_shown(shown_images: bool, tmp_path: Path) -> None:
    family = FAMILIES["LLaVA"]
    model = family.build()
    bank = attach(family, model)
    sites = {True: bank.sites}
    bank.detach()
    sites[False] = antefix.attach(model).sites
    assert len(sites[True]) > len(sites[False])
    there, back = sites[shown_images], sites[not shown_images]
    prefix = random_prefix([site for site in there if site.kind == "decoder"], TOKENS)
    fingerprint = geometry_fingerprint(sites[False])
    write_peft(replace(prefix, metadata={"fingerprint": fingerprint}), tmp_path, model, there)
    assert read_peft(tmp_path, model, back).metadata["fingerprint"] == fingerprint


def test_a_head_does_not_change_with_its_file(folder: Path) -> None:
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(load_file(path) | {"base_model.score.weight": torch.ones(3, 3)}, path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": ["score"]}))
    prefix = read_peft(folder, build_model("llama"))
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(prefix.modules["score:weight"], torch.ones(3, 3))


def test_numbers_of_eight_bits_are_refused_in_a_sentence(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({"prompt_embeddings": load_file(path)["prompt_embeddings"].to(torch.float8_e4m3fn)}, path)
    with pytest.raises(antefix.PrefixFormatError, match="'prompt_embeddings' as torch"):
        read_peft(folder, build_model("llama"))


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_embeddings_of_a_changed_vocabulary_are_named(name: str, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | {f"base_model.{name}.weight": torch.ones(70, 32)}, path)
    with pytest.raises(antefix.PrefixFormatError, match=f"'base_model.{name}.weight': .* save_embedding_layers=False"):
        read_peft(folder, build_model("llama"))
