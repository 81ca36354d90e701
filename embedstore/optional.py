"""Packages that only some users need: the one place that imports them or says what to install."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
from types import ModuleType
from typing import Any

from embedstore.errors import MissingDependency
from embedstore.forking import not_forking
from embedstore.wording import first_line


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``; where it is absent, ``MissingDependency`` names the pip line of ``extra``."""
    try:
        with not_forking:
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"{module} is needed here and cannot be imported ({error}); install it, in"
            f" embedstore's checkout, with: pip install '.[{extra}]'"
        ) from error


def faiss_distributions() -> list[str]:
    """The installed distributions that provide the module ``faiss``, sorted."""
    names = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
    found = []
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def faiss_problem() -> str | None:
    """What is wrong with the FAISS installation, in one line with its remedy; None where all is well."""
    found = faiss_distributions()
    if len(found) > 1:
        keep = next(name for name in ("faiss-gpu-cuvs", "faiss-gpu", "faiss-cpu") if name in found)
        drop = " ".join(name for name in found if name != keep)
        return (
            f"{' and '.join(found)} are both installed and overwrite each other's module 'faiss'; repair with:"
            f" pip uninstall -y {drop} && pip install --force-reinstall --no-deps {keep}"
        )
    if not found and importlib.util.find_spec("faiss") is None:
        return "FAISS is not installed; install it with: pip install faiss-cpu (or faiss-gpu)"
    return None


@functools.cache
def load_faiss() -> Any:
    """The module ``faiss``; ``MissingDependency`` where it is absent, lacks a library, or two builds are there."""
    with not_forking:
        problem = faiss_problem()
        if problem is not None:
            raise MissingDependency(problem)
        try:
            return importlib.import_module("faiss")
        except (ImportError, RuntimeError, OSError) as error:
            # The wheels for GPUs load libraries of other packages.
            what = " and ".join(faiss_distributions()) or "FAISS"
            raise MissingDependency(f"{what} cannot be imported: {first_line(error)}") from error
