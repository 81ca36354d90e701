"""The top of the command line: global options, errors as one line, exit codes, commands imported where they run."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from embedstore.errors import EmbedstoreError
from embedstore.interruption import Interrupted, end, interruptible, leave_at_once
from embedstore.version import __version__

COMMANDS = {
    "demo": ("embedstore.cli.demo", "Ingest the sample into a temporary store and answer three queries."),
    "ingest": ("embedstore.cli.ingest", "Bring files, folders or standard input into a collection."),
    "search": ("embedstore.cli.search", "Find the records nearest in meaning, or by keywords."),
    "get": ("embedstore.cli.records", "Print records by key or by filter."),
    "update": ("embedstore.cli.records", "Change the metadata of records."),
    "delete": ("embedstore.cli.records", "Delete records by key or by filter, or a whole collection."),
    "count": ("embedstore.cli.records", "Count records, all or under a filter."),
    "sample": ("embedstore.cli.records", "Print records drawn at random."),
    "train": ("embedstore.cli.train", "Train an autoencoder on your own pictures or table."),
    "reencode": ("embedstore.cli.reencoding", "Make a space anew with another encoder."),
    "latent": ("embedstore.cli.latent", "Compute in the spaces: the strangest records, what a space is like."),
    "probe": ("embedstore.cli.probe", "Look into a language model, layer by layer."),
    "stats": ("embedstore.cli.collections", "Tell what a store or a collection holds."),
    "collections": ("embedstore.cli.collections", "List the collections."),
    "spaces": ("embedstore.cli.collections", "List the spaces of a collection."),
    "index": ("embedstore.cli.indexes", "Build, change or tune the index of a space."),
    "recipes": ("embedstore.cli.indexes", "List the index recipes."),
    "export": ("embedstore.cli.transfer", "Write records with their vectors to Parquet or JSON lines."),
    "import": ("embedstore.cli.transfer", "Read back what export wrote."),
    "verify": ("embedstore.cli.maintenance", "Check every row, count and cache file; exit code 4 for damage."),
    "backup": ("embedstore.cli.maintenance", "Write the store to one verified file, while others go on using it."),
    "restore": ("embedstore.cli.maintenance", "Make a store from a backup."),
    "repair": ("embedstore.cli.maintenance", "Salvage what is whole in a damaged store into a new one."),
    "compact": ("embedstore.cli.maintenance", "Give back room that deleted and updated records took."),
    "db": ("embedstore.cli.database", "The database's tables: their revision and upgrade."),
    "doctor": ("embedstore.cli.doctor", "Tell what this machine has, and what to do about what it lacks."),
}


class LazyGroup(click.Group):
    """Knows its commands by name and one line, and imports a command's module only to run it."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        command = getattr(module, f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:  # whoever read our output has seen enough; click would call that a failure
            _close_stdout()
            return None

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; see 'embedstore --help'"
            raise click.UsageError(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(context, args)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="embedstore %(version)s")
@click.option("--store", metavar="PATH", envvar="EMBEDSTORE_STORE", default="embedstore-data", show_default=True,
              help="The store's folder; also the variable EMBEDSTORE_STORE.")
@click.option("--database", metavar="URL", envvar="EMBEDSTORE_DATABASE",
              help="Keep the records in PostgreSQL instead (postgresql+psycopg://USER@HOST/NAME);"
              " the folder then holds only caches.")
@click.option("--format", "format_", type=click.Choice(["table", "json", "ndjson", "csv"]), default="table",
              show_default=True, help="How results are printed.")
@click.option("--timeout", type=click.FloatRange(0, 86_400), default=10.0, show_default=True, metavar="SECONDS",
              help="How long to wait for another process that is writing.")
@click.option("--allow-download", is_flag=True, help="Allow encoder weights to be fetched from the Hugging Face hub.")
@click.option("--device", metavar="DEVICE", envvar="EMBEDSTORE_DEVICE", default="auto", show_default=True,
              help="What encodes and searches: auto, cpu, cuda, cuda:NUMBER or all.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no notes, only results and errors.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, /, **options: Any) -> None:
    """A latent embedding store: ingest texts, search them by meaning, filter, and compute with their vectors."""
    from embedstore.cli.state import State

    context.obj = State(**options)
    logging.getLogger("embedstore").setLevel(logging.ERROR if options["quiet"] else logging.INFO)


class _Notes(logging.Handler):
    """Prints the library's notes and warnings as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        word = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"embedstore: {word}{record.getMessage()}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logger = logging.getLogger("embedstore")
    if not logger.handlers:
        logger.addHandler(_Notes())
    leave_at_once()
    try:
        with interruptible():
            code = _run(given)
    except Interrupted as interrupted:
        _complain(interrupted.message, interrupted.exit_code)
        end(interrupted)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
    sys.exit(code)


_GLOBAL_VALUES = ("--store", "--database", "--format", "--timeout", "--device")
_GLOBAL_FLAGS = ("--allow-download", "--quiet", "-q", "--debug")


def _hoisted(given: Sequence[str]) -> list[str]:
    """The arguments with the global options first, so that they may stand behind the command as well."""
    front: list[str] = []
    rest: list[str] = []
    waiting = list(given)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if word in _GLOBAL_FLAGS or word.split("=")[0] in _GLOBAL_VALUES:
            front.append(word)
            if word in _GLOBAL_VALUES and waiting:
                front.append(waiting.pop(0))
        else:
            rest.append(word)
    return front + rest


def _run(given: Sequence[str]) -> int:
    debug = "--debug" in given
    try:
        ended = cli.main(args=_hoisted(given), prog_name="embedstore", standalone_mode=False)
        return ended if isinstance(ended, int) else 0  # an Exit comes back as its code
    except click.exceptions.NoArgsIsHelpError as asked:  # a bare command is a question
        assert asked.ctx is not None
        click.echo(asked.ctx.get_help())
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "embedstore"
        message = error.format_message().rstrip(".")
        hint = "" if "--help" in message or "mean" in message else f" (see '{where} --help')"
        return _complain(f"{message}{hint}", 2)
    except click.ClickException as error:
        return _complain(error.format_message(), 1)
    except (KeyboardInterrupt, click.exceptions.Abort):
        return _complain("interrupted; what was committed stays, run the same command again to go on", 130)
    except EmbedstoreError as error:
        if debug:
            traceback.print_exc()
        return _complain(str(error), error.exit_code)
    except RecursionError:
        return _complain("the input is nested too deeply", 2)
    except OSError as error:
        if debug:
            traceback.print_exc()
        return _complain(f"{error.filename or 'the system'}: {error.strerror or error}", 1)


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split("\n"))
    shown = line.encode("utf-8", "backslashreplace").decode()
    try:
        print(f"embedstore: error: {shown}", file=sys.stderr)
    except UnicodeEncodeError:
        print(f"embedstore: error: {ascii(shown)}", file=sys.stderr)
    return code


def _close_stdout() -> None:
    # Without this the interpreter would try, and fail, to flush once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

