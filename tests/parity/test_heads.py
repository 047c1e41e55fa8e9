"""P-tuning v2: a head trained beside the prefix, kept with it, and for each row its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import antefix
from antefix.initialize import random_prefix
from tests.parity.compare import assert_close, assert_far, attach, logits
from tests.parity.conftest import over
from tests.parity.families import FAMILIES, Family, draw_ids

CONFIG: dict[str, Any] = {"num_virtual_tokens": 5, "init": "random"}
CLASSIFIER = ("BERT", "AutoModelForSequenceClassification", "classifier")
ROBERTA = ("RoBERTa", "AutoModelForSequenceClassification", "classifier")


def train_two_steps(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        outputs = [value for value in model(**inputs).values() if isinstance(value, Tensor)]
        torch.stack([(output - 1).square().mean() for output in outputs]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def build(case: tuple[str, str, str]) -> tuple[Family, PreTrainedModel]:
    family = FAMILIES[case[0]]
    return family, family.build(case[1])


@over("encoder")
def test_sequence_classification(family: Family, tmp_path: Path) -> None:
    trains_saves_and_restores(family, "AutoModelForSequenceClassification", "classifier", tmp_path)


@over("encoder")
def test_token_classification(family: Family, tmp_path: Path) -> None:
    trains_saves_and_restores(family, "AutoModelForTokenClassification", "classifier", tmp_path)


@over("encoder")
def test_question_answering(family: Family, tmp_path: Path) -> None:
    head = "classifier" if family.name == "ModernBERT" else "qa_outputs"
    trains_saves_and_restores(family, "AutoModelForQuestionAnswering", head, tmp_path)


@pytest.mark.parametrize(
    ("name", "model_class", "head"),
    [
        ("Llama", "AutoModelForSequenceClassification", "score"),
        ("Qwen3", "AutoModelForTokenClassification", "score"),
        ("ViT", "AutoModelForImageClassification", "classifier"),
        ("BART", "AutoModelForQuestionAnswering", "qa_outputs"),
    ],
)
def test_heads_of_others(name: str, model_class: str, head: str, tmp_path: Path) -> None:
    trains_saves_and_restores(FAMILIES[name], model_class, head, tmp_path)


def trains_saves_and_restores(family: Family, model_class: str, head: str, folder: Path) -> None:
    model = family.build(model_class)
    inputs = {name: value for name, value in family.draw_inputs().items() if not name.startswith("decoder")}
    module = model.get_submodule(head)
    plain, untouched = logits(model, **inputs), {n: p.clone() for n, p in module.state_dict().items()}
    bank = attach(family, model)
    bank.add("task", antefix.PrefixConfig(**CONFIG, trainable_modules=[head]))
    before = bank.prefix("task")
    train_two_steps(model, inputs)
    trained = logits(model, **inputs)
    after = bank.prefix("task")
    assert set(after.modules) == {f"{head}:{name}" for name in untouched}
    assert all(not torch.equal(after.modules[name], before.modules[name]) for name in after.modules)
    assert all(torch.equal(p, untouched[n]) for n, p in module.state_dict().items())
    with bank.use(None):
        assert torch.equal(logits(model, **inputs), plain)
    bank.save("task", folder / "task.safetensors")

    fresh = family.build(model_class)
    bank = attach(family, fresh)
    bank.load(folder / "task.safetensors", name="restored")
    with bank.use("restored"):
        assert_close(logits(fresh, **inputs), trained)
    assert not [p for p in fresh.antefix_prefixes.parameters() if p.requires_grad]
    bank.remove("restored")
    bank.detach()
    assert torch.equal(logits(fresh, **inputs), plain)
    assert "forward" not in vars(fresh.get_submodule(head))


def by_hand(case: tuple[str, str, str], prefix: antefix.Prefix, inputs: dict[str, Tensor]) -> Tensor:
    """Return the logits of a base into which the prefix's modules are put, with the prefix alone."""
    family, other = build(case)
    other.load_state_dict({name.replace(":", "."): value for name, value in prefix.modules.items()}, strict=False)
    bank = attach(family, other)
    bank.add("alone", antefix.Prefix(prefix.sites, prefix.keys, prefix.values))
    with bank.use("alone"):
        return logits(other, **inputs)


def test_a_head_by_hand() -> None:
    """The head that is used is the prefix's: the base with those weights, and the prefix alone, gives the same."""
    family, model = build(CLASSIFIER)
    inputs = family.draw_inputs()
    bank = attach(family, model)
    bank.add("task", antefix.PrefixConfig(**CONFIG, trainable_modules=["classifier"]))
    train_two_steps(model, inputs)
    assert_close(by_hand(CLASSIFIER, bank.prefix("task"), inputs), logits(model, **inputs))


@pytest.mark.parametrize("order", [("out_proj", "classifier"), ("classifier", "out_proj")], ids="-".join)
def test_a_head_inside_that_of_another_prefix(order: tuple[str, str]) -> None:
    """Each prefix trains the whole of its own, and computes by it alone."""
    family, model = build(ROBERTA)
    inputs = family.draw_inputs()
    bank = attach(family, model)
    for module in order:
        bank.add(module, antefix.PrefixConfig(**CONFIG, trainable_modules=[module]))
        before = bank.prefix(module).modules
        train_two_steps(model, inputs)
        after = bank.prefix(module).modules
        assert after
        assert all(not torch.equal(after[name], before[name]) for name in after)
    for module in order:
        with bank.use(module):
            assert_close(logits(model, **inputs), by_hand(ROBERTA, bank.prefix(module), inputs))


@pytest.mark.parametrize("times", [1, 2])
def test_rows_of_a_head_inside_that_of_another_prefix(times: int) -> None:
    """Of twice as many rows as names, two come to the inner module, which would pass for one of each name."""
    family, model = build(ROBERTA)
    inputs = {name: value.repeat_interleave(times, 0) for name, value in family.draw_inputs().items()}
    bank = attach(family, model)
    alone = []
    for module in ("classifier", "out_proj"):
        bank.add(module, antefix.PrefixConfig(**CONFIG, trainable_modules=[module]))
        train_two_steps(model, inputs)
        alone.append(logits(model, **inputs))
    with bank.use(["classifier", "out_proj"]):
        mixed = logits(model, **inputs)
        model(**inputs)[0].sum().backward()
    assert_close(mixed, torch.cat([alone[0][:times], alone[1][times:]]))
    assert all(parameter.grad is not None for parameter in bank.modules("out_proj")[-1].parameters())
    with bank.use("classifier"):
        assert_close(logits(model, **inputs), alone[0])


@pytest.mark.parametrize(
    "case",
    [
        CLASSIFIER,
        ("BERT", "AutoModelForTokenClassification", "classifier"),
        ("Llama", "AutoModelForSequenceClassification", "score"),
    ],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def test_rows_use_heads_of_their_own(case: tuple[str, str, str]) -> None:
    family, model = build(case)
    inputs = family.draw_inputs()
    bank = attach(family, model)
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(**CONFIG, trainable_modules=[case[2]]))
        train_two_steps(model, inputs)
    bank.add("no head", antefix.PrefixConfig(**CONFIG))
    for choice in (["a", "b"], ["b", "no head"], [None, "a"]):
        with bank.use(choice):
            mixed = logits(model, **inputs)
        for row, name in enumerate(choice):
            with bank.use(name):
                assert_close(mixed[row], logits(model, **inputs)[row])
    assert_far(mixed[0], mixed[1])


def test_a_bf16_base_trains_an_fp32_head() -> None:
    family, model = build(CLASSIFIER)
    model.to(torch.bfloat16)
    bank = attach(family, model)
    bank.add("task", antefix.PrefixConfig(**CONFIG, trainable_modules="classifier"))
    output = model(**family.draw_inputs())[0]
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert {p.grad.dtype for p in model.antefix_prefixes.parameters()} == {torch.float32}


def test_a_module_that_reads_token_ids_answers_as_a_bf16_base_would() -> None:
    model = FAMILIES["Llama"].build().to(torch.bfloat16)
    ids = draw_ids(2, 6)
    bare = logits(model, input_ids=ids)
    bank = antefix.attach(model)
    bank.add("p", antefix.PrefixConfig(**CONFIG, trainable_modules=("embed_tokens",)))
    embedded = model.get_input_embeddings()(ids)
    assert embedded.dtype == torch.bfloat16
    with bank.use("p"):
        assert torch.equal(model.get_input_embeddings()(ids), embedded)
        model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for module in bank.modules("p") for parameter in module.parameters())
    with bank.use(None):
        assert torch.equal(logits(model, input_ids=ids), bare)


def test_a_name_finds_the_base_alone() -> None:
    """What a prefix trains is in the model, too, and is no module that another could mean."""
    family, model = build(ROBERTA)
    bank = attach(family, model)
    bank.add("outer", antefix.PrefixConfig(**CONFIG, trainable_modules=["classifier"]))
    bank.add("inner", antefix.PrefixConfig(**CONFIG, trainable_modules=["out_proj"]))
    assert set(bank.prefix("inner").modules) == {"classifier.out_proj:weight", "classifier.out_proj:bias"}
    prefix = bank.prefix("inner")
    own = {f"antefix_prefixes.1.{name.partition('.')[2]}": value for name, value in prefix.modules.items()}
    with pytest.raises(antefix.PrefixMismatchError, match=r"'antefix_prefixes\.1\.out_proj', which is no head"):
        bank.add("hostile", antefix.Prefix(prefix.sites, prefix.keys, prefix.values, {}, own))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("classifier", "out_proj"), "'classifier' and 'classifier.out_proj'"),
        (("out_proj", "classifier"), "'classifier' and 'classifier.out_proj'"),
        (("out_proj", "classifier.out_proj"), "'classifier.out_proj' and 'classifier.out_proj'"),
    ],
)
def test_modules_of_one_prefix_that_overlap_are_refused(wanted: tuple[str, str], found: str) -> None:
    family, model = build(ROBERTA)
    bank = attach(family, model)
    with pytest.raises(antefix.ConfigError, match=f"trainable_modules names {found}, which overlap"):
        bank.add("p", antefix.PrefixConfig(**CONFIG, trainable_modules=wanted))
    assert bank.names == []
    assert not any("forward" in vars(module) for module in model.modules())

    state = {f"classifier:{name}": value for name, value in model.classifier.state_dict().items()}
    state |= {f"classifier.out_proj:{name}": value for name, value in model.classifier.out_proj.state_dict().items()}
    made = random_prefix(bank.sites, 5)
    with pytest.raises(antefix.PrefixMismatchError, match=r"'classifier' and 'classifier\.out_proj', which overlap"):
        bank.add("p", antefix.Prefix(made.sites, made.keys, made.values, {}, state))


def test_a_loaded_head_goes_where_its_model_went() -> None:
    """It is not in the model, as a trained one is; of all devices, "meta" alone is always there."""
    family, model = build(CLASSIFIER)
    bank = attach(family, model)
    bank.add("trained", antefix.PrefixConfig(**CONFIG, trainable_modules=["classifier"]))
    bank.add("loaded", bank.prefix("trained"))
    model.to("meta")
    inputs = {name: value.to("meta") for name, value in family.draw_inputs().items()}
    for choice in ("loaded", ["loaded", None], "trained"):
        with bank.use(choice), torch.inference_mode():  # what is moved in it is of use outside of it
            assert model(**inputs)[0].device.type == "meta"
    with bank.use(["loaded", "trained"]):
        model(**inputs)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in bank.modules("trained")[-1].parameters())


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    family, model = build(CLASSIFIER)
    bank = attach(family, model)
    for wanted, sentence in (
        ("head", "names 'head', which must be one module of BertForSequenceClassification; it has none"),
        ("dense", "it has 'bert.encoder.layer.0.attention.output.dense' and "),
        ("bert.encoder", "'bert.encoder' holds attention"),
    ):
        with pytest.raises(antefix.ConfigError, match=sentence):
            bank.add("x", antefix.PrefixConfig(**CONFIG, trainable_modules=[wanted]))
        assert bank.names == []
        assert not list(model.antefix_prefixes.parameters())

    bank.add("two labels", antefix.PrefixConfig(**CONFIG, trainable_modules=["classifier"]))
    bank.save("two labels", tmp_path / "two.safetensors")
    torch.manual_seed(0)
    model.classifier = torch.nn.Linear(32, 3)
    with pytest.raises(antefix.PrefixMismatchError, match=r"'classifier' with tensors .*\(2, 32\).* has .*\(3, 32\)"):
        bank.load(tmp_path / "two.safetensors", name="restored")
    bare = FAMILIES["BERT"].build("AutoModel")
    bank = attach(family, bare)
    with pytest.raises(antefix.PrefixMismatchError):
        bank.load(tmp_path / "two.safetensors", name="restored")
    made = random_prefix(bank.sites, 5)
    for path in ("head", "encoder", "encoder.layer.0.attention"):
        hostile = antefix.Prefix(made.sites, made.keys, made.values, {}, {f"{path}:weight": torch.zeros(2, 32)})
        with pytest.raises(antefix.PrefixMismatchError, match=f"'{path}', which is no head"):
            bank.add("hostile", hostile)
    assert bank.names == []


def test_each_head_computes_its_own_rows_alone() -> None:
    model = FAMILIES["Llama"].build()
    bank = antefix.attach(model)
    seen: list[int] = []
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(**CONFIG, trainable_modules=["lm_head"]))
        bank.heads(name)["lm_head"].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    with bank.use(["a", "b", None, "a"]):
        logits(model, input_ids=draw_ids(4, 6))
    assert seen == [2, 1]


def test_a_head_that_the_model_lost_is_told_of() -> None:
    model = FAMILIES["Llama"].build()
    bank = antefix.attach(model)
    bank.add("a", antefix.PrefixConfig(**CONFIG, trainable_modules=["lm_head"]))
    prefix = bank.prefix("a")
    logits(model, input_ids=draw_ids(1, 6))
    model.lm_head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features, bias=False)
    with pytest.raises(antefix.ConfigError, match=r"'lm_head' of .* was replaced after the prefix 'a' was added"):
        logits(model, input_ids=draw_ids(1, 6))
    bank.add("again", prefix)
    with bank.use("again"):
        answered = logits(model, input_ids=draw_ids(1, 6))
    with bank.use(None):
        assert_far(answered, logits(model, input_ids=draw_ids(1, 6)))


def test_heads_that_answer_with_more_than_a_tensor_cannot_share_a_batch() -> None:
    class Answers(torch.nn.Linear):
        def forward(self, states: Tensor) -> Any:
            return super().forward(states), None

    model = FAMILIES["Llama"].build()
    model.lm_head = Answers(model.lm_head.in_features, model.lm_head.out_features)
    model.forward = lambda input_ids: model.lm_head(model.model(input_ids).last_hidden_state)[0]
    bank = antefix.attach(model)
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(**CONFIG, trainable_modules=["lm_head"]))
    with bank.use("a"):
        assert model(draw_ids(2, 6)).shape[0] == 2
    with bank.use(["a", "b"]), pytest.raises(antefix.ConfigError, match="run each on its own"):
        model(draw_ids(2, 6))


def test_a_bias_by_distance_has_no_rows_to_share_out() -> None:
    """Its input is a table of distances, of which six rows would pass for those of a batch of two."""
    model = FAMILIES["T5"].build()
    bank = antefix.attach(model)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(3, init="random", sites=("cross",), trainable_modules=(bias,)))
    inputs = {"input_ids": draw_ids(2, 6), "decoder_input_ids": draw_ids(2, 3)}
    with bank.use(["a", "b"]), pytest.raises(antefix.ConfigError, match="run each on its own"):
        model(**inputs)
    with bank.use(["a", "a"]):
        model(**inputs)


def test_a_list_of_positions_has_no_rows_to_share_out() -> None:
    """Whisper looks up ten of them at once, of which five would pass for those of each row."""
    family = FAMILIES["Whisper"]
    model = family.build()
    bank = attach(family, model)
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(3, init="random", trainable_modules=("encoder.embed_positions",)))
    with bank.use(["a", "b"]), pytest.raises(antefix.ConfigError, match="run each on its own"):
        model(**family.draw_inputs())


def test_a_state_that_is_kept_for_all_rows_is_not_shared_out() -> None:
    """What a cache keeps of a convolution would be that of the rows which came first."""
    family = FAMILIES["LFM2"]
    model = family.build()
    bank = attach(family, model)
    for name in ("a", "b"):
        bank.add(name, antefix.PrefixConfig(3, init="random", trainable_modules=("layers.0.conv",)))
        with torch.no_grad():
            bank.heads(name)["model.layers.0.conv"].out_proj.weight.mul_(2.0 if name == "a" else 3.0)
    inputs = family.draw_inputs()
    alone = []
    for name in ("a", "b"):
        with bank.use(name):
            alone.append(logits(model, **inputs))
    with bank.use(["a", "b"]):
        mixed = logits(model, **inputs, use_cache=False)
        with pytest.raises(antefix.ConfigError, match="run each on its own"):
            model(**inputs)
    assert_close(mixed, torch.stack([alone[0][0], alone[1][1]]))


def test_a_list_of_modules_is_no_head() -> None:
    """The base calls what is in it, and never the list, so that a copy of it would train nothing."""
    family = FAMILIES["Gemma 3n"]
    bank = attach(family, family.build())
    with pytest.raises(antefix.ConfigError, match=r"'model\.altup_projections' holds others and computes nothing"):
        bank.add("p", antefix.PrefixConfig(3, init="random", trainable_modules=("altup_projections",)))
    made = random_prefix(bank.sites, 3)
    hostile = {"model.altup_projections:0.weight": torch.zeros(32, 32)}
    with pytest.raises(antefix.PrefixMismatchError, match=r"'model\.altup_projections', which is no head"):
        bank.add("p", antefix.Prefix(made.sites, made.keys, made.values, {}, hostile))
