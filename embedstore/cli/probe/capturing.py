"""``embedstore probe``: states into spaces."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.probe.group import chosen_layers, layers_option, prefix_option, probe_command, where_option
from embedstore.cli.state import State, pass_state

_sites_option = click.option("--sites", default="hidden", show_default=True, metavar="LIST",
                             help="Of hidden, final_norm, attention, mlp, head, with commas between.")  # fmt: skip
_random_option = click.option("--random-seed", type=int, metavar="N",
                              help="Draw the weights in the place of those that were learned.")  # fmt: skip


@probe_command.command("capture")
@click.argument("collection")
@click.argument("model")
@layers_option
@_sites_option
@click.option("--pool", default="mean", show_default=True, metavar="NAME", help="Over tokens: mean, last, first, max.")
@click.option("--no-special", is_flag=True, help="Do not count the tokens that the tokenizer adds.")
@prefix_option
@_random_option
@click.option("--dtype", default="float32", show_default=True, metavar="NAME", help="float32, bfloat16 or float16.")
@click.option("--stack", metavar="NAME", help="Of a model with two stacks: encoder or decoder.")
@click.option("--max-tokens", type=int, metavar="N", help="Of a text; the rest is not read.")
@click.option("--threads", type=int, metavar="N", help="Cores in use; else all.")
@pass_state
def capture_command(state: State, /, collection: str, model: str, **options: Any) -> None:
    """Keep the states of MODEL for every text of COLLECTION: a space a layer.

    \b
    embedstore probe capture papers minilm
    embedstore search papers "blight of cereals" --space layer-03
    """
    from embedstore.cli.output import print_mapping
    from embedstore.probing import capture

    layers, sites = chosen_layers(options.pop("layers")), options.pop("sites").split(",")
    with state.collection(collection) as found:
        states = capture(
            found, model, layers=layers, sites=sites, special=not options.pop("no_special"), **options
        )  # fmt: skip
        print_mapping(states.to_dict(), state.format_)


@probe_command.command("words")
@click.argument("collection")
@click.argument("into")
@click.argument("model")
@click.option("--unit", type=click.Choice(["word", "token"]), default="word", show_default=True,
              help="Words, or tokens as the model's tokenizer cuts a text.")
@click.option("--split", metavar="FIELD", help="The field that lists a text's words; else they are found.")
@click.option("--fields", default="", metavar="LIST", help="Fields that list something of each word, to be kept.")
@click.option("--only", metavar="LIST", help="Only these words, with commas between.")
@click.option("--pool", default="mean", show_default=True, metavar="NAME",
              help="Over a word's tokens: mean, first, last.")
@layers_option
@_sites_option
@prefix_option
@_random_option
@where_option
@pass_state
def words_command(state: State, /, collection: str, into: str, model: str, **options: Any) -> None:
    """Keep the states of every word of COLLECTION as records of the collection INTO.

    \b
    embedstore probe words sentences words minilm --split words --fields upos
    embedstore search words --like s12#3 --space layer-04
    """
    from embedstore.cli.output import print_mapping
    from embedstore.probing import words

    layers, sites = chosen_layers(options.pop("layers")), options.pop("sites").split(",")
    fields, only = options.pop("fields"), options.pop("only")
    with state.collection(collection) as found:
        states = words(
            found, into, model, layers=layers, sites=sites, fields=[one for one in fields.split(",") if one],
            only=None if only is None else only.split(","), **options,
        )  # fmt: skip
        print_mapping({"collection": into, **states.to_dict()}, state.format_)
