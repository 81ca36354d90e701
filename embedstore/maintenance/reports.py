"""What the maintenance commands report."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it was written.

    part: 'database', 'collection', 'record', 'space', 'vector', 'log' or 'cache'. name: which one. cached: whether it
    is only in a cache, which is made anew from the database by itself.
    """

    part: str
    name: str
    what: str

    @property
    def cached(self) -> bool:
        """Whether only a cache is damaged, so that nothing is lost."""
        return self.part == "cache"

    def __str__(self) -> str:
        return f"{self.part} {self.name}: {self.what}"


@dataclass(slots=True)
class VerifyReport:
    """What ``verify`` checked, and everything that it found wrong."""

    n_collections: int = 0
    n_records: int = 0
    n_spaces: int = 0
    n_vectors: int = 0
    n_cache_files: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def lost(self) -> list[Problem]:
        """The problems of the database itself, not of its caches."""
        return [problem for problem in self.problems if not problem.cached]

    def add(self, part: str, name: str, what: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(part, name, what))


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What ``compact`` removed, and the size of the database in bytes before and after."""

    n_log_rows: int
    n_cache_files: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True)
class BackupReport:
    """A backup: its file, its size in bytes, and the commit of the store that it holds."""

    path: str
    n_bytes: int
    commit: int
    n_collections: int
    n_records: int


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """A restored store: its folder, and the commit that it holds."""

    path: str
    commit: int
    n_collections: int
    n_records: int
    taken_at: str


@dataclass(slots=True)
class RepairReport:
    """What ``repair`` brought into the new store, and everything that it could not."""

    path: str
    n_collections: int = 0
    n_records: int = 0
    n_vectors: int = 0
    lost: list[Problem] = field(default_factory=list)
