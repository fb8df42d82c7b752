"""From rendered text to token ids: one way for all local engines, so that they see the same tokens."""

from __future__ import annotations

import json

from jinja2 import TemplateError

from raypref.data.sources import CHAT_TEMPLATE
from raypref.errors import ConfigError, InputError


class Tokens:
    """A model's tokenizer, with its chat template where the template is `chat`; cuts at `max_length`."""

    def __init__(self, source: str, template: str, max_length: int) -> None:
        """Load the tokenizer in the folder `source`."""
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        self._chat = template == CHAT_TEMPLATE
        self._max_length = max_length
        if self._chat and not self._tokenizer.chat_template:
            raise ConfigError(
                f"embed.template: {source} has no chat template; write one out, such as "
                "'{prompt}\\n\\n{response}'."
            )

    @property
    def padding(self) -> int:
        """The id that fills up short texts; masked, so any will do where the model names none."""
        return self._tokenizer.pad_token_id or 0

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text.

        Raises:
            InputError: a text has no tokens, or the chat template does not take its messages.
        """
        if self._chat:
            texts = [self._written(json.loads(text)) for text in texts]
        ids = self._tokenizer(
            texts,
            # A chat template writes the special tokens itself.
            add_special_tokens=not self._chat,
            truncation=True,
            max_length=self._max_length,
            return_attention_mask=False,
        )["input_ids"]
        for text, row in zip(texts, ids, strict=True):
            if not row:
                raise InputError(f"the tokenizer finds no token in the text {text[:80]!r}.")
        return ids

    def _written(self, messages: list[dict[str, str]]) -> str:
        try:
            return self._tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            # Many templates insist on an order of roles.
            roles = ", ".join(message["role"] for message in messages)
            raise InputError(
                f"the model's chat template does not take messages of {roles}: {error}."
            ) from error
