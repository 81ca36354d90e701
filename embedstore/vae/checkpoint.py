"""Keeps an unfinished training on disk: weights and moments as safetensors, the rest as JSON; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from embedstore.errors import InvalidInput, TrainingFailed
from embedstore.storage.files import make_private, replace_file, sync_folder
from embedstore.storage.locks import ProcessLock

_TENSORS, _STATE = "checkpoint.safetensors", "checkpoint.json"
_LOCK = "training.lock"
_OURS = (_TENSORS, _STATE, "pixels", "features")
_KINDS = ("weights", "best", "moments")


class OtherTraining(InvalidInput):
    """An interrupted training is in the way of another one."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a training stands after an epoch: weights, the best of them, the optimizer's moments, and numbers."""

    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    state: dict[str, Any]


def write_checkpoint(folder: Path, identity: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the one before; a crash leaves the one or the other."""
    from safetensors.torch import save

    make_private(folder)
    parts = zip(_KINDS, (checkpoint.weights, checkpoint.best_weights, checkpoint.moments), strict=True)
    tensors = {
        f"{kind}/{name}": value.detach().cpu().contiguous() for kind, given in parts for name, value in given.items()
    }
    body = save(tensors)
    replace_file(folder / _TENSORS, body)
    note = {"identity": dict(identity), "sha256": hashlib.sha256(body).hexdigest(), "state": checkpoint.state}
    replace_file(folder / _STATE, json.dumps(note).encode())
    sync_folder(folder)


def read_checkpoint(folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The checkpoint of the same training; None where there is none, or none that is whole.

    Raises OtherTraining where it is of another training, which is left as it is.
    """
    from safetensors.torch import load

    try:
        note = json.loads((folder / _STATE).read_bytes())
        body = (folder / _TENSORS).read_bytes()
        whole = hashlib.sha256(body).hexdigest() == note["sha256"]
        state, held = note["state"], note["identity"]
        wanted = json.loads(json.dumps(dict(identity)))
        differing = sorted(_differing(held, wanted)) if whole else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not whole:
        return None
    if differing:
        raise OtherTraining(
            f"{folder} holds an interrupted training that was begun with other {', '.join(differing)}; call it again as"
            " then to go on with it, or delete that folder to begin anew"
        )
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, value in load(body).items():
        kind, _, rest = name.partition("/")
        found[kind][rest] = value
    return Checkpoint(found["weights"], found["best"], found["moments"], state)


def _differing(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[str]:
    """The names of what differs between two identities; of nested objects, of what differs inside."""
    found: set[str] = set()
    for name in held.keys() | wanted.keys():
        one, other = held.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= _differing(one, other)
        elif one != other:
            found.add(name)
    return found


@contextmanager
def training_folder(target: Path) -> Iterator[Path]:
    """The folder of an unfinished training beside its ``target``, for one process; gone when the block ends well.

    Raises InvalidInput where something that is no such folder has its name, StoreLocked while another process trains.
    """
    folder = target.with_name(f"{target.name}.training")
    if os.path.lexists(folder) and not (folder.is_dir() and not folder.is_symlink() and _is_ours(folder)):
        raise InvalidInput(
            f"{folder} is in the way: an unfinished training would lie there; move it, or give another --out"
        )
    make_private(folder)
    with ProcessLock(folder / _LOCK).held(0.0):
        try:
            yield folder
        except OtherTraining:
            raise
        except (InvalidInput, TrainingFailed):
            _clear(folder)  # there is nothing to go on with
            raise
        _clear(folder)


def _clear(folder: Path) -> None:
    for path in (*(folder / name for name in (*_OURS, _LOCK)), *folder.glob("*.tmp")):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # what somebody else put there stays
        folder.rmdir()


def _is_ours(folder: Path) -> bool:
    """Whether a folder is empty, or one in which a training began."""
    names = {path.name for path in folder.iterdir()}
    return not names or _LOCK in names
