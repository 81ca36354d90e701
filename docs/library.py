"""The text of ``docs/library.md``: every public name of the library with its signature and docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import embedstore
from embedstore import errors, model, probing
from embedstore.searching.tuning import TuningReport

INTERNAL = {
    "Store": {
        "forget_parent", "begin_build", "builds_in_background", "is_ready", "exists", "reading", "ensure", "require",
        "encoder_of", "allows_network", "load_encoder", "existing_collection",
    },
    "Collection": {
        "preparer", "vector_checker", "create", "store", "defaults", "modalities_read", "embeds_bytes", "encoder",
        "spaces_changed", "layout", "refresh_or_warn",
    },
    "Space": {"belongs_to", "space_id", "root", "collection", "store", "places"},
    "Vector": {"space_id"},
}  # fmt: skip
"""What other parts of the package use of a class, and users need not know."""
CLASSES = ("Store", "Collection", "Space", "Vector", "Hits", "Hit", "Record", "WriteReport", "Neighbours")

_HEAD = """\
# Library reference

This page is generated: `make docs` writes it from the docstrings. What they are good for, with examples, is in the
[tutorial](tutorial.md) and the how-to pages. `import embedstore` brings in all of it but `embedstore.probing`.
"""


def page() -> str:
    """The text of the page."""
    parts = [_HEAD, *map(_function, ("open", "repair", "restore")), *map(_class, CLASSES), _reports(), _probing()]
    return "\n".join([*parts, _errors()])


def _function(name: str) -> str:
    return _entry(f"embedstore.{name}", getattr(embedstore, name), level=2)


def _class(name: str) -> str:
    kind = _named(name)
    lines = [f"## {name}\n", _markdown(inspect.getdoc(kind) or "")]
    for member, value in _members(kind):
        lines.append(_entry(member, value, level=3))
    return "\n".join(lines)


def _named(name: str) -> type:
    found: type = getattr(embedstore, name) if name in embedstore.__all__ else getattr(model, name)
    return found


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    hidden = INTERNAL.get(kind.__name__, set())
    fields = {one.name for one in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for name, value in vars(kind).items():
        if name.startswith("_") or name in hidden or name in fields or not (callable(value) or _is_property(value)):
            continue
        yield name, value


def _is_property(value: Any) -> bool:
    return isinstance(value, property) or type(value).__name__ in ("once", "cached_property")


def _reports() -> str:
    names = ["BackupReport", "CompactReport", "RepairReport", "RestoreReport", "VerifyReport", "Problem"]
    lines = ["## Reports\n", "What long work says of itself.\n"]
    for kind in (*(getattr(embedstore, name) for name in names), TuningReport):
        lines.append(f"### {kind.__name__}\n\n{_markdown(_own_doc(kind))}")
        lines.append("Fields: " + ", ".join(f"`{one.name}`" for one in dataclasses.fields(kind)) + ".\n")
    return "\n".join(lines)


def _probing() -> str:
    lines = ["## embedstore.probing\n", _markdown(inspect.getdoc(probing) or "")]
    for name in sorted(probing.__all__):
        value = getattr(probing, name)
        if inspect.isfunction(value):
            lines.append(_entry(f"probing.{name}", value, level=3))
    for name in sorted(probing.__all__):
        value = getattr(probing, name)
        if inspect.isclass(value):
            lines.append(f"### probing.{name}\n\n{_markdown(_own_doc(value))}")
            for member, inner in _members(value):
                lines.append(_entry(f"{name}.{member}", inner, level=4))
    return "\n".join(lines)


def _errors() -> str:
    lines = ["## Errors\n", "| error | exit code | when |", "|---|---|---|"]
    for name in sorted(embedstore.__all__):
        kind = getattr(errors, name, None)
        if inspect.isclass(kind) and issubclass(kind, errors.EmbedstoreError):
            line = " ".join(_own_doc(kind).split("\n\n")[0].split())
            lines.append(f"| `{name}` | {kind.exit_code} | {_markdown(line).strip().replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _own_doc(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _entry(name: str, value: Any, *, level: int) -> str:
    doc = _markdown(inspect.getdoc(value) or "")
    if _is_property(value):
        return f"{'#' * level} {name}\n\n{doc}"
    return f"{'#' * level} {name}\n\n`{_signature(name, value)}`\n\n{doc}"


def _signature(name: str, value: Any) -> str:
    """A call as a user writes it, with the defaults, and what comes back."""
    function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    signature = inspect.signature(function)
    shown = []
    starred = False
    for one in signature.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        mark = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        starred = starred or mark == "*"
        shown.append(f"{mark}{one.name}" + ("" if one.default is one.empty else f"={_default(one.default)}"))
    back = signature.return_annotation
    returned = "" if back in (inspect.Signature.empty, "None", None) else f" -> {back}"
    return f"{name.split('.')[-1]}({', '.join(shown)}){returned}"


def _default(value: Any) -> str:
    if hasattr(value, "value") and isinstance(value.value, str):
        return repr(value.value)
    shown = repr(value)
    return "..." if " at 0x" in shown else shown


def _markdown(text: str) -> str:
    """A docstring as Markdown."""
    parts = re.split(r"(``.+?``)", text)  # what is code is at every second place
    return "".join(f"`{part[2:-2]}`" if at % 2 else part.replace("<", "&lt;") for at, part in enumerate(parts)) + "\n"
