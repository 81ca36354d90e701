"""``embedstore demo``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from embedstore.cli.state import State, pass_state


@click.command("demo")
@click.option("--keep", metavar="PATH", help="Make the store here and keep it, instead of a temporary folder.")
@pass_state
def demo_command(state: State, keep: str | None) -> None:
    """Ingest the sample (320 short texts on twelve topics) and answer three queries.

    One query is filtered, one is hybrid (meaning and keywords), and one is arithmetic between vectors.
    """
    if keep is not None:
        _run(state, Path(keep))
        return
    with tempfile.TemporaryDirectory(prefix="embedstore-demo-") as folder:
        _run(state, Path(folder) / "store")


def _run(state: State, folder: Path) -> None:
    import embedstore
    from embedstore.cli.output import print_rows
    from embedstore.model import Hits
    from embedstore.shipped import sample_file

    with embedstore.open(folder, allow_network=state.allow_download) as store:
        things = store.collection("things")
        state.note("Ingesting the sample; if the encoder is new here, it is prepared first (some seconds) ...")
        started = time.perf_counter()
        report = things.ingest(sample_file(), text="text", key="key")
        state.note(f"{report} in {time.perf_counter() - started:.1f} s")

        def show(title: str, hits: Hits) -> None:
            click.echo(f"\n{title}")
            click.echo(f"  ({hits.plan})")
            rows = [
                {"rank": hit.rank, "score": round(hit.score, 4), "key": hit.key, "text": hit.record.content}
                for hit in hits
            ]
            print_rows(rows, state.format_)

        show(
            "1. By meaning, filtered: \"a machine that remembers what someone said\", inventions before 1900",
            things.search(
                "a machine that remembers what someone said", k=3, where="topic = 'inventions' AND year < 1900"
            ),
        )
        show(
            "2. Hybrid, meaning and keywords: \"a comal and its daily food\"",
            things.search("a comal and its daily food", k=3, mode="hybrid"),
        )
        text = things.space("text")
        show(
            "3. Arithmetic: sushi - Japan + Peru",
            (text.encode("sushi") - text.encode("Japan") + text.encode("Peru")).nearest(3),
        )
    program = _program()
    click.echo(f"\nNow your own: {program} ingest notes FOLDER")
    click.echo(f"        then: {program} search notes \"...\"")


def _program() -> str:
    """How this command is called from here."""
    called = os.path.abspath(sys.argv[0])
    if shutil.which("embedstore") == called or not os.access(called, os.X_OK):
        return "embedstore"
    return os.path.relpath(called)
