"""What the layers of a language model know: its hidden states as spaces, and measurements on them."""

from embedstore.probing.alikeness import MEASURES, minibatch_cka
from embedstore.probing.capturing import States, capture
from embedstore.probing.contextual import Contextuality, contextuality
from embedstore.probing.description import CodeLength, description_length
from embedstore.probing.heads import HeadedModel, open_headed
from embedstore.probing.incontext import InContextReport, Template, in_context
from embedstore.probing.keeping import KeptProbe, probe
from embedstore.probing.lens import LensReport, TunedLens, lens, tune, write_lens_page
from embedstore.probing.linear import LayerScore, ProbeReport, linear
from embedstore.probing.mixing import ScalarMix, scalar_mix
from embedstore.probing.report import LayerReport, report
from embedstore.probing.retrieval import RetrievalReport, ranked_answers, similar_pairs
from embedstore.probing.similarity import LayerSimilarity, similarity
from embedstore.probing.steering import steering, task_vectors
from embedstore.probing.words import words

__all__ = [
    "MEASURES", "CodeLength", "Contextuality", "HeadedModel", "InContextReport", "KeptProbe", "LayerReport",
    "LayerScore", "LayerSimilarity", "LensReport", "ProbeReport", "RetrievalReport", "ScalarMix", "States", "Template",
    "TunedLens", "capture", "contextuality", "description_length", "in_context", "lens", "linear", "minibatch_cka",
    "open_headed", "probe", "ranked_answers", "report", "scalar_mix", "similar_pairs", "similarity", "steering",
    "task_vectors", "tune", "words", "write_lens_page",
]  # fmt: skip
