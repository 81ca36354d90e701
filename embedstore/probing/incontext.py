"""Learning from examples in the prompt: which are shown, what they tell, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.points import field_of
from embedstore.model import Record
from embedstore.probing.heads import HeadedModel, open_headed
from embedstore.probing.steering import next_log_probabilities, steering, task_vectors
from embedstore.states.recording import recording
from embedstore.states.taps import FINAL_NORM, HIDDEN, Tap

if TYPE_CHECKING:
    from embedstore.collection import Collection

CHOICES = ("random", "nearest", "concept")
_CONCEPT_STEPS = 200
_MOST_CONCEPT = 10
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Template:
    """How a prompt is written: ``example`` for each demonstration, ``query`` for what is asked; the label follows."""

    example: str = "{text} -> {label}\n"
    query: str = "{text} ->"

    def __post_init__(self) -> None:
        for written, names in ((self.example, ("text", "label")), (self.query, ("text",))):
            try:
                written.format(**dict.fromkeys(names, ""))
            except (KeyError, IndexError, ValueError):
                held = " and ".join(f"{{{one}}}" for one in names)
                raise InvalidInput(f"the template {written!r} cannot be filled in; it may hold {held}") from None

    def prompt(self, demonstrations: Sequence[tuple[str, str]], text: str) -> str:
        """The whole prompt."""
        shown = [self.example.format(text=one, label=label) for one, label in demonstrations]
        return "".join(shown) + self.query.format(text=text)


@dataclass(slots=True)
class InContextReport:
    """Accuracy of answers by how demonstrations were chosen.

    steered: by layer, that of prompts without any when the task vector is added there. concept: the demonstrations
    behind which the concept is likeliest, the likeliest first.
    """

    model: str
    labels: list[str]
    n_demonstrations: int
    n_queries: int
    accuracy: dict[str, float]
    steered: dict[int, float] = field(default_factory=dict)
    concept: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "model": self.model, "labels": self.labels, "n_demonstrations": self.n_demonstrations,
            "n_queries": self.n_queries, "accuracy": {name: round(value, 4) for name, value in self.accuracy.items()},
            "steered": {str(layer): round(value, 4) for layer, value in self.steered.items()},
            "concept": [list(pair) for pair in self.concept],
        }  # fmt: skip


def in_context(
    collection: Collection,
    model: str | HeadedModel,
    label: str,
    *,
    queries: Where,
    candidates: Where | None = None,
    n_demonstrations: int = 4,
    choose: Sequence[str] = CHOICES,
    space: str | None = None,
    template: Template | None = None,
    labels: Sequence[str] | None = None,
    most_queries: int = 200,
    steer: bool = True,
    seed: int = 0,
    allow_network: bool = False,
) -> InContextReport:
    """Let a causal model tell a label of records from examples in its prompt.

    queries: the records that are asked about. candidates: those that may be shown, all others by default.
    choose: 'random'; 'nearest', by the vectors of ``space``; 'concept', those behind which a latent concept of the
        task is likeliest. As many made-up tokens as there are labels, up to ten, are fitted so that the model, which
        stays as it is, tells the labels once they stand before a text; each example is judged by how likely they are
        behind it (after Wang et al. 2023, who take it that a language model infers a latent variable from its prompt).
    labels: those among which the model chooses; by default those of the records that may be shown.
    steer: whether the task vector is measured, too: prompts without demonstrations, with the mean difference that
        demonstrations (those of the concept, else at random) make to the last token's state added behind each block in
        turn.
    """
    unknown = [one for one in choose if one not in CHOICES]
    if isinstance(choose, str) or unknown or not choose:
        raise InvalidInput(f"choose is {choose!r}; give a list of {', '.join(CHOICES)}")
    check_whole("n_demonstrations", n_demonstrations, 1)
    check_whole("most_queries", most_queries, 1)
    check_seed(seed)
    asked = _labelled(collection, label, queries)
    if len(asked) > most_queries:
        chosen = np.sort(np.random.default_rng(seed).choice(len(asked), most_queries, replace=False))
        asked = [asked[place] for place in chosen.tolist()]
    keys, contents = {one.key for one in collection.records(queries)}, {one.content for one in asked}
    shown = [
        one for one in _labelled(collection, label, candidates)
        if one.key not in keys and one.content not in contents  # else an answer would be shown with its question
    ]  # fmt: skip
    if len(shown) < n_demonstrations:
        raise InvalidInput(f"{len(shown)} records may be shown; {n_demonstrations} demonstrations need as many")
    opened = open_headed(model, allow_network=allow_network) if isinstance(model, str) else model
    if not opened.is_causal:
        raise InvalidInput(f"the model in {opened.model.folder} is no causal one; it cannot go on with a prompt")
    written = template or Template()
    pairs = [_pair(one, label) for one in shown]
    words = sorted({word for _, word in pairs} if labels is None else set(labels))
    if isinstance(labels, str) or len(words) < 2:
        raise InvalidInput(f"the model is to choose among {words}; there must be two labels or more")
    wanted = [_pair(one, label)[1] for one in asked]
    texts = [_pair(one, label)[0] for one in asked]
    drawn = np.random.default_rng(seed)
    report = InContextReport(str(opened.model.folder), words, n_demonstrations, len(asked), {})

    def accuracy(prompts: Sequence[str]) -> float:
        told = label_scores(opened, prompts, words).argmax(axis=1)
        return float(np.mean([words[place] == word for place, word in zip(told.tolist(), wanted, strict=True)]))

    bare = [written.prompt([], text) for text in texts]
    report.accuracy["none"] = accuracy(bare)
    at_random = [[pairs[place] for place in drawn.choice(len(pairs), n_demonstrations, replace=False)] for _ in texts]
    random_prompts = [written.prompt(those, text) for those, text in zip(at_random, texts, strict=True)]
    by_choice: dict[str, list[str]] = {}
    for how in choose:
        if how == "random":
            prompts = random_prompts
        elif how == "nearest":
            near = _nearest(collection, space, asked, shown, pairs, n_demonstrations)
            prompts = [written.prompt(those, text) for those, text in zip(near, texts, strict=True)]
        else:
            report.concept = likeliest(opened, pairs, words, written, n_demonstrations, seed)
            prompts = [written.prompt(report.concept[::-1], text) for text in texts]  # the likeliest stands last
        report.accuracy[how] = accuracy(prompts)
        by_choice[how] = prompts
    if steer:
        told = by_choice.get("concept", random_prompts)
        bare_ids = [opened.token_ids(one) for one in bare]
        vectors = task_vectors(opened, [opened.token_ids(one) for one in told], bare_ids)
        for layer, vector in vectors.items():
            with steering(opened, {layer: vector}):
                report.steered[layer] = accuracy(bare)
    return report


def label_scores(model: HeadedModel, prompts: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Log probabilities of labels as what goes on from prompts, float64 (n, k): the sum over a label's tokens."""
    begun = [model.token_ids(prompt) for prompt in prompts]
    single = [_continued(model, prompts[0], begun[0], label) for label in labels]
    if all(len(one) == 1 for one in single) and len({one[0] for one in single}) == len(labels):
        logs = next_log_probabilities(model, begun)
        return np.asarray(logs[:, [one[0] for one in single]], np.float64)
    import torch

    scores = np.zeros((len(prompts), len(labels)))
    for line, (prompt, ids) in enumerate(zip(prompts, begun, strict=True)):
        whole = [_continued(model, prompt, ids, label) for label in labels]
        with torch.no_grad():
            logits = model.run([[*ids, *one] for one in whole]).float().log_softmax(dim=2).numpy()
        for place, one in enumerate(whole):
            at = np.arange(len(ids) - 1, len(ids) - 1 + len(one))
            scores[line, place] = float(logits[place, at, one].sum())
    return scores


def _continued(model: HeadedModel, prompt: str, ids: Sequence[int], label: str) -> list[int]:
    """The tokens of a label behind a prompt, with a blank between unless there is one."""
    if prompt and not prompt[-1].isspace() and not label[:1].isspace():
        label = f" {label}"
    whole = model.token_ids(prompt + label)
    if whole[: len(ids)] == list(ids) and len(whole) > len(ids):
        return whole[len(ids) :]
    alone: list[int] = model.tokenizer.encode(label, add_special_tokens=False).ids  # the border was tokenised otherwise
    if not alone:
        raise InvalidInput(f"the label {label!r} has no tokens; give labels of words")
    return alone


def likeliest(
    model: HeadedModel, pairs: Sequence[tuple[str, str]], labels: Sequence[str], template: Template, n: int, seed: int
) -> list[tuple[str, str]]:
    """The ``n`` demonstrations after which the fitted concept is likeliest, the likeliest first, no text twice."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        concept = _fit_concept(model, pairs, template, min(max(2, len(labels)), _MOST_CONCEPT))
    scores = concept_scores(model, concept, [template.example.format(text=text, label=word) for text, word in pairs])
    chosen: dict[str, tuple[str, str]] = {}
    for place in np.argsort(-scores, kind="stable").tolist():
        chosen.setdefault(pairs[place][0], pairs[place])
        if len(chosen) == n:
            break
    return list(chosen.values())


def _fit_concept(
    model: HeadedModel, pairs: Sequence[tuple[str, str]], template: Template, n_tokens: int
) -> Any:
    """Vectors (n_tokens, dim) that, put before a text, make the model tell its label; the model stays as it is."""
    import torch

    embed = model.network.get_input_embeddings()
    for parameter in model.network.parameters():
        parameter.requires_grad_(False)
    known = embed.weight.float()
    concept = (known.mean(dim=0) + known.std() * 0.1 * torch.randn(n_tokens, known.shape[1])).requires_grad_()
    learner = torch.optim.Adam([concept], lr=0.05 * float(known.std()) * 10)
    items = []
    for text, word in pairs:
        ids = model.token_ids(template.query.format(text=text))
        items.append((ids, _continued(model, template.query.format(text=text), ids, word)))
    for _ in range(_CONCEPT_STEPS):
        some = [items[place] for place in torch.randint(len(items), (_BATCH,)).tolist()]
        longest = max(len(ids) + len(word) for ids, word in some)
        tokens = torch.zeros((len(some), longest), dtype=torch.long)
        mask = torch.zeros((len(some), longest + n_tokens), dtype=torch.long)
        wanted = torch.full((len(some), longest + n_tokens), -100)
        for line, (ids, word) in enumerate(some):
            end = len(ids) + len(word)
            tokens[line, :end] = torch.tensor([*ids, *word])
            mask[line, : n_tokens + end] = 1
            wanted[line, n_tokens + len(ids) : n_tokens + end] = torch.tensor(word)
        given = torch.cat([concept.expand(len(some), -1, -1), embed(tokens)], dim=1)
        logits = model.network(inputs_embeds=given, attention_mask=mask, use_cache=False).logits.float()
        loss: Any = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, logits.shape[2]), wanted[:, 1:].reshape(-1), ignore_index=-100
        )
        learner.zero_grad()
        loss.backward()
        learner.step()
    return concept.detach()


def concept_scores(model: HeadedModel, concept: Any, texts: Sequence[str]) -> np.ndarray:
    """Log probability of the concept's tokens behind each text, float64 (n,): among all tokens and themselves."""
    import torch

    embed = model.network.get_input_embeddings()
    scores = np.zeros(len(texts))
    read = Tap(HIDDEN, model.n_layers) if model.anatomy.final_norm is None else Tap(FINAL_NORM, model.n_layers)
    held: list[Any] = []
    with torch.no_grad(), recording(model.anatomy, [read], lambda tap, states: held.append(states), stop=False):
        for place, text in enumerate(texts):
            ids = torch.tensor([model.token_ids(text)])
            held.clear()
            given = torch.cat([embed(ids), concept[None]], dim=1)
            logits = model.network(inputs_embeds=given, use_cache=False).logits[0].float()
            own = held[0][0].float() @ concept.T  # as a tied head would have them
            logs = torch.cat([logits, own], dim=1).log_softmax(dim=1)
            at = torch.arange(ids.shape[1] - 1, ids.shape[1] - 1 + len(concept))
            scores[place] = float(logs[at, logits.shape[1] + torch.arange(len(concept))].sum())
    return scores


def _labelled(collection: Collection, label: str, where: Where | None) -> list[Record]:
    found = [
        record for record in collection.records(where)
        if record.content and field_of(record.metadata, label) is not None
    ]  # fmt: skip
    if not found:
        raise InvalidInput(f"no record of {collection.name!r} under the filter has a text and the field {label!r}")
    return found


def _pair(record: Record, label: str) -> tuple[str, str]:
    return record.content or "", str(field_of(record.metadata, label))


def _nearest(
    collection: Collection, space: str | None, asked: Sequence[Record], shown: Sequence[Record],
    pairs: Sequence[tuple[str, str]], n: int,
) -> list[list[tuple[str, str]]]:  # fmt: skip
    """By record that is asked about the ``n`` nearest that may be shown, the nearest last."""
    from embedstore.transforms.affine import normalized

    queries = normalized(collection.vectors([one.key for one in asked], space=space))
    held = normalized(collection.vectors([one.key for one in shown], space=space))
    best = np.argsort(-(queries @ held.T), axis=1, kind="stable")[:, :n]
    return [[pairs[place] for place in line[::-1]] for line in best.tolist()]
