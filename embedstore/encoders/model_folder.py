"""What a folder holding a text model says about itself, read from its JSON files alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedstore.encoders.cache import known_sha256
from embedstore.encoders.spec import SENTENCE_TRANSFORMERS, TRANSFORMERS, EncoderSpec
from embedstore.errors import EncoderUnavailable, InvalidInput

POOLS = ("mean", "first", "last", "max")

_POOL_WORDS = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
_LEGACY_POOL_KEYS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")
_WITHOUT_EFFECT = {
    "_name_or_path", "architectures", "dtype", "gradient_checkpointing", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
_TOKENIZER_SETTINGS = (
    "add_prefix_space", "do_lower_case", "model_max_length", "strip_accents", "tokenize_chinese_chars",
    "tokenizer_class", "truncation_side",
)  # fmt: skip
_TOKENIZER_FILES = (
    "vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model",
)  # fmt: skip
COUNT_FROM_PADDING = (
    "roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "xlm-roberta-xl", "esm", "data2vec-text",
    "roberta-prelayernorm", "xmod", "ibert", "luke",
)  # fmt: skip
"""Kinds of models that count positions themselves, from behind the padding."""
_NO_LIMIT = 1_000_000  # tokenizers without a limit of their own say 1e30


@dataclass(frozen=True, slots=True)
class TextModel:
    """A folder of a text model, and how its vectors are made.

    folder: the whole model. transformer: the folder of its transformer, the same or one inside it.
    architecture: that transformer's config.json. modules: kinds of modules in order, such as
    ("Transformer", "Pooling", "Normalize"). weights_files: every safetensors file, relative to ``folder``.
    layer, pool, normalize, dim, max_tokens: as in EncoderSpec. query_prompt, text_prompt: put before a text.
    settings: everything else that decides the vectors, JSON-ready.
    """

    folder: Path
    family: str
    transformer: Path
    architecture: dict[str, Any]
    modules: tuple[str, ...]
    weights_files: tuple[Path, ...]
    dim: int
    max_tokens: int
    layer: int | None
    pool: str
    normalize: bool
    query_prompt: str
    text_prompt: str
    settings: dict[str, Any]

    def n_layers(self, stack: str | None = None) -> int:
        """Blocks of the transformer; of two stacks those of the encoder, or of the one that is named."""
        return n_blocks(self.architecture, stack)

    @property
    def head_dim(self) -> int:
        """Numbers of one attention head's states; EncoderUnavailable where the model does not say."""
        given = self.architecture.get("head_dim", self.architecture.get("d_kv"))
        if isinstance(given, int):
            return given
        names = ("num_attention_heads", "n_head", "num_heads", "n_heads", "encoder_attention_heads")
        heads = next((self.architecture[name] for name in names if isinstance(self.architecture.get(name), int)), 0)
        if heads < 1:
            raise EncoderUnavailable(f"config.json in {self.folder} does not say how many attention heads there are")
        return self.dim // int(heads)

    def spec(self, name: str) -> EncoderSpec:
        """The spec of this model under ``name``; hashes the weights where their digest is not remembered."""
        return EncoderSpec(
            name=name, family=self.family, dim=self.dim, max_tokens=self.max_tokens, layer=self.layer,
            pool=self.pool, normalize=self.normalize, weights=self._digest_of_weights(),
            tokenizer=digest_of_tokenizer(self.transformer),
            pipeline=hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest(),
            location=str(self.folder),
        )  # fmt: skip

    def _digest_of_weights(self) -> str:
        if len(self.weights_files) == 1:
            return known_sha256(self.folder / self.weights_files[0])
        lines = [f"{known_sha256(self.folder / path)}  {path.as_posix()}\n" for path in self.weights_files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_sentence_transformer(folder: Path) -> bool:
    """Whether the folder holds a sentence-transformers model."""
    return (folder / "modules.json").is_file()


def is_transformer(folder: Path) -> bool:
    """Whether the folder holds a transformers model that is not wrapped by sentence-transformers."""
    return (folder / "config.json").is_file() and not is_sentence_transformer(folder)


def read_sentence_transformer(folder: Path) -> TextModel:
    """Read a sentence-transformers folder.

    Raises EncoderUnavailable where files are missing, damaged, pickled or need code of their own.
    """
    kinds: list[str] = []
    settings: list[Any] = []
    folders: list[Path] = []
    for module in _read(folder / "modules.json", list):
        kind, place = _module_kind(folder, module), folder / str(module.get("path", ""))
        if folder.resolve() not in [place.resolve(), *place.resolve().parents]:
            raise EncoderUnavailable(
                f"modules.json in {folder} points outside the folder: {module.get('path')!r}"
            )
        kinds.append(kind)
        folders.append(place)
        settings.append([kind, {} if kind == "Transformer" else _module_settings(kind, place)])
    if not kinds or kinds[0] != "Transformer":
        raise EncoderUnavailable(f"modules.json in {folder} does not begin with a Transformer: {kinds}")
    transformer = folders[0]
    architecture = _architecture(transformer)
    own = _read(transformer / "sentence_bert_config.json", dict, optional=True)
    prompts = _read(folder / "config_sentence_transformers.json", dict, optional=True)
    query_prompt, text_prompt = _prompts(prompts)
    pooling: dict[str, Any] = next((value for kind, value in settings if kind == "Pooling"), {})
    modes = pooling.get("modes", [])
    if pooling.get("include_prompt") is False and (query_prompt or text_prompt):
        raise EncoderUnavailable(
            f"the model in {folder} leaves its prompt out of the pooling, not supported yet"
        )
    tokenizer_settings = _tokenizer_settings(transformer)
    dim = _hidden_size(architecture, transformer) * max(1, len(modes))
    for kind, value in settings:
        dim = int(value["out_features"]) if kind == "Dense" else dim
    return TextModel(
        folder=folder, family=SENTENCE_TRANSFORMERS, transformer=transformer, architecture=architecture,
        modules=tuple(kinds), weights_files=_weights_files(folder, kinds, folders), dim=dim,
        max_tokens=_read_tokens(own.get("max_seq_length"), tokenizer_settings, architecture, transformer),
        layer=None, pool=_POOL_WORDS.get(modes[0], modes[0]) if len(modes) == 1 else "+".join(modes),
        normalize=kinds[-1] == "Normalize", query_prompt=query_prompt, text_prompt=text_prompt,
        settings={"architecture": _deciding(architecture), "modules": settings, "sentence_bert": own,
                  "prompts": [query_prompt, text_prompt], "tokenizer": tokenizer_settings},
    )  # fmt: skip


def read_transformer(
    folder: Path, *, layer: int | None = None, pool: str = "mean", normalize: bool = False,
    max_tokens: int | None = None, for_states: bool = False,
) -> TextModel:  # fmt: skip
    """Read a transformers folder whose hidden states become vectors.

    layer: index in the hidden states (0 embeddings, n_layers or -1 the last); None is the last.
    for_states: whether a model with an encoder and a decoder will do, and as many tokens are read as
    sentence-transformers would.
    Raises InvalidInput for a layer or pool that does not exist, EncoderUnavailable for an unusable folder.
    """
    if pool not in POOLS:
        raise InvalidInput(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    architecture = _architecture(folder)
    if architecture.get("is_encoder_decoder") and not for_states:
        raise EncoderUnavailable(
            f"the model in {folder} has an encoder and a decoder; only one stack is supported"
        )
    n_layers = n_blocks(architecture)
    if n_layers == 0:
        raise EncoderUnavailable(f"config.json in {folder} does not say how many layers the model has")
    index = n_layers if layer is None else layer + n_layers + 1 if layer < 0 else layer
    if not 0 <= index <= n_layers:
        raise InvalidInput(f"layer is {layer}; the model in {folder} has hidden states 0 to {n_layers}")
    tokenizer_settings = _tokenizer_settings(folder)
    if for_states and max_tokens is None:
        own = _read(folder / "sentence_bert_config.json", dict, optional=True).get("max_seq_length")
        max_tokens = own if isinstance(own, int) and own > 0 else None
    return TextModel(
        folder=folder, family=TRANSFORMERS, transformer=folder, architecture=architecture,
        modules=("Transformer",), weights_files=_weights_files(folder, ["Transformer"], [folder]),
        dim=_hidden_size(architecture, folder),
        max_tokens=_hidden_tokens(max_tokens, tokenizer_settings, architecture, folder),
        layer=index, pool=pool, normalize=normalize, query_prompt="", text_prompt="",
        settings={"architecture": _deciding(architecture), "tokenizer": tokenizer_settings},
    )  # fmt: skip


def n_blocks(architecture: dict[str, Any], stack: str | None = None) -> int:
    """How many blocks a transformer, or one of its two stacks, has by its config.json; 0 where that does not say."""
    words: tuple[str, ...] = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
    if stack == "decoder":
        words = ("decoder_layers", "num_decoder_layers", *words)
    elif architecture.get("is_encoder_decoder"):
        words = ("encoder_layers", "num_layers", *words)
    return next((int(architecture[key]) for key in words if isinstance(architecture.get(key), int)), 0)


def digest_of_tokenizer(folder: Path) -> str:
    """SHA-256 of tokenizer.json, or of the vocabulary files where there is none."""
    if (folder / "tokenizer.json").is_file():
        return known_sha256(folder / "tokenizer.json")
    found = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise EncoderUnavailable(
            f"there is no tokenizer in {folder}: neither tokenizer.json nor a vocabulary"
        )
    lines = [f"{known_sha256(path)}  {path.name}\n" for path in found]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read(path: Path, kind: type, optional: bool = False) -> Any:
    """The JSON in ``path``, which must be of ``kind``; where it is optional and absent, an empty one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return kind()
        raise EncoderUnavailable(f"{path} is missing: the folder does not hold a whole model") from None
    except (OSError, ValueError) as error:
        raise EncoderUnavailable(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise EncoderUnavailable(f"{path} holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value


def _architecture(folder: Path) -> dict[str, Any]:
    architecture: dict[str, Any] = _read(folder / "config.json", dict)
    if "auto_map" in architecture:
        raise EncoderUnavailable(
            f"the model in {folder} needs Python code of its own, which embedstore never runs"
        )
    return architecture


def _module_kind(folder: Path, module: Any) -> str:
    name = str(module.get("type", "")) if isinstance(module, dict) else ""
    kind = name.rpartition(".")[2]
    if not name.startswith("sentence_transformers.") or kind not in _KNOWN_MODULES:
        raise EncoderUnavailable(
            f"modules.json in {folder} names the module {name!r}; supported are {', '.join(_KNOWN_MODULES)}"
            " of sentence_transformers"
        )
    return kind


def _module_settings(kind: str, folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = _read(folder / "config.json", dict, optional=kind in ("Normalize", "Dropout"))
    if kind != "Pooling":
        return settings if kind != "Normalize" else {}
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY_POOL_KEYS.items() if settings.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    return {"modes": modes, "include_prompt": bool(settings.get("include_prompt", True))}


def _prompts(config: dict[str, Any]) -> tuple[str, str]:
    """The prompts of queries and of texts to be stored, chosen as sentence-transformers chooses them."""
    prompts = config.get("prompts") or {}
    default = prompts.get(config.get("default_prompt_name") or "", "")
    query = prompts.get("query", default)
    text = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), default)
    return str(query or ""), str(text or "")


def _tokenizer_settings(folder: Path) -> dict[str, Any]:
    config = _read(folder / "tokenizer_config.json", dict, optional=True)
    return {key: config[key] for key in _TOKENIZER_SETTINGS if config.get(key) is not None}


def _deciding(architecture: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in architecture.items() if key not in _WITHOUT_EFFECT}


def _hidden_size(architecture: dict[str, Any], folder: Path) -> int:
    for key in ("hidden_size", "n_embd", "d_model", "dim"):
        if isinstance(architecture.get(key), int):
            return int(architecture[key])
    raise EncoderUnavailable(f"config.json in {folder} does not say how large its hidden states are")


def _positions(architecture: dict[str, Any]) -> int | None:
    for key in ("max_position_embeddings", "n_positions", "n_ctx"):
        if isinstance(architecture.get(key), int) and architecture[key] > 0:
            return int(architecture[key])
    return None


def _read_tokens(given: Any, tokenizer: dict[str, Any], architecture: dict[str, Any], folder: Path) -> int:
    """How many tokens sentence-transformers reads: its own setting, else the smaller of the two limits."""
    limits = [given, tokenizer.get("model_max_length"), _positions(architecture)]
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT]
    if isinstance(given, int) and given > 0:
        return given
    if not known:
        raise EncoderUnavailable(f"nothing in {folder} says how many tokens the model reads")
    return min(known)


def _hidden_tokens(
    given: int | None, tokenizer: dict[str, Any], architecture: dict[str, Any], folder: Path
) -> int:
    positions = _positions(architecture)
    if positions is not None and str(architecture.get("model_type")) in COUNT_FROM_PADDING:
        positions -= (
            int(architecture.get("pad_token_id", 1)) + 1
        )  # these count positions from behind the padding
    if given is not None:
        if given < 1 or (positions is not None and given > positions):
            raise InvalidInput(f"max_tokens is {given}; the model in {folder} has 1 to {positions} positions")
        return given
    reads = tokenizer.get("model_max_length")
    limits = [positions, int(reads) if isinstance(reads, int | float) and 0 < reads < _NO_LIMIT else None]
    known = [limit for limit in limits if limit is not None]
    if not known:
        raise EncoderUnavailable(
            f"nothing in {folder} says how many tokens the model reads; add max_tokens=512"
        )
    return min(known)


def _weights_files(folder: Path, kinds: list[str], folders: list[Path]) -> tuple[Path, ...]:
    """The safetensors files of the modules; pickled weights and missing weights are refused."""
    found: list[Path] = []
    for kind, place in zip(kinds, folders, strict=True):
        if kind not in ("Transformer", "Dense", "LayerNorm"):
            continue
        wanted = sorted(place.glob("model*.safetensors"))
        if not wanted:
            pickled = sorted(path.name for path in place.iterdir() if path.suffix in (".bin", ".pt", ".ckpt"))
            if pickled:
                raise EncoderUnavailable(
                    f"{place} holds its weights only as a pickle ({pickled[0]}), which can run code when"
                    " it is loaded; convert them to model.safetensors"
                )
            raise EncoderUnavailable(f"there is no model.safetensors in {place}")
        found += [path.relative_to(folder) for path in wanted]
    return tuple(found)
