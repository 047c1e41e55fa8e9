"""American to British: a prefix at all three kinds of attention of a small BART that spells words in phonemes.

The base writes US phonemes. A prefix of four tokens at the encoder, the decoder and the cross-attention is trained on
British ones; the base itself is not touched. Prints how many held-out words each spells as a Briton says them, and the
first few that they spell differently.
Takes about 25 seconds on 2 cores.

    python examples/british_phonemes.py MODEL DATA

MODEL is the folder of a BART whose tokenizer spells and whose `phonemes` holds the tokenizer of the answers; DATA has
`train.jsonl` and `test.jsonl` with the fields `word` and `gb`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import antefix
from antefix.training import Recipe, train
from antefix.training.base import load_base
from antefix.training.generation import answers


def writable(data: Path, model: Path, folder: Path) -> None:
    """Copy the words whose British phonemes the American tokenizer can write at all."""
    signs = json.loads((model / "phonemes" / "tokenizer.json").read_text())["model"]["vocab"].keys()
    for name in ("train.jsonl", "test.jsonl"):
        lines = (data / name).read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if set(json.loads(line)["gb"]) <= signs]
        (folder / name).write_text("".join(kept), encoding="utf-8")


def main(model: Path, data: Path) -> None:
    """Train, score, and let base and prefix spell the held-out words."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writable(data, model, folder)
        recipe = Recipe(
            model=str(model),
            answer_tokenizer=str(model / "phonemes"),
            data=str(folder / "train.jsonl"),
            eval_data=str(folder / "test.jsonl"),
            prompt="{word}",
            answer="{gb}",
            output=str(folder / "run"),
            prefix=antefix.PrefixConfig(num_virtual_tokens=4, sites=("encoder", "decoder", "cross")),
            learning_rate=0.1,
            epochs=6,
            batch_size=32,
            exact_match=True,
        )
        result = train(recipe)
        prefix = antefix.load_prefix(result.prefix_path)
        held_out = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    before, after = result.metrics["before"], result.metrics["after"]
    print(f"spelled right: base {before['exact_match']:.1%}, with prefix {after['exact_match']:.1%}")

    base, preprocessor = load_base(str(model), str(model / "phonemes"))
    bank = antefix.attach(base)
    bank.add("british", prefix)
    words = [row["word"] for row in held_out]
    american = answers(base, preprocessor, words, max_new_tokens=30)
    with bank.use("british"):
        british = answers(base, preprocessor, words, max_new_tokens=30)
    different = [row for row in zip(held_out, american, british, strict=True) if row[1] != row[2]]
    print(f"\n{'word':<16}{'base':<18}{'with prefix':<18}a Briton")
    for row, us, gb in different[:8]:
        print(f"{row['word']:<16}{us:<18}{gb:<18}{row['gb']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
