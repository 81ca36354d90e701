"""Makes sources out of what a user gives: paths, folders, patterns, ``-``, tables and iterables."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.delimited import CellFormat, DelimitedFile
from embedstore.ingesting.sources.finding import files_of_folder, files_of_pattern
from embedstore.ingesting.sources.image_files import ImageFiles
from embedstore.ingesting.sources.json_records import JsonFile, JsonLines, standard_input
from embedstore.ingesting.sources.mappings import Mappings
from embedstore.ingesting.sources.source import Source, file_status
from embedstore.ingesting.sources.suffixes import (
    MATRIX_SUFFIXES,
    check_suffix,
    is_data,
    is_picture,
    is_text,
    readable_suffixes,
    split_suffix,
)
from embedstore.ingesting.sources.text_files import TextFile, TextFiles
from embedstore.pictures import SUFFIXES


@dataclass(frozen=True, slots=True)
class _Wishes:
    stdin: BinaryIO | None
    types: Mapping[str, str]
    keep_text: Collection[str]
    images: bool
    written: CellFormat


def open_sources(
    given: Sequence[Any],
    *,
    stdin: BinaryIO | None = None,
    types: Mapping[str, str] | None = None,
    keep_text: Collection[str] = (),
    images: bool = False,
    written: CellFormat | None = None,
) -> list[Source]:
    """The sources that ``given`` stands for, in order; nothing is read yet but folders and headers of tables.

    given: paths (a file, a folder, a glob pattern), "-" for JSON lines on ``stdin``, pandas DataFrames, Arrow
    tables, batches and readers, iterables of mappings.
    types: "text", "integer", "number" or "boolean" by column, for CSV and TSV, instead of what the cells say.
    keep_text: columns of CSV and TSV that stay text whatever their cells say, in the files that have them.
    written: how CSV and TSV files are written, where that is not as usual.
    images: of folders, take the pictures and nothing else; without it, where there is nothing else.
    Raises InvalidInput for what cannot be a source, and where two text files would have one key.
    """
    if isinstance(given, (str, bytes, os.PathLike, Mapping)):
        raise InvalidInput(f"sources must be given as a list, not as one {type(given).__name__}")
    usual = CellFormat()
    wishes = _Wishes(stdin, types or {}, keep_text, images, written or usual)
    sources: list[Source] = []
    for item in given:
        sources += _sources_of(item, wishes)
    if sum(item == "-" for item in given if isinstance(item, str)) > 1:
        raise InvalidInput("'-' is given twice; standard input can be read once")
    if types and not any(isinstance(source, DelimitedFile) for source in sources):
        raise InvalidInput("types are for the columns of CSV and TSV files; there is no such file here")
    if wishes.written != usual and not any(isinstance(source, DelimitedFile) for source in sources):
        raise InvalidInput("delimiter, columns and encoding are for CSV and TSV files; there is no such file here")
    _check_file_keys([source for source in sources if isinstance(source, (TextFiles, ImageFiles))])
    return sources


def _sources_of(item: Any, wishes: _Wishes) -> Sequence[Source]:
    if isinstance(item, (str, os.PathLike)):
        path = os.fsdecode(os.fspath(item))
        return [standard_input(wishes.stdin)] if item == "-" else _path_sources(path, wishes)
    if isinstance(item, Mapping):
        raise InvalidInput("a mapping is no source; give one record as a list of one mapping")
    pandas = sys.modules.get("pandas")  # what is not imported has made no object
    if pandas is not None and isinstance(item, pandas.DataFrame):
        from embedstore.ingesting.sources.frames import Frame

        return [Frame(item)]
    if hasattr(item, "__arrow_c_stream__") or hasattr(item, "__arrow_c_array__"):
        from embedstore.ingesting.sources.arrow_tables import arrow_table

        return [arrow_table(item)]
    if isinstance(item, Iterable) and not isinstance(item, (bytes, bytearray, memoryview)):
        return [Mappings(item)]
    raise InvalidInput(
        f"{type(item).__name__} is no source; give a path, '-', a DataFrame, an Arrow table or an iterable of mappings"
    )


def _path_sources(path: str, wishes: _Wishes) -> Sequence[Source]:
    if os.path.isdir(path):
        return _folder_sources(path, wishes)
    if os.path.lexists(path) or not glob.has_magic(path):
        return [_file_source(path, wishes)]
    folder, found = files_of_pattern(path)
    texts = [file for file in found if is_text(file)]
    pictures = [file for file in found if is_picture(file)]
    sources: list[Source] = [_text_files(path, folder, texts)] if texts else []
    if pictures:
        sources.append(_image_files(path, folder, pictures))
    rest = [file for file in found if not is_text(file) and not is_picture(file)]
    return sources + [_file_source(file, wishes) for file in rest]


def _folder_sources(folder: str, wishes: _Wishes) -> Sequence[Source]:
    found = [os.path.join(folder, file) for file in files_of_folder(folder)]
    texts = [file for file in found if is_text(file)]
    records = [file for file in found if is_data(file)]
    pictures = [file for file in found if is_picture(file)]
    if pictures and (wishes.images or not (texts or records)):
        return [_image_files(folder, folder, pictures)]
    if wishes.images:
        raise InvalidInput(f"the folder {folder!r} holds no pictures; their names end in {', '.join(SUFFIXES)}")
    if texts:
        return [_text_files(folder, folder, texts, left_out=[*records, *pictures])]
    if not records:
        raise InvalidInput(
            f"the folder {folder!r} holds no file that can be read; their names end in {readable_suffixes()}"
        )
    return [_file_source(file, wishes) for file in records]


def _text_files(name: str, folder: str, paths: Sequence[str], left_out: Sequence[str] = ()) -> TextFiles:
    files = []
    for path in paths:
        key = os.path.relpath(path, folder or os.curdir).replace(os.sep, "/")
        files.append(TextFile(key, path, split_suffix(path)[1]))
    return TextFiles(name, files, left_out)


def _image_files(name: str, folder: str, paths: Sequence[str]) -> ImageFiles:
    return ImageFiles(name, folder or os.curdir, paths)


def _file_source(path: str, wishes: _Wishes) -> Source:
    if not stat.S_ISREG(file_status(path).st_mode):
        raise InvalidInput(f"{path!r} is no file; pipe JSON lines into '-' instead")
    if is_picture(path):
        return _image_files(path, os.path.dirname(path), [path])
    check_suffix(path)
    suffix, compression = split_suffix(path)
    if suffix in (".csv", ".tsv"):
        return DelimitedFile(
            path,
            delimiter="\t" if suffix == ".tsv" else ",",
            compression=compression,
            types=wishes.types,
            keep_text=wishes.keep_text,
            written=wishes.written,
        )
    if suffix == ".json":
        return JsonFile(path, compression=compression)
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path, compression=compression)
    if suffix == ".parquet":
        from embedstore.ingesting.sources.parquet import ParquetTable

        return ParquetTable(path)
    if suffix in (".arrow", ".feather", ".ipc"):
        from embedstore.ingesting.sources.arrow_files import ArrowFile

        return ArrowFile(path)
    if suffix in MATRIX_SUFFIXES:
        from embedstore.ingesting.sources.npy_files import NpyFile

        return NpyFile(path)
    return _text_files(path, os.path.dirname(path), [path])


def _check_file_keys(sources: Sequence[TextFiles | ImageFiles]) -> None:
    paths: dict[str, str] = {}
    for source in sources:
        for file in source.files:
            if file.key in paths:
                raise InvalidInput(
                    f"{paths[file.key]!r} and {file.path!r} would have the same key {file.key!r}; give the"
                    " folder that holds both, so that the keys differ"
                )
            paths[file.key] = file.path
