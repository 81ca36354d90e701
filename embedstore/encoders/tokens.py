"""Texts to token ids with a tokenizer.json."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import EncoderUnavailable, InvalidInput


def load_tokenizers() -> Any:
    """The module ``tokenizers``, told not to start threads of its own unless the environment already says otherwise.

    They would make every later fork print a warning; where threads pay, whole batches go to ours.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers


def load_tokenizer(path: Path, max_tokens: int) -> Any:
    """A ``tokenizers.Tokenizer`` that does not pad, and truncates to ``max_tokens``."""
    try:
        tokenizer = load_tokenizers().Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise EncoderUnavailable(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


class TextTokenizer:
    """The tokenizer of one model: a truncating one for encoding, a whole one for counting."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._truncating = load_tokenizer(path, max_tokens)
        self._whole: Any = None

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, max_tokens: int) -> TextTokenizer:
        """The same for a ``tokenizers.Tokenizer`` in memory."""
        made = cls.__new__(cls)
        made._truncating = load_tokenizers().Tokenizer.from_str(tokenizer.to_str())
        made._truncating.no_padding()
        made._truncating.enable_truncation(max_tokens)
        made._whole = None
        return made

    def encode(self, text: str) -> list[int]:
        """Ids of one text, at most max_tokens, special ones included."""
        try:
            ids: list[int] = self._truncating.encode(checked(text, None)).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidInput(_NOT_UTF8) from error
        return ids

    def encode_all(
        self, texts: Sequence[str], *, prompt: str = "", first: int = 0
    ) -> tuple[list[npt.NDArray[np.int32]], int]:
        """Ids of each text with the prompt before it, and how many of the texts were truncated.

        first: the position of the first text among all that the user gave, for errors.
        """
        given = [prompt + checked(text, position) for position, text in enumerate(texts, start=first)]
        try:
            encodings = self._truncating.encode_batch_fast(given)
        except (TypeError, UnicodeEncodeError):
            raise _unencodable(given, first) from None
        n_truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings], n_truncated

    def count(self, text: str) -> int:
        """How many tokens the whole text has, special ones included."""
        if self._whole is None:
            whole = load_tokenizers().Tokenizer.from_str(self._truncating.to_str())
            whole.no_truncation()
            self._whole = whole
        try:
            return len(self._whole.encode(checked(text, None)).ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidInput(_NOT_UTF8) from error


_NOT_UTF8 = "the text cannot be written as UTF-8; it holds bytes or surrogates that are no characters"


def checked(text: Any, position: int | None) -> str:
    """The text itself; InvalidInput where it is not a string."""
    if not isinstance(text, str):
        where = "" if position is None else f" at position {position}"
        raise InvalidInput(f"the text{where} is a {type(text).__name__}; it must be a string")
    return text


def _unencodable(texts: Sequence[str], first: int) -> InvalidInput:
    for position, text in enumerate(texts, start=first):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InvalidInput(f"the text at position {position} cannot be written as UTF-8: {error}")
    return InvalidInput("a text cannot be tokenized")
