"""Fixed texts, and what minilm makes of them: what an export must reproduce before it is used."""

from __future__ import annotations

import numpy as np

from embedstore.model import FloatMatrix

LEAST_COSINE = 0.9999
GREATEST_DIFFERENCE = 1e-4
"""As a share of the largest number in the vectors; exports differ by 1e-6 where they are right."""

CHECK_TEXTS = (
    "fungal disease in cereals",
    "Reis, Weizen & Gerste: Krankheiten früh erkennen — 稲のいもち病 🌾 naïve café",
    "a",
    "The quick brown fox [SEP] jumps over the lazy dog, then sleeps. " * 40,
)

MINILM_BEGINNINGS = np.array(
    [
        [-0.0152199, -0.0221599, -0.0497614, 0.0038970, 0.0176055, 0.0061717, -0.0386691, 0.0531975],
        [-0.0305754, 0.0669817, 0.0185519, 0.0278127, 0.0123639, 0.0321376, 0.0773803, 0.0235964],
        [-0.0364329, 0.0347035, -0.0459599, 0.0343256, -0.0808234, 0.0328386, 0.1169756, -0.0233094],
        [0.0663980, -0.0551852, 0.0525841, 0.0573713, 0.0072464, 0.0021545, -0.0273708, -0.0971989],
    ],
    dtype=np.float32,
)
"""The first eight numbers of minilm's vector of each text, by sentence-transformers 6.2 on torch 2.13."""


def differs(found: FloatMatrix, expected: FloatMatrix) -> str | None:
    """How ``found`` differs from ``expected``, both (n, dim), in words; None where they are the same."""
    if found.shape != expected.shape:
        return f"vectors have shape {found.shape} instead of {expected.shape}"
    if not np.isfinite(found).all():
        return "vectors hold numbers that are not finite"
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(axis=1) / np.maximum(lengths, 1e-30)).min())
    difference = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-30))
    if cosine <= LEAST_COSINE or difference >= GREATEST_DIFFERENCE:
        return f"vectors differ: least cosine {cosine:.6f}, greatest difference {difference:.1e}"
    return None
