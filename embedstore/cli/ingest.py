"""``embedstore ingest``."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.state import State, pair_of, pass_state


@click.command("ingest")
@click.argument("collection")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--encoder", metavar="NAME",
              help="What makes the vectors of a new collection: minilm (the default), none, st:NAME,"
              " hf:NAME@layer=-2,pool=mean, or a model's folder.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "euclidean"]),
              help="How vectors of a new collection are compared; else cosine.")
@click.option("--text", metavar="FIELD", help="The field with the text; several, joined by commas, are put together.")
@click.option("--vector", metavar="FIELD",
              help="The field with a vector computed elsewhere (encoder none), or the columns of numbers that make one:"
              " lat,lon or 'pixel*'.")
@click.option("--image", is_flag=False, flag_value="", default=None, type=str, metavar="FIELD",
              help="The field with a picture's path; without FIELD, the pictures of a folder and nothing else of it.")
@click.option("--embed-bytes/--reference", default=None,
              help="Keep the bytes of pictures in the store, or where they lie.  [as the collection has it; reference]")
@click.option("--key", metavar="FIELD", help="The field with the key; else key, id or _id, else file and row number.")
@click.option("--metadata", metavar="F1,F2", help="The fields to keep; else every other one.")
@click.option("--type", "types", multiple=True, metavar="FIELD=TYPE",
              help="Read a CSV column as text, integer, number or boolean, whatever it looks like. Repeatable.")
@click.option("--delimiter", metavar="CHAR", help="What parts the cells of CSV and TSV files: ';', or tab for a tab.")
@click.option("--columns", metavar="F1,F2", help="Names of the columns of CSV and TSV files without a header line.")
@click.option("--encoding", metavar="NAME", help="The encoding of CSV and TSV files, such as latin-1; else UTF-8.")
@click.option("--chunk", type=int, metavar="N", help="Cut texts into pieces of at most N tokens, a record each.")
@click.option("--chunk-overlap", type=int, default=0, metavar="N", help="Tokens that neighbouring pieces share.")
@click.option("--prune", is_flag=True, help="Afterwards delete the records that the input does not hold.")
@click.option("--refresh/--no-refresh", default=True,
              help="Bring the caches up to date at the end, or leave that to the next search.")
@click.option("--on-error", type=click.Choice(["abort", "skip"]),
              help="What to do about a row that cannot be stored.  [abort; skip for a folder of pictures]")
@click.option("--rejects", metavar="FILE", help="Where skipped rows go, as JSON lines with the reason of each.")
@pass_state
def ingest_command(state: State, /, collection: str, sources: tuple[str, ...], **options: Any) -> None:
    """Bring SOURCE into COLLECTION: files, folders, globs, or - for JSON lines on standard input.

    CSV, TSV, JSON and JSON lines (each also .gz or .zst), Parquet, Arrow, text, Markdown and pictures (PNG, JPEG,
    WebP, GIF, BMP, TIFF). Rows are upserted by key: run again, it adds only what changed. Interrupted and run again, it
    goes on where it was.

    \b
    embedstore ingest films films.csv --text plot --key title
    embedstore ingest notes ~/notes
    embedstore ingest people faces/ --encoder models/faces
    """
    import sys

    from embedstore.cli.output import print_mapping

    encoder = options.pop("encoder")
    metric = options.pop("metric")
    metadata = options.pop("metadata")
    image = options.pop("image")
    columns = options.pop("columns")
    if options["delimiter"] in ("tab", "\\t"):
        options["delimiter"] = "\t"
    with state.opened() as store:
        target = store.collection(collection, encoder=_encoder(encoder, options["vector"]), metric=metric)
        report = target.ingest(
            *sources,
            metadata=None if metadata is None else [name.strip() for name in metadata.split(",")],
            image=False if image is None else image or True,
            columns=None if columns is None else [name.strip() for name in columns.split(",")],
            types=dict(pair_of(one, "--type") for one in options.pop("types")),
            stdin=sys.stdin.buffer,
            progress=not state.quiet,
            **options,
        )
        for line in report.errors:
            state.note(f"skipped: {line}")
        if report.failed > len(report.errors):
            state.note(f"skipped: {report.failed - len(report.errors):,} more")
        if report.truncated:
            state.note(
                f"{report.truncated:,} text(s) longer than the encoder reads: only their beginning was encoded"
                " (--chunk N cuts them into pieces)"
            )
        if report.unknown:
            state.note(
                f"{report.unknown:,} value(s) are of categories that the model had not seen, and count as any other"
            )
        print_mapping({"collection": collection, **report.to_dict(), "records": len(target)}, state.format_)


def _encoder(name: str | None, vector: str | None) -> str | None:
    return "none" if name is None and vector is not None else name
