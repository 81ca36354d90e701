"""The hidden states of transformers: where they are in a model, and how they are read while it runs."""

from embedstore.states.anatomy import Anatomy, anatomy_of
from embedstore.states.pooling import POOLS, pooled
from embedstore.states.recording import Stopped, recording
from embedstore.states.running import StateModel, open_states
from embedstore.states.taps import ATTENTION, FINAL_NORM, HEAD, HIDDEN, MLP, SITES, Tap

__all__ = [
    "ATTENTION", "FINAL_NORM", "HEAD", "HIDDEN", "MLP", "POOLS", "SITES", "Anatomy", "StateModel", "Stopped", "Tap",
    "anatomy_of", "open_states", "pooled", "recording",
]  # fmt: skip
