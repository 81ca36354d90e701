"""Encoders: what maps texts, pictures and rows to the vectors of a space."""

from __future__ import annotations

from embedstore.encoders.cache import cache_folder
from embedstore.encoders.chunking import Chunk, split
from embedstore.encoders.protocol import Decoder, Encoded, Encoder
from embedstore.encoders.registry import load_encoder
from embedstore.encoders.runtime import describe_runtime
from embedstore.encoders.spec import EncoderSpec

__all__ = [
    "Chunk",
    "Decoder",
    "Encoded",
    "Encoder",
    "EncoderSpec",
    "cache_folder",
    "describe_runtime",
    "load_encoder",
    "split",
]
