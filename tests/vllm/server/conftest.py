"""One server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import antefix
from tests.vllm.bases import draw_prefix
from tests.vllm.conftest import World
from tests.vllm.server.served import NUM_PREFIXES, ROOM, Served
from tests.vllm.serving import serving

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if reasoning_effort == 'high' %}{{ 'word ' * 300 }}{% endif %}"
    "{% if enable_thinking %}{{ 'word ' * 100 }}{% endif %}assistant:"
)


@pytest.fixture(scope="package")
def served(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("server")
    directory = folder / "prefixes"
    bank = antefix.attach(world.load("Llama"))
    for number in range(NUM_PREFIXES):
        prefix = draw_prefix(bank, 1 + 3 * number, seed=number)
        bank.add(f"p{number}", prefix)
        antefix.save_prefix(prefix, directory / f"p{number}.safetensors")
    (folder / "template.jinja").write_text(TEMPLATE)
    arguments = [
        "embedded", "--prefix-dir", str(directory), "--max-resident-prefixes", "8", "--dtype", "float32",
        "--enforce-eager", "--max-model-len", str(ROOM), "--block-size", "32", "--enable-prompt-tokens-details",
        "--chat-template", str(folder / "template.jinja"), "--allowed-origins", '["http://elsewhere"]',
    ]  # fmt: skip
    with serving(arguments, folder / "server.log") as server:
        yield Served(server, bank, directory)
