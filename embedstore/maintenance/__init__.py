"""What keeps a store sound: verify, compact, backup, restore, repair."""

from embedstore.maintenance.reports import (
    BackupReport,
    CompactReport,
    Problem,
    RepairReport,
    RestoreReport,
    VerifyReport,
)

__all__ = ["BackupReport", "CompactReport", "Problem", "RepairReport", "RestoreReport", "VerifyReport"]
