"""Products of activations with weights in eight bits, as nodes of an ONNX graph.

Weights are whole numbers from -63 to 63 with one scale a column; activations whole numbers from -127 to 127 with one
scale a row, found when the graph runs. So a text's vector depends neither on the texts beside it nor on the padding.
Seven bits of the weights are used since processors without VNNI add two products in sixteen bits, which eight would
overflow: then the vectors would depend on the machine.

Source: per-row and per-column scales of Dettmers et al. 2022, arXiv:2208.07339, without its outliers.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

SCHEME = "int8: weights symmetric, 63 a column; activations symmetric, 127 a row; products in int32; embeddings float32"
"""What the fingerprint holds beside the weights; changed whenever the vectors would come out differently."""

_TOP_WEIGHT = 63
_TOP_ACTIVATION = 127
_OFFSET = 128
"""Activations are written as unsigned bytes, which is the only kind that onnxruntime's fast products take."""


class Graph(Protocol):
    """What writes nodes and constants."""

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """Add a constant and return its name."""

    def node(self, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """Add a node and return its first output's name."""


def quantised_weights(matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Whole numbers of the matrix's shape, and the scale of each column: ``matrix`` is about their product."""
    scales = np.abs(matrix).max(axis=0) / np.float32(_TOP_WEIGHT)
    scales[scales == 0] = 1
    return np.rint(matrix / scales).astype(np.int8), scales.astype(np.float32)


def write_constants(graph: Graph) -> None:
    """The constants that all products share."""
    graph.constant("int8.last_axis", np.array([-1], np.int64))
    graph.constant("int8.tiny", np.array(1e-30, np.float32))
    graph.constant("int8.share", np.array(1 / _TOP_ACTIVATION, np.float32))
    graph.constant("int8.offset", np.array(_OFFSET, np.float32))
    graph.constant("int8.zero", np.array(_OFFSET, np.uint8))


def quantise_rows(graph: Graph, name: str, x: str) -> tuple[str, str]:
    """Nodes that write ``x`` (..., n) as bytes, and the scale of each row (..., 1); their names."""
    from onnx import TensorProto

    graph.node("Abs", [x], [f"{name}.abs"])
    graph.node("ReduceMax", [f"{name}.abs", "int8.last_axis"], [f"{name}.largest"], keepdims=1)
    graph.node("Max", [f"{name}.largest", "int8.tiny"], [f"{name}.positive"])
    graph.node("Mul", [f"{name}.positive", "int8.share"], [f"{name}.row_scale"])
    graph.node("Div", [x, f"{name}.row_scale"], [f"{name}.scaled"])
    graph.node("Round", [f"{name}.scaled"], [f"{name}.rounded"])
    graph.node("Add", [f"{name}.rounded", "int8.offset"], [f"{name}.shifted"])
    return graph.node("Cast", [f"{name}.shifted"], [f"{name}.bytes"], to=TensorProto.UINT8), f"{name}.row_scale"


def product(graph: Graph, name: str, quantised: tuple[str, str], matrix: npt.NDArray[np.float32]) -> str:
    """Nodes for the product of quantised rows with ``matrix``; the name of the result, float32."""
    from onnx import TensorProto

    rows, row_scale = quantised
    weights, scales = quantised_weights(matrix)
    graph.node(
        "MatMulInteger", [rows, graph.constant(f"{name}.int8", weights), "int8.zero"], [f"{name}.whole"]
    )
    graph.node("Cast", [f"{name}.whole"], [f"{name}.float"], to=TensorProto.FLOAT)
    graph.node("Mul", [f"{name}.float", row_scale], [f"{name}.by_row"])
    return graph.node(
        "Mul", [f"{name}.by_row", graph.constant(f"{name}.scales", scales)], [f"{name}.product"]
    )
