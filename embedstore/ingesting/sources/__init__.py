"""Readers: files, folders, pipes, tables and iterables as sources of rows."""

from embedstore.ingesting.sources.delimited import DelimitedFile
from embedstore.ingesting.sources.image_files import ImageFiles
from embedstore.ingesting.sources.opening import open_sources
from embedstore.ingesting.sources.source import OnError, Source, SourceRow
from embedstore.ingesting.sources.text_files import TextFiles

__all__ = ["DelimitedFile", "ImageFiles", "OnError", "Source", "SourceRow", "TextFiles", "open_sources"]
