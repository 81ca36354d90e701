"""Brings files, folders, tables and iterables into a collection."""

from embedstore.ingesting.options import IngestOptions, Progress
from embedstore.ingesting.pipeline import ingest

__all__ = ["IngestOptions", "Progress", "ingest"]
