"""Reads, encodes and writes side by side: one thread reads, the caller's encodes, one commits.

Batches are bounded by what they hold, and so is the number under way, so memory stays flat for any input. Every batch
is one commit: an interrupted ingest that is run again finds what is there and goes on.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from embedstore.errors import EmbedstoreError, InvalidInput, InvalidRecord
from embedstore.forking import once
from embedstore.ingesting.chunks import ChunkCutter, check_parents, drop_stale_chunks
from embedstore.ingesting.job import IngestJob
from embedstore.ingesting.keys import ContentKeys, SeenKeys
from embedstore.ingesting.options import (
    KEY_FIELDS,
    TEXT_FIELDS,
    FieldMap,
    IngestOptions,
    Progress,
    choose_fields,
)
from embedstore.ingesting.origins import Origins
from embedstore.ingesting.progress import ProgressLine
from embedstore.ingesting.rejects import Rejects
from embedstore.ingesting.sources import DelimitedFile, ImageFiles, Source, open_sources
from embedstore.ingesting.sources.source import refuse
from embedstore.model import Modality, WriteReport
from embedstore.pictures import Picture
from embedstore.records import Batch, Preparer
from embedstore.storage.database import Transaction
from embedstore.storing.committing import commit_batch
from embedstore.storing.encoding import Encoded, encode_batch
from embedstore.storing.vectors import VectorChecker

if TYPE_CHECKING:
    from embedstore.collection import Collection

_LOG = logging.getLogger("embedstore")
_MAX_ROWS = 10_000
_MAX_CHARACTERS = 16_000_000
_MAX_PICTURE_BYTES = 64 << 20
_ENCODED_CHARACTERS = 400_000  # some ten seconds of encoding are lost at most, and seen to move
_ENCODED_ROWS = 1000
_PATIENCE = 1.0
_CHECKED_ROWS = 1000
_QUEUED = 2


@dataclass(slots=True)
class _Work:
    """One batch on its way: what is to be written, and how far the input had been read."""

    batch: Batch
    parents: list[str]
    progress: Progress
    encoded: Encoded | None = None


_Placed = tuple[int, dict[str, Any], int]
"""A record with its row number, and how much of its source was read when it was."""


class _Stopped(Exception):
    """Another part of the pipeline failed; this one ends without a word."""


def ingest(collection: Collection, *given: Any, **options: Any) -> WriteReport:
    """Upsert everything that ``given`` holds; the keyword arguments are the fields of ``IngestOptions``.

    given: paths of files (CSV, TSV, JSON, JSON lines, each also .gz or .zst; Parquet, Arrow, text, Markdown), folders,
    glob patterns, '-' for JSON lines on stdin, DataFrames, Arrow tables, or iterables of mappings. Inputs that can be
    read twice are checked whole before anything is written; InvalidRecord then leaves the collection as it was.
    """
    try:
        chosen = IngestOptions(**options)
    except TypeError as error:
        raise InvalidInput(f"ingest does not know such an option: {error}") from None
    if not given:
        raise InvalidInput("nothing to ingest: give at least one file, folder, table or iterable")
    sources = open_sources(
        given, stdin=chosen.stdin, types=chosen.types, keep_text=_text_columns(chosen), images=chosen.image is True,
        written=chosen.written,
    )  # fmt: skip
    if chosen.on_error is None:
        # One broken picture among thousands is no reason to bring in none; one bad row may be a sign of worse.
        skips = not chosen.prune and any(isinstance(source, ImageFiles) for source in sources)
        chosen = replace(chosen, on_error="skip" if skips else "abort")
        if chosen.rejects is not None and not skips:
            raise InvalidInput("rejects takes the rows that were skipped; it needs on_error='skip'")
    for source in sources:
        left_out = getattr(source, "left_out", ())
        if left_out:
            _LOG.warning("%s: only its texts are read; name these files to bring them in: %s", source.name,
                         ", ".join(map(str, left_out)))  # fmt: skip
    progress = ProgressLine.of(chosen.progress)
    try:
        with Rejects(chosen.rejects, [source.name for source in sources]) as rejects:
            return _Ingest(collection, chosen, sources, rejects, progress).run()
    finally:
        progress.close()


class _Part:
    """A thread of the pipeline, with its end.

    Not Thread.join: where a signal interrupts that, CPython before 3.13 takes a running thread for an ended one.
    """

    def __init__(self, part: Callable[..., None], *arguments: Any) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(part, arguments), daemon=True)

    def _run(self, part: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            part(*arguments)
        finally:
            self._ended.set()

    def start(self) -> None:
        self._thread.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread, if it was started."""
        if self._thread.ident is not None:
            self._ended.wait(timeout)


class _Ingest:
    """One run over the sources."""

    def __init__(
        self,
        collection: Collection,
        options: IngestOptions,
        sources: list[Source],
        rejects: Rejects,
        progress: ProgressLine,
    ) -> None:
        self._collection = collection
        self._options = options
        self._sources = sources
        self._rejects = rejects
        self._progress = progress
        self._report = WriteReport()
        self._keys = SeenKeys()
        self._by_content: dict[str, ContentKeys] = {}
        self._nameless: set[int] = set()
        self._origins = Origins(collection, replaces=options.prune)
        self._pieces = SeenKeys()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._labels = _labels(sources)

    def run(self) -> WriteReport:
        """Check, write, prune, and bring the caches up to date."""
        collection, options = self._collection, self._options
        maps = [self._field_map(source) for source in self._sources]
        prints = [source.fingerprint() for source in self._sources]
        self._nameless = {id(source) for source, one in zip(self._sources, prints, strict=True) if one is None}
        if options.on_error == "abort":
            for source, fields in zip(self._sources, maps, strict=True):
                if source.rereadable and fields is not None:
                    self._check(source, fields)
            self._keys, self._by_content = SeenKeys(), {}
        for source, fields in zip(self._sources, maps, strict=True):
            if fields is not None and fields.key is None:
                self._expect_made_keys(source)
        is_new = collection.layout() is None
        collection.create()
        made = collection.layout()
        cutter = None if options.chunk is None else ChunkCutter(collection, options.chunk, options.chunk_overlap)
        job = IngestJob(collection, self._sources, prints, options)
        job.start()
        try:
            self._write_all(maps, cutter, job)
        finally:
            fruitless = is_new and not self._report.added and bool(self._report.failed or self._failure)
            if fruitless and made is not None:  # with an encoder that reads nothing of this, it is only in the way
                with suppress(EmbedstoreError):
                    collection.drop(only_as=made)
        if fruitless:
            return self._report
        report = self._report
        if not (report.added or report.updated or report.unchanged or report.failed):
            _LOG.warning("%s: there were no rows to bring in", ", ".join(source.name for source in self._sources[:3]))
        if options.prune:
            self._prune()
        job.finish()
        if options.refresh:
            self._collection.refresh_or_warn()
        return self._report

    def _expect_made_keys(self, source: Source) -> None:
        """Say what the keys of a source without a field for them are made of; refuse those that are another file's."""
        made_of = "what a row holds"
        if id(source) not in self._nameless:
            label = self._labels[id(source)]
            self._origins.expect_rows(source, label)
            made_of = f"file and row ({label}:1)"
        _LOG.info(
            "%s: no field is named key, id or _id, so keys are made of %s; --key names one", source.name, made_of
        )

    # ---- reading

    def _field_map(self, source: Source) -> FieldMap | None:
        """The meaning of a source's fields; None where that is only known from its first row."""
        self._refuse_unread(source)
        self._expect_types(source)
        columns = source.columns()
        if columns is None and source.rereadable:
            first = next(iter(source.rows(on_error=None if self._options.on_error == "abort" else _pass_over)), None)
            columns = None if first is None else list(first.fields)
        if columns is None:
            return None
        return choose_fields(self._options, columns, source.name, read=self._read_by_encoder)

    def _refuse_unread(self, source: Source) -> None:
        """InvalidInput for pictures that no encoder of the collection reads."""
        read = self._read_by_encoder
        if isinstance(source, ImageFiles) and read and Modality.IMAGE not in read:
            words = " and ".join(sorted(one.value for one in read))
            raise InvalidInput(
                f"{source.name}: the encoder of {self._collection.name!r} reads {words}, not pictures; give --encoder"
                " MODEL, a folder of 'train image' or another model of pictures, or --encoder none"
            )

    def _expect_types(self, source: Source) -> None:
        """Have the columns of a CSV file read as a model of tables has them, where they look otherwise."""
        if isinstance(source, DelimitedFile) and self._read_by_encoder == {Modality.ROW}:
            named = self._collection.defaults.encoder
            new = named is not None and self._collection.layout() is None
            encoder: Any = self._collection.store.load_encoder(str(named)) if new else self._collection.encoder()
            source.expect(getattr(encoder, "column_types", dict)())

    def _records(self, source: Source, fields: FieldMap | None) -> Iterator[_Placed]:
        """The source's rows as records, each with its row number and how much of the source was read."""
        on_error = None if self._options.on_error == "abort" else self._reader_error(source)
        label = self._labels[id(source)]
        by_content = self._by_content.setdefault(label, ContentKeys(label)) if id(source) in self._nameless else None
        for row in source.rows(on_error=on_error):
            if fields is None:
                fields = choose_fields(self._options, list(row.fields), source.name, read=self._read_by_encoder)
            try:
                record = fields.record(label, row.number, row.fields)
            except InvalidRecord as error:
                error.row = row.number
                refuse(error, source.name, on_error, row.fields)
                continue
            if fields.key is None and by_content is not None:
                record["key"] = by_content.key_of(record)
            yield row.number, record, row.position

    @staticmethod
    def _progress_at(source: Source, phase: str, number: int, position: int) -> Progress:
        return Progress(phase, source.name, position, source.total, source.unit, number)

    def _check(self, source: Source, fields: FieldMap) -> None:
        """Read a whole source once without writing, so that what is wrong with it is known before."""
        preparer = self._collection.preparer()
        checker = self._collection.vector_checker()
        records = self._records(source, fields)
        while chunk := list(islice(records, _CHECKED_ROWS)):
            with _naming(source):
                batch = preparer.prepare_numbered(((number, record) for number, record, _ in chunk), self._keys)
                checker.check(batch)
                self._origins.without_other_files(source, batch, None)
                if self._options.chunk is not None:
                    check_parents(batch)
            self._progress.show(self._progress_at(source, "checking", chunk[-1][0], chunk[-1][2]))

    def _batches(self, source: Source, fields: FieldMap | None, cutter: ChunkCutter | None) -> Iterator[_Work]:
        """The source's records in checked batches, bounded in rows and in characters."""
        pending: list[_Placed] = []
        n_characters = n_bytes = 0
        most = _ENCODED_CHARACTERS if self._has_encoder else _MAX_CHARACTERS
        most_rows = _ENCODED_ROWS if self._has_encoder else _MAX_ROWS
        self._progress.show(self._progress_at(source, "writing", 0, 0))
        for placed in self._records(source, fields):
            pending.append(placed)
            text, image = placed[1].get("text"), placed[1].get("image")
            n_characters += len(text) if isinstance(text, str) else 0
            n_bytes += len(image.data) if isinstance(image, Picture) else 0
            if len(pending) >= most_rows or n_characters >= most or n_bytes >= _MAX_PICTURE_BYTES:
                yield self._prepared(source, pending, cutter)
                pending, n_characters, n_bytes = [], 0, 0
        if pending:
            yield self._prepared(source, pending, cutter)

    @once
    def _checker(self) -> VectorChecker:
        return self._collection.vector_checker()

    @once
    def _has_encoder(self) -> bool:
        return bool(self._read_by_encoder)

    @once
    def _read_by_encoder(self) -> frozenset[Modality]:
        return self._collection.modalities_read()

    def _preparer(self, on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None) -> Preparer:
        return self._collection.preparer(on_error, embed_bytes=self._embeds_bytes)

    @once
    def _embeds_bytes(self) -> bool:
        asked, pictures = self._options.embed_bytes, self._options.image
        if asked is None and (pictures or any(isinstance(source, ImageFiles) for source in self._sources)):
            return self._collection.embeds_bytes()
        return bool(asked)

    def _prepared(self, source: Source, pending: list[_Placed], cutter: ChunkCutter | None) -> _Work:
        on_error = None if self._options.on_error == "abort" else self._record_error(source)
        with _naming(source):
            batch = self._preparer(on_error).prepare_numbered(
                ((number, record) for number, record, _ in pending), self._keys
            )
            batch = self._checker.check(batch, on_error)
            batch = self._origins.without_other_files(source, batch, on_error)
            parents: list[str] = []
            if cutter is not None:
                batch, parents = cutter.cut(batch, self._collection.preparer(on_error))
                for key, row in zip(batch.keys, batch.row_numbers, strict=True):
                    self._pieces.add(key, row)
        number, _, position = pending[-1]
        return _Work(batch, parents, self._progress_at(source, "writing", number, position))

    def _record_error(self, source: Source) -> Callable[[InvalidRecord, Mapping[str, Any]], None]:
        def note(error: InvalidRecord, record: Mapping[str, Any]) -> None:
            error.source = source.name
            self._report.failed += 1
            if len(self._report.errors) < 100:
                self._report.errors.append(str(error))
            self._rejects.write(error, record)

        return note

    def _reader_error(self, source: Source) -> Callable[[InvalidRecord], None]:
        note = self._record_error(source)
        return lambda error: note(error, error.record)

    # ---- the three parts

    def _write_all(self, maps: list[FieldMap | None], cutter: ChunkCutter | None, job: IngestJob) -> None:
        to_encode: queue.Queue[_Work | None] = queue.Queue(_QUEUED)
        to_commit: queue.Queue[_Work | None] = queue.Queue(_QUEUED)
        reading = _Part(self._guarded, self._read, maps, cutter, to_encode)
        committing = _Part(self._guarded, self._commit, job, to_commit)
        try:
            reading.start()
            committing.start()
            while (work := self._take(to_encode)) is not None:
                if self._has_encoder:
                    work.encoded = encode_batch(
                        self._collection.store.database, self._collection.name, work.batch,
                        self._collection.store.encoder_of,
                    )  # fmt: skip
                self._put(to_commit, work)
            self._put(to_commit, None)
            committing.wait()  # here, so that an interruption stops the commits that are still queued
        except _Stopped:
            pass
        except BaseException:
            self._stop.set()
            raise
        finally:
            committing.wait()
            # After a failure the reader may wait for standard input that never comes; it ends with the process.
            reading.wait(_PATIENCE if self._stop.is_set() else None)
        if self._failure is not None:
            raise self._failure

    def _guarded(self, part: Callable[..., None], *arguments: Any) -> None:
        try:
            part(*arguments)
        except _Stopped:
            pass
        except BaseException as error:  # handed over to the caller's thread, which raises it
            self._failure = error
            self._stop.set()

    def _read(
        self, maps: list[FieldMap | None], cutter: ChunkCutter | None, to_encode: queue.Queue[_Work | None]
    ) -> None:
        for source, fields in zip(self._sources, maps, strict=True):
            for work in self._batches(source, fields, cutter):
                self._put(to_encode, work)
        self._put(to_encode, None)

    def _commit(self, job: IngestJob, to_commit: queue.Queue[_Work | None]) -> None:
        while (work := self._take(to_commit)) is not None:
            self._commit_one(job, work)

    def _commit_one(self, job: IngestJob, work: _Work) -> None:
        def also(transaction: Transaction) -> None:
            job.note(transaction, work.progress.source, work.progress.n_rows)
            self._origins.note(transaction, work.progress.source)
            if work.parents:
                drop_stale_chunks(transaction, self._collection.name, work.batch, work.parents)

        if len(work.batch):
            self._report += commit_batch(
                self._collection.store.database, self._collection.name, work.batch,
                self._collection.store.encoder_of, replace_existing=True, encoded=work.encoded, also=also,
            )  # fmt: skip
        self._progress.show(work.progress, self._report)

    def _put(self, target: queue.Queue[_Work | None], work: _Work | None) -> None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                target.put(work, timeout=0.1)
                return
            except queue.Full:
                continue

    def _take(self, source: queue.Queue[_Work | None]) -> _Work | None:
        while True:
            if self._stop.is_set():
                raise _Stopped
            try:
                return source.get(timeout=0.1)
            except queue.Empty:
                continue

    # ---- afterwards

    def _prune(self) -> None:
        """Delete the records that the input does not hold."""
        kept = self._keys if self._options.chunk is None else self._pieces
        if not len(kept):
            raise InvalidInput("the input has no rows, so prune would delete every record; delete them by a filter")
        gone = [record.key for record in self._collection.records() if not kept.holds(record.key)]
        self._report.deleted += self._collection.delete(gone) if gone else 0


def _pass_over(_: InvalidRecord) -> None:
    """A bad row met while only the names of the fields are looked for; the reading proper reports it."""


def _text_columns(options: IngestOptions) -> list[str]:
    """CSV columns that are text whatever they look like: keys and texts."""
    asked = options.text.split(",") if isinstance(options.text, str) else list(options.text or ())
    return [*KEY_FIELDS, *TEXT_FIELDS, *(name.strip() for name in asked), *([options.key] if options.key else [])]


def _labels(sources: Sequence[Source]) -> dict[int, str]:
    """By source, its name in keys: the file's name without its folders, where no other source has the same."""
    short = [os.path.basename(source.name.rstrip("/")) or source.name for source in sources]
    return {
        id(source): name if short.count(name) == 1 else source.name
        for source, name in zip(sources, short, strict=True)
    }


class _naming:
    """Adds the source's name to the errors of records."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, InvalidRecord):
            error.source = self._source.name
