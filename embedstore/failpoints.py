"""Named steps of the protocols at which a test can end the process, as kill -9 or a power switch would.

``EMBEDSTORE_FAILPOINT=name:n`` kills the process with SIGKILL when it reaches ``name`` for the n-th time; ``n`` is 1
where it is left out. Where the variable is not set, ``reach`` is an empty function.
"""

from __future__ import annotations

import os
import signal
import threading

from embedstore.errors import InvalidInput

NAMES = (
    # a new store
    "create.folder", "create.file", "create.tables", "create.committed",
    # one write
    "write.locked", "write.begun", "write.records", "write.vectors", "write.finished", "write.committed",
    "write.head", "checkpoint.begun", "checkpoint.done", "close.checkpointed",
    # the cache of a space, and of keywords
    "cache.begun", "cache.bytes_synced", "cache.file_renamed", "cache.exact", "cache.labels", "cache.index",
    "cache.manifest_synced", "cache.manifest_renamed", "cache.swept",
    "keywords.begun", "keywords.filled", "keywords.committed", "keywords.checkpointed", "keywords.sealed",
    # tables of an older release
    "migrate.locked", "migrate.backed_up", "migrate.migrated", "migrate.committed",
    # compact
    "compact.begun", "compact.pruned", "compact.committed", "compact.vacuumed", "compact.swept",
    # backup, restore, repair
    "backup.begun", "backup.copied", "backup.archived", "backup.renamed",
    "restore.begun", "restore.copied", "restore.renamed",
    "repair.begun", "repair.batch", "repair.renamed",
)  # fmt: skip
"""Every failpoint there is."""


def _nothing(name: str) -> None:
    """Reach a step: nothing happens."""


class _Armed:
    """Counts how often the chosen step is reached, in all threads, and ends the process at the n-th time."""

    def __init__(self, setting: str) -> None:
        self._name, _, times = setting.partition(":")
        if self._name not in NAMES or not (times or "1").isdecimal() or int(times or 1) < 1:
            raise InvalidInput(f"EMBEDSTORE_FAILPOINT is {setting!r}; it must be NAME or NAME:N, N from 1 on")
        self._left = int(times or 1)
        self._guard = threading.Lock()

    def __call__(self, name: str) -> None:
        if name != self._name:
            return
        with self._guard:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


_setting = os.environ.get("EMBEDSTORE_FAILPOINT")
reach = _Armed(_setting) if _setting else _nothing
