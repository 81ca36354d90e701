"""Long texts cut into chunks that an encoder reads whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from embedstore.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a text: ``text == whole[start:end]``, in characters."""

    start: int
    end: int
    text: str


def split(text: str, n_tokens: int, overlap: int, count_tokens: Callable[[str], int]) -> list[Chunk]:
    """Cut ``text`` at paragraphs, else sentences, else words, into chunks of at most ``n_tokens`` tokens.

    overlap: at most how many tokens two neighbours share, less than ``n_tokens``.
    count_tokens: an encoder's; special tokens count, so that a chunk of max_tokens is read whole.
    White space around a chunk is left out. A text of white space has no chunks.
    Raises InvalidInput for numbers that cannot be used.
    """
    n_special = count_tokens("")
    if n_tokens <= n_special:
        raise InvalidInput(f"a chunk of {n_tokens} tokens holds no text; {n_special} of them are special")
    room = n_tokens - n_special
    if not 0 <= overlap < room:
        raise InvalidInput(
            f"the overlap is {overlap}; it must be 0 to {room - 1} for chunks of {n_tokens} tokens"
        )
    from semantic_text_splitter import TextSplitter

    splitter = TextSplitter.from_callback(lambda piece: count_tokens(piece) - n_special, room, overlap)
    return [Chunk(start, start + len(piece), piece) for start, piece in splitter.chunk_indices(text)]
