"""A small causal model that learns in context: trained on a family of tasks whose concept is known."""

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


def label_of(concept: int, letter: str) -> str:
    """What a letter is called where a concept holds."""
    if letter in TELLING:
        return LABELS[CODES[concept, TELLING.index(letter)]]
    return LABELS[PLAIN.index(letter) % 2]


def train(folder: Path, steps: int = 3000, seed: int = 0, n_layers: int = 3, dim: int = 64) -> Path:
    """Train the model and write it as a folder of transformers; the mean loss of its last steps is in loss.json."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *TELLING, *PLAIN, "->", ";", *LABELS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(seed)
    network = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), hidden_size=dim, intermediate_size=2 * dim, num_hidden_layers=n_layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    ))  # fmt: skip
    ids = {word: place for place, word in enumerate(words)}
    letters = [*TELLING, *PLAIN]
    table = torch.tensor([[ids[label_of(concept, letter)] for letter in letters] for concept in range(len(CODES))])
    letter_ids = torch.tensor([ids[letter] for letter in letters])
    learner = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    slowing = torch.optim.lr_scheduler.OneCycleLR(learner, 2e-3, total_steps=steps)
    losses = []
    for _ in range(steps):
        concepts = torch.randint(len(CODES), (64, 1))
        drawn = torch.randint(len(letters), (64, N_PAIRS))
        labels = table[concepts, drawn]
        rows = torch.stack([
            letter_ids[drawn], torch.full_like(drawn, ids["->"]), labels, torch.full_like(drawn, ids[";"]),
        ], dim=2).flatten(1)  # fmt: skip
        logits = network(input_ids=rows).logits
        told = torch.arange(1, rows.shape[1] - 1, 4)  # at each arrow, where the label comes next
        loss = torch.nn.functional.cross_entropy(logits[:, told].flatten(0, 1), rows[:, told + 1].flatten())
        learner.zero_grad()
        loss.backward()
        learner.step()
        slowing.step()
        losses.append(float(loss.detach()))
    folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=128
    ).save_pretrained(folder)  # fmt: skip
    (folder / "loss.json").write_text(json.dumps(float(np.mean(losses[-100:]))))
    return folder
