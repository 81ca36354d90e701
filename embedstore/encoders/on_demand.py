"""Holds a model that is loaded when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Model = TypeVar("Model")


class OnDemand(Generic[Model]):
    """A model, loaded once by whoever asks first, and let go by ``close`` until somebody asks again."""

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._loaded: Model | None = None

    def get(self) -> Model:
        """The model; raises what loading it raises."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def close(self) -> None:
        """Let go of the memory that it holds."""
        with self._lock:
            self._loaded = None
