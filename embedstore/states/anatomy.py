"""Finds the parts of a transformer of the library ``transformers``: its blocks, what they add, and its last norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedstore.errors import EncoderUnavailable, InvalidInput

_FINAL_NORMS = (
    "norm", "final_layer_norm", "ln_f", "final_layernorm", "final_norm", "norm_f", "emb_layer_norm_after", "layer_norm",
    "LayerNorm", "layernorm", "ln",
)  # fmt: skip
_NO_FINAL_NORM = ("deberta", "deberta-v2")  # whose norm of that name is of relative positions
_ATTENTION_OUTPUTS = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attention.output.dense", "attention.o_proj",
    "attention.dense", "attention.out_lin", "attention.out_proj", "attention.attention.out_proj", "attn.c_proj",
    "attn.out_proj", "attn.attention.out_proj", "attn.Wo", "attn.o_proj", "self_attention.dense",
    "layer.0.SelfAttention.o", "attention.self.out_proj",
)  # fmt: skip
_MLP_OUTPUTS = (
    "mlp.down_proj", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "mlp.Wo", "mlp.dense_4h_to_h", "feed_forward.down_proj",
    "output.dense", "fc2", "ffn.lin2", "layer.-1.DenseReluDense.wo", "mlp", "block_sparse_moe",
)  # fmt: skip
_NORMED_AFTER = "post_feedforward_layernorm"
"""Of blocks that bring what they add to a norm first, attention's being ``post_attention_layernorm``."""
_COUNTS = (
    "num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "num_decoder_layers",
)  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The parts of one stack of blocks.

    attention, mlp: the modules whose output, times ``share``, a block adds to the stream, by block; heads: those whose
    input are the heads side by side; None where they are not known. final_norm: None where the last block's output is
    the model's.
    """

    where: str
    blocks: Any
    final_norm: Any
    attention: tuple[Any, ...] | None
    mlp: tuple[Any, ...] | None
    heads: tuple[Any, ...] | None
    share: float
    n_heads: int
    dim: int

    @property
    def n_layers(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    def require(self, site: str) -> tuple[Any, ...]:
        """The modules of 'attention', 'mlp' or 'head', a block each; InvalidInput where they are not known."""
        found = {"attention": self.attention, "mlp": self.mlp, "head": self.heads}[site]
        if found is None:
            kind = type(self.blocks[0]).__name__
            raise InvalidInput(f"where a block of {self.where} ({kind}) has its {site!r} is not known; take 'hidden'")
        return found


def anatomy_of(network: Any, where: str, stack: str | None = None) -> Anatomy:
    """The parts of a model without a head, or of one stack of it; EncoderUnavailable where there are no blocks."""
    from torch import nn

    config = network.config
    wanted = {value for name in _COUNTS if isinstance(value := getattr(config, name, None), int)}
    found = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in wanted
        and len({type(block) for block in module}) == 1
    ]  # fmt: skip
    if not found:
        counts = ", ".join(map(str, sorted(wanted)))
        raise EncoderUnavailable(f"{where} ({type(network).__name__}) has no list of {counts} blocks of one kind")
    name, blocks = min(found, key=lambda one: one[0].count("."))
    outputs, normed = _outputs(blocks, _ATTENTION_OUTPUTS), _outputs(blocks, (_NORMED_AFTER,))
    own = ("decoder_attention_heads",) if stack == "decoder" else ("encoder_attention_heads",)
    return Anatomy(
        where, blocks, _final_norm(network, name),
        outputs if normed is None else _outputs(blocks, ("post_attention_layernorm",)),
        _outputs(blocks, _MLP_OUTPUTS) if normed is None else normed, outputs,
        float(getattr(blocks[0], "residual_multiplier", 1.0)),
        _number(config, *(own if stack is not None else ()), *_HEADS, *own),
        _number(config, "hidden_size", "n_embd", "d_model", "dim"),
    )  # fmt: skip


def _final_norm(network: Any, blocks_name: str) -> Any:
    """The norm behind the last block, which stands beside the blocks, or beside what holds them."""
    from torch import nn

    if getattr(network.config, "model_type", "") in _NO_FINAL_NORM:
        return None
    holder = blocks_name.rpartition(".")[0]
    for place in dict.fromkeys((holder, holder.rpartition(".")[0])):
        part = network.get_submodule(place)
        for one in _FINAL_NORMS:
            if isinstance(getattr(part, one, None), nn.Module):
                return getattr(part, one)
    return None


def _outputs(blocks: Any, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    for name in names:
        found = [_submodule(block, name) for block in blocks]
        if all(one is not None for one in found):
            return tuple(found)
    return None


def _submodule(module: Any, path: str) -> Any:
    for part in path.split("."):
        if part == "-1":
            module = list(module)[-1] if len(list(module.children())) else None
        else:
            module = getattr(module, part, None) if not part.isdigit() else module[int(part)]
        if module is None:
            return None
    return module


def _number(config: Any, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0
