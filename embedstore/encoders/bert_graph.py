"""An ONNX graph of a BERT encoder, written from its safetensors with onnxruntime's fused operators.

Attention, and bias with GELU, are one operator each, so nothing is left to optimise when the graph is opened, and no
torch is needed to write it. Weights lie outside the graph in one file that onnxruntime maps into memory.

Source: the layers of Devlin et al. 2018, arXiv:1810.04805, as transformers' BertModel computes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.encoders import int8_products
from embedstore.encoders.model_folder import TextModel

WEIGHTS_FILE = "weights.bin"
_FUSED = "com.microsoft"
_OPSET = 18
_PARTS = ("query", "key", "value")


def is_possible(model: TextModel) -> bool:
    """Whether the model is a plain BERT with a pooling that the graph knows."""
    said = model.architecture
    return (
        said.get("model_type") == "bert"
        and said.get("hidden_act") == "gelu"
        and said.get("position_embedding_type", "absolute") == "absolute"
        and not said.get("is_decoder", False)
        and model.modules
        in (("Transformer",), ("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize"))
        and model.pool in ("mean", "first", "max")
        and [path.name for path in model.weights_files] == ["model.safetensors"]
    )


def write_bert_graph(model: TextModel, folder: Path, *, int8: bool = False) -> Path:
    """Write ``model.onnx`` and its weights into ``folder`` and return the graph's path.

    Inputs input_ids and attention_mask, int64 (n_texts, n_tokens), padded on the right;
    output sentence_embedding, float32 (n_texts, dim).
    int8: whether the dense layers multiply in eight bits, as ``int8_products`` says.
    Raises KeyError or ValueError where the weights are not those of a BERT.
    """
    import onnx

    graph = _Graph(model, int8)
    proto = graph.finish()
    path = folder / "model.onnx"
    onnx.save_model(
        proto, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=WEIGHTS_FILE,
        size_threshold=1024,
    )  # fmt: skip
    return path


class _Graph:
    """The nodes and weights of one graph under construction."""

    def __init__(self, model: TextModel, int8: bool = False) -> None:
        from safetensors.numpy import load_file

        self.model = model
        self.int8 = int8
        weights = load_file(str(model.folder / model.weights_files[0]))
        prefix = "bert." if "bert.embeddings.word_embeddings.weight" in weights else ""
        self.weights = {name.removeprefix(prefix): value for name, value in weights.items()}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.epsilon = float(model.architecture.get("layer_norm_eps", 1e-12))
        self.n_heads = int(model.architecture["num_attention_heads"])
        n_layers = int(model.architecture["num_hidden_layers"])
        self.n_layers = n_layers if model.layer is None else model.layer

    def weight(self, name: str) -> npt.NDArray[np.float32]:
        return self.weights[name].astype(np.float32, copy=False)

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs[0]

    def finish(self) -> Any:
        from onnx import TensorProto, helper

        if self.int8:
            int8_products.write_constants(self)
        x = self.embeddings()
        for layer in range(self.n_layers):
            x = self.layer(layer, x)
        self.pooled(x)
        size, value = ["n_texts", "n_tokens"], helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "bert",
            [value("input_ids", TensorProto.INT64, size), value("attention_mask", TensorProto.INT64, size)],
            [value("sentence_embedding", TensorProto.FLOAT, ["n_texts", self.model.dim])],
            self.constants,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_FUSED, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)

    def embeddings(self) -> str:
        """Word, position and type embeddings with their layer norm; also the lengths, as ``n_read``."""
        from onnx import TensorProto

        self.node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT32)
        self.node("Cast", ["attention_mask"], ["mask"], to=TensorProto.INT32)
        # One text has tokens of type 0 only, so that row is added to every position once and for all.
        positions = self.weight("embeddings.position_embeddings.weight")
        positions = positions + self.weight("embeddings.token_type_embeddings.weight")[0]
        self.node(
            "EmbedLayerNormalization",
            ["ids", "", self.constant("words", self.weight("embeddings.word_embeddings.weight")),
             self.constant("positions", positions), "", *self.norm("embeddings.LayerNorm"), "mask"],
            ["hidden_0", "n_read"], domain=_FUSED, epsilon=self.epsilon,
        )  # fmt: skip
        return "hidden_0"

    def layer(self, index: int, x: str) -> str:
        """One transformer layer on ``x`` of shape (n_texts, n_tokens, dim)."""
        name = f"encoder.layer.{index}"
        attended = self.attended_int8(name, x) if self.int8 else self.attended(name, x)
        between = self.residual(f"{name}.attention.output", attended, x)
        product = self.product(f"{name}.intermediate.dense", between)
        bias = self.constant(f"{name}.gelu_bias", self.weight(f"{name}.intermediate.dense.bias"))
        inner = self.node("BiasGelu", [product, bias], [f"{name}.inner"], domain=_FUSED)
        return self.residual(f"{name}.output", inner, between)

    def attended(self, name: str, x: str) -> str:
        """Attention of all heads, one after the other: (n_texts, n_tokens, dim)."""
        parts = [f"{name}.attention.self.{part}" for part in _PARTS]
        weights = np.concatenate([self.weight(f"{part}.weight").T for part in parts], axis=1)  # (dim, 3 dim)
        return self.node(
            "Attention",
            [x, self.constant(f"{name}.qkv", weights), self.qkv_bias(name), "n_read"],
            [f"{name}.attended"], domain=_FUSED, num_heads=self.n_heads,
        )  # fmt: skip

    def attended_int8(self, name: str, x: str) -> str:
        """The same, with queries, keys and values from products in eight bits."""
        quantised = int8_products.quantise_rows(self, name, x)
        parts = [f"{name}.attention.self.{part}" for part in _PARTS]
        products = [int8_products.product(self, part, quantised, self.weight(f"{part}.weight").T) for part in parts]
        return self.node(
            "MultiHeadAttention", [*products, self.qkv_bias(name), "n_read"], [f"{name}.attended"],
            domain=_FUSED, num_heads=self.n_heads,
        )  # fmt: skip

    def qkv_bias(self, name: str) -> str:
        biases = [self.weight(f"{name}.attention.self.{part}.bias") for part in _PARTS]
        return self.constant(f"{name}.qkv_bias", np.concatenate(biases))

    def product(self, name: str, x: str) -> str:
        weights = self.weight(f"{name}.weight").T
        if self.int8:
            return int8_products.product(self, name, int8_products.quantise_rows(self, name, x), weights)
        return self.node("MatMul", [x, self.constant(f"{name}.matrix", weights)], [f"{name}.product"])

    def residual(self, name: str, x: str, skipped: str) -> str:
        """LayerNorm(dense(x) + skipped)."""
        product = self.product(f"{name}.dense", x)
        bias = self.constant(f"{name}.bias", self.weight(f"{name}.dense.bias"))
        self.node("Add", [product, skipped], [f"{name}.skipped"])
        self.node("Add", [f"{name}.skipped", bias], [f"{name}.biased"])
        # onnxruntime's SkipLayerNormalization does all three in one, without vector instructions: six times slower.
        return self.node(
            "LayerNormalization", [f"{name}.biased", *self.norm(f"{name}.LayerNorm")], [f"{name}.normed"],
            epsilon=self.epsilon, axis=-1,
        )  # fmt: skip

    def norm(self, name: str) -> list[str]:
        return [self.constant(f"{name}.{part}", self.weight(f"{name}.{part}")) for part in ("weight", "bias")]

    def pooled(self, x: str) -> None:
        """Reduce (n_texts, n_tokens, dim) to ``sentence_embedding`` of shape (n_texts, dim)."""
        from onnx import TensorProto

        one = self.constant("axis_1", np.array([1], np.int64))
        if self.model.pool == "first":
            vector = self.node(
                "Gather", [x, self.constant("zero", np.array(0, np.int64))], ["pooled"], axis=1
            )
        elif self.model.pool == "max":
            self.node("Cast", ["attention_mask"], ["is_read"], to=TensorProto.BOOL)
            self.node(
                "Unsqueeze", ["is_read", self.constant("axis_2", np.array([2], np.int64))], ["is_read_3"]
            )
            lowest = self.constant("lowest", np.array(-np.inf, np.float32))
            self.node("Where", ["is_read_3", x, lowest], ["masked"])
            vector = self.node("ReduceMax", ["masked", one], ["pooled"], keepdims=0)
        else:
            self.node("Cast", ["attention_mask"], ["weight"], to=TensorProto.FLOAT)
            self.node("Unsqueeze", ["weight", one], ["weight_3"])  # (n_texts, 1, n_tokens)
            self.node("MatMul", ["weight_3", x], ["sum_3"])
            self.node("Squeeze", ["sum_3", one], ["sum"])
            self.node("ReduceSum", ["weight", one], ["n_summed"], keepdims=1)
            vector = self.node("Div", ["sum", "n_summed"], ["pooled"])
        if self.model.normalize:
            self.node("LpNormalization", [vector], ["sentence_embedding"], axis=1, p=2)
        else:
            self.node("Identity", [vector], ["sentence_embedding"])
