"""``embedstore probe``: what language models say and search by, without a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from embedstore.cli.probe.group import chosen_layers, layers_option, probe_command, seed_option
from embedstore.cli.state import State, pass_state


@probe_command.command("lens")
@click.argument("model")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--file", metavar="FILE", help="Texts, one a line, too.")
@click.option("--top", type=int, default=5, show_default=True, metavar="N", help="How many words of each.")
@click.option("--tune", metavar="FILE", help="Train a tuned lens on the texts and write it there (.safetensors).")
@click.option("--tuned", metavar="FILE", help="Read through a tuned lens.")
@click.option("--html", metavar="FILE", help="Write it as a page to look at, too.")
@layers_option
@seed_option
@pass_state
def lens_command(state: State, /, model: str, texts: tuple[str, ...], **options: Any) -> None:
    """Print what a language model would say if it stopped after each layer.

    \b
    embedstore probe lens models/stories "Once upon a time, there was a"
    """
    from embedstore.cli.output import print_mapping, print_rows
    from embedstore.html_pages import check_page
    from embedstore.names import check_file
    from embedstore.probing import TunedLens, lens, tune, write_lens_page

    given = [*texts, *([] if options["file"] is None else _lines(options["file"]))]
    if options["html"] is not None:
        check_page(options["html"])
    if options["tune"] is not None:
        check_file(options["tune"], (".safetensors",), "lens")
        made = tune(model, given, seed=options["seed"], allow_network=state.allow_download)
        made.save(options["tune"])
        rows = [
            {"layer": layer, "kl": round(before, 4), "kl_tuned": round(after, 4)}
            for layer, (before, after) in made.held_out.items()
        ]
        print_rows(rows, state.format_)
        worse = [str(row["layer"]) for row in rows if float(row["kl_tuned"]) > float(row["kl"])]
        if worse:
            state.note(f"on texts that it was not trained on it is worse at layer {', '.join(worse)}: give more texts")
        state.note(f"wrote {options['tune']}; the figures are of texts that it was not trained on")
        return
    tuned = None if options["tuned"] is None else TunedLens.load(options["tuned"])
    report = lens(
        model, given, layers=chosen_layers(options["layers"]), top=options["top"], tuned=tuned,
        allow_network=state.allow_download,
    )  # fmt: skip
    if options["html"] is not None:
        write_lens_page(report, options["html"])
        state.note(f"wrote {options['html']}")
    if state.format_ == "json":
        print_mapping(report.to_dict(), state.format_)
        return
    print_rows([
        {**{name: row[name] for name in ("text", "position", "token", "layer", "kl")},
         "says": ", ".join(f"{word!r} {share:.3f}" for word, share in row["top"])}
        for row in report.to_rows()
    ], state.format_)  # fmt: skip
    if report.n_truncated:
        state.note(f"{report.n_truncated:,} texts are longer than the model reads")
    state.note("KL to the end by layer: " + ", ".join(f"{layer}: {value:.3f}" for layer, value in report.kl.items()))


@probe_command.command("retrieval")
@click.argument("model")
@click.argument("data", type=click.Path())
@click.option("--pools", default="mean", show_default=True, metavar="LIST", help="Of mean, last, first, max.")
@click.option("--center", is_flag=True, help="Also with the mean of all vectors taken away.")
@click.option("-k", "k", type=int, default=10, show_default=True, metavar="N", help="Of nDCG.")
@layers_option
@pass_state
def retrieval_command(state: State, /, model: str, data: str, **options: Any) -> None:
    """Print which layer of MODEL is best for search, and the encoder to name.

    DATA is a CSV or TSV file of two texts and how similar they are, or a folder of corpus.jsonl, queries.jsonl and
    qrels/test.tsv as BEIR has them.
    """
    from embedstore.cli.output import print_mapping, print_rows
    from embedstore.probing.judgements import read_judged_pairs, read_ranking
    from embedstore.probing.retrieval import ranked_answers, similar_pairs

    layers, pools = chosen_layers(options["layers"]), options["pools"].split(",")
    common: dict[str, Any] = {
        "layers": layers, "pools": pools, "center": options["center"], "allow_network": state.allow_download,
    }  # fmt: skip
    if Path(data).is_dir():
        report = ranked_answers(model, *read_ranking(data), k=options["k"], **common)
    else:
        report = similar_pairs(model, *read_judged_pairs(data), **common)
    if state.format_ == "json":
        print_mapping(report.to_dict(), state.format_)
        return
    print_rows(report.to_rows(), state.format_)
    state.note(f"{report.metric} of {report.n:,}; best as it is: {report.encoder}")


@probe_command.command("in-context")
@click.argument("collection")
@click.argument("model")
@click.argument("label")
@click.option("--queries", required=True, metavar="EXPR", help="The records that are asked about.")
@click.option("--candidates", metavar="EXPR", help="Those that may be shown; else all others.")
@click.option("--demonstrations", "n_demonstrations", type=int, default=4, show_default=True, metavar="N",
              help="How many are shown.")
@click.option("--choose", default="random,nearest,concept", show_default=True, metavar="LIST",
              help="How they are chosen.")
@click.option("--space", metavar="NAME", help="For nearest: by which vectors.")
@click.option("--example", metavar="TEXT", help="How one is written, with {text} and {label}.")
@click.option("--query", metavar="TEXT", help="How the question is written, with {text}; the label follows.")
@seed_option
@pass_state
def in_context_command(state: State, /, collection: str, model: str, label: str, **options: Any) -> None:
    """Print how well a causal model tells the field LABEL from examples in its prompt, by how they are chosen."""
    from embedstore.cli.output import print_mapping
    from embedstore.probing import Template, in_context

    usual = Template()
    template = Template(
        (options.pop("example") or usual.example).replace("\\n", "\n"),
        (options.pop("query") or usual.query).replace("\\n", "\n"),
    )
    choose = options.pop("choose").split(",")
    with state.collection(collection) as found:
        report = in_context(
            found, model, label, choose=choose, template=template, allow_network=state.allow_download, **options
        )
    print_mapping(report.to_dict(), state.format_)


def _lines(file: str) -> list[str]:
    from embedstore.errors import InvalidInput

    try:
        return [line for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise InvalidInput(f"the texts {file!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"the texts {file!r} are not UTF-8 text") from None
