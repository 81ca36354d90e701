"""Imports ONNX Runtime with its telemetry off: embedstore sends nothing to anybody, and leaves no device id behind."""

from __future__ import annotations

import os
from typing import Any


def load_onnxruntime() -> Any:
    """The module ``onnxruntime``. Its telemetry reads the variable when the library is loaded, so it is set before."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime
