"""Imports OpenVINO without its telemetry: embedstore sends nothing to anybody, and leaves no client id behind.

Without this, ``import openvino`` alone writes an id below the home folder and reports the import to Google Analytics
unless a file there says no.
"""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

_TELEMETRY = "openvino_telemetry"
_lock = threading.Lock()


def load_openvino() -> Any:
    """The module ``openvino``. It finds no package for telemetry while it is imported, and takes its own empty one.

    Raises ImportError where OpenVINO is not installed or cannot be loaded.
    """
    with _lock:
        hidden = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
        if hidden:
            sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            return importlib.import_module("openvino")
        finally:
            if hidden:
                del sys.modules[_TELEMETRY]
