"""What the layers of a language model know: its hidden states as spaces, and measurements on them."""

from embedstore.probing.capturing import States, capture
from embedstore.probing.keeping import KeptProbe, probe
from embedstore.probing.linear import LayerScore, ProbeReport, linear
from embedstore.probing.words import words

__all__ = ["KeptProbe", "LayerScore", "ProbeReport", "States", "capture", "linear", "probe", "words"]
