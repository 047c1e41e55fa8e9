"""Conversations, written by the tokenizer's chat template."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from antefix.errors import ConfigError, DataError, on_one_line
from antefix.training.examples import Example, checked_text
from antefix.training.rows import Row
from antefix.training.tokens import TextPreprocessor

_ANSWER = "antefixum"
"""A word that no template writes by itself."""


@dataclass(frozen=True)
class Chats:
    """Conversations in one field of the rows, as a list of `{"role": ..., "content": ...}`.

    The last message, the assistant's, is the answer; all before it is the prompt. A context comes before the content
    of the first message. Raises `ConfigError` for a tokenizer without a chat template.
    """

    field: str
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer has no chat template to write '{self.field}' with; take the base's instruction-tuned "
                "version, or give templates as prompt and answer."
            )

    def prompt(self, row: Row, context: str = "") -> str:
        """Return what comes before the answer, up to where the assistant begins; an answer in the row is left out."""
        messages = self._messages(row, context)
        if messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return self._render(messages, row[0], add_generation_prompt=True)

    def example(self, row: Row, context: str = "") -> Example:
        """Return prompt and answer; raises `DataError` if the last message is not the assistant's."""
        where = row[0]
        messages = self._messages(row, context)
        last = messages[-1]
        if last["role"] != "assistant":
            raise DataError(f"the last message of {where} is the {last['role']}'s; it must be the assistant's answer.")
        prompt = self._render(messages[:-1], where, add_generation_prompt=True)
        whole = self._render(messages, where, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise DataError(
                f"the chat template writes the answer of {where} with another prompt before it than it gives for "
                "generation, so there is no telling where the answer begins; give templates as prompt and answer."
            )
        return Example(prompt, last["content"], whole[len(prompt) :])

    def ask(self, text: str) -> str:
        """Return the prompt of a conversation that begins with this message of a user."""
        return self._render([{"role": "user", "content": text}], "the prompt", add_generation_prompt=True)

    @property
    def closing(self) -> str:
        """What the template writes after an answer; empty if it refuses a question with an answer."""
        turn = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": _ANSWER}]
        for messages in (turn, [{"role": "system", "content": "Say it."}, *turn]):  # which some templates demand
            with suppress(DataError):
                return self._render(messages, "", add_generation_prompt=False).partition(_ANSWER)[2]
        return ""

    def _messages(self, row: Row, context: str) -> list[dict[str, str]]:
        where, fields = row
        if self.field not in fields:
            raise DataError(
                f"there is no field '{self.field}' in {where}, which has {', '.join(map(repr, fields)) or 'none'}."
            )
        messages = fields[self.field]
        if not isinstance(messages, list) or len(messages) < 1 or not all(_is_message(message) for message in messages):
            raise DataError(
                f"the field '{self.field}' of {where} must be a list of messages with a role and a content that are "
                f"text; it is {str(messages)[:60]!r}."
            )
        if len(messages) == 1 and messages[0]["role"] == "assistant":
            raise DataError(f"the field '{self.field}' of {where} has an answer and no message before it.")
        first, *others = messages
        return [{**first, "content": context + first["content"]}, *others]

    def _render(self, messages: list[dict[str, str]], where: str, add_generation_prompt: bool) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program of its own, and fails in whatever way it was written
            raise DataError(f"the chat template refuses {where}: {on_one_line(error)}") from error
        return checked_text(str(text), where)


def in_chats(preprocessor: TextPreprocessor) -> TextPreprocessor:
    """Return a preprocessor for texts that the chat template wrote; raises `ConfigError` if there is no template."""
    return replace(preprocessor, adds_special_tokens=False, closing=Chats("messages", preprocessor.tokenizer).closing)


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))
