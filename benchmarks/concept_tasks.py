"""Small causal models that learn in context, each trained on a family of tasks whose concept is known.

Of the family ``codes`` some letters are telling, whose label depends on the concept, and some are plain, so that it
matters which examples are shown. Of ``languages`` every letter has a word in each of four languages, and the concept is
the language.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TELLING = "abcdef"
PLAIN = "mnopqr"
LABELS = ("no", "yes")
CODES = np.array([[0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 1]])
"""By concept, the labels of the telling letters. Those of the plain ones are the same in every concept."""
N_PAIRS = 12


FAMILIES = ("codes", "languages")


def label_of(concept: int, letter: str, family: str = "codes") -> str:
    """What a letter is called where a concept holds."""
    if family == "languages":
        return f"{letter}{concept}"
    if letter in TELLING:
        return LABELS[CODES[concept, TELLING.index(letter)]]
    return LABELS[PLAIN.index(letter) % 2]


def train(folder: Path, family: str = "codes", steps: int = 1500, seed: int = 0) -> Path:
    """Train a model and write it as a folder of transformers; the mean loss of its last steps is in loss.json.

    A text is pairs of a letter and its label, all by one concept: ``a no m yes b no``. Four in five letters are
    telling.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = [*TELLING, *PLAIN]
    labels = sorted({label_of(concept, one, family) for concept in range(len(CODES)) for one in letters})
    words = ["<pad>", "<unk>", *letters, *labels]
    ids = {word: place for place, word in enumerate(words)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(LlamaConfig(
            vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=0,
            bos_token_id=None, eos_token_id=None,
        ))  # fmt: skip
        table = torch.tensor([
            [ids[label_of(concept, one, family)] for one in letters] for concept in range(len(CODES))
        ])  # fmt: skip
        letter_ids = torch.tensor([ids[one] for one in letters])
        shares = torch.tensor([0.8 / len(TELLING)] * len(TELLING) + [0.2 / len(PLAIN)] * len(PLAIN))
        learner = torch.optim.AdamW(network.parameters(), lr=1e-3)
        slowing = torch.optim.lr_scheduler.OneCycleLR(learner, 1e-3, total_steps=steps)
        losses = []
        for _ in range(steps):
            concepts = torch.randint(len(CODES), (64, 1))
            drawn = torch.multinomial(shares, 64 * N_PAIRS, True).view(64, N_PAIRS)
            rows = torch.stack([letter_ids[drawn], table[concepts, drawn]], dim=2).flatten(1)
            logits = network(input_ids=rows).logits
            asked = torch.arange(0, rows.shape[1] - 1, 2)  # at each letter, behind which its label comes
            loss = torch.nn.functional.cross_entropy(logits[:, asked].flatten(0, 1), rows[:, asked + 1].flatten())
            learner.zero_grad()
            loss.backward()
            learner.step()
            slowing.step()
            losses.append(float(loss.detach()))
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=128
    ).save_pretrained(folder)  # fmt: skip
    (folder / "loss.json").write_text(json.dumps(float(np.mean(losses[-100:]))))
    return folder
