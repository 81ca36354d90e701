"""Measures of likeness against their definitions, and what they must not see."""

import numpy as np
import pytest

from embedstore import InvalidInput, probing
from embedstore.probing.alikeness import MEASURES, hsic, minibatch_cka, mutual_knn, procrustes, svcca
from embedstore.probing.alikeness import linear_cka as cka


def drawn(n=60, d=7, seed=0):
    made = np.random.default_rng(seed).standard_normal((n, d)) * np.linspace(3, 0.5, d)
    return made.astype(np.float32)


def rotation(d, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0].astype(np.float32)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_is_one_and_noise_is_less(measure):
    first, other = drawn(), drawn(seed=5)
    compare = MEASURES[measure]
    assert compare(first, first) == pytest.approx(1.0, abs=1e-6)
    assert compare(first, other) < 0.7
    assert compare(first, other) == pytest.approx(compare(other, first), abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
def test_rotation_and_scale_are_not_seen(measure):
    first = drawn()
    turned = 3.0 * first @ rotation(7)
    assert MEASURES[measure](first, turned) == pytest.approx(1.0, abs=1e-5)
    if measure not in ("rsa", "mutual-knn"):  # which compare directions from the origin
        assert MEASURES[measure](first, turned + 5) == pytest.approx(1.0, abs=1e-4)


def test_cka_is_its_definition():
    first, second = drawn().astype(np.float64), drawn(d=4, seed=3).astype(np.float64)
    n = len(first)
    centre = np.eye(n) - 1 / n
    k, m = first @ first.T, second @ second.T

    def biased(a, b):
        return np.trace(centre @ a @ centre @ b)

    wanted = biased(k, m) / np.sqrt(biased(k, k) * biased(m, m))
    assert cka(first, second) == pytest.approx(wanted, abs=1e-9)


def test_the_unbiased_criterion_is_its_sum_over_quadruples():
    first, second = drawn(7, 3).astype(np.float64), drawn(7, 2, seed=3).astype(np.float64)
    k, m = first @ first.T, second @ second.T
    n = 7
    total = 0.0
    for i in range(n):  # (Song et al. 2012): means over distinct indices
        for j in range(n):
            if j == i:
                continue
            total += k[i, j] * m[i, j] / (n * (n - 1))
            for q in range(n):
                if q in (i, j):
                    continue
                total -= 2 * k[i, j] * m[i, q] / (n * (n - 1) * (n - 2))
                for r in range(n):
                    if r not in (i, j, q):
                        total += k[i, j] * m[q, r] / (n * (n - 1) * (n - 2) * (n - 3))
    assert hsic(k, m) == pytest.approx(total, abs=1e-9)
    with pytest.raises(InvalidInput, match="4 or more"):
        hsic(k[:3, :3], m[:3, :3])


def test_batches_add_up_to_nearly_the_whole():
    first = drawn(4000, 6)
    second = (first @ np.random.default_rng(9).standard_normal((6, 5)) + drawn(4000, 5, seed=4)).astype(np.float32)
    whole = MEASURES["cka-unbiased"](first, second)
    batches = [(first[i : i + 200], second[i : i + 200]) for i in range(0, 4000, 200)]
    assert minibatch_cka(batches) == pytest.approx(whole, abs=0.01)
    assert minibatch_cka([(first[:500], second[:500])]) == pytest.approx(
        MEASURES["cka-unbiased"](first[:500], second[:500]), abs=1e-9
    )


def test_svcca_and_procrustes_against_other_implementations():
    from scipy.linalg import orthogonal_procrustes
    from sklearn.cross_decomposition import CCA

    first = drawn(300, 5)
    second = (first @ rotation(5) + drawn(300, 5, seed=8)).astype(np.float32)
    x, y = CCA(5, max_iter=5000, tol=1e-12).fit_transform(first, second)
    wanted = np.mean([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(5)])
    assert svcca(first, second) == pytest.approx(wanted, abs=1e-4)
    a, b = (one - one.mean(axis=0) for one in (first.astype(np.float64), second.astype(np.float64)))
    assert procrustes(first, second) == pytest.approx(
        orthogonal_procrustes(a / np.linalg.norm(a), b / np.linalg.norm(b))[1], abs=1e-6
    )


def test_mutual_neighbours_are_counted():
    first, second = drawn(50, 4), drawn(50, 4, seed=3)

    def near(one):
        unit = one / np.linalg.norm(one, axis=1, keepdims=True)
        return [set(np.argsort(-(unit @ unit[i]))[1:11]) for i in range(50)]

    wanted = np.mean([len(a & b) / 10 for a, b in zip(near(first), near(second), strict=True)])
    assert mutual_knn(first, second) == pytest.approx(wanted, abs=1e-6)


def test_layers_are_compared_and_drawn(store, model_of, tmp_path):
    collection = store.collection("papers", encoder="none")
    collection.add([{"key": str(i), "text": f"the {'red' if i % 2 else 'big'} cat " * (1 + i % 7)} for i in range(40)])
    probing.capture(collection, str(model_of("bert")))
    probing.capture(collection, str(model_of("llama")), prefix="l-", layers=[0, 1, 2, 3])
    found = probing.similarity(collection)
    assert found.rows == ["layer-00", "layer-01", "layer-02", "layer-03"] and found.n == 40
    np.testing.assert_allclose(np.diag(found.values), 1, atol=1e-6)
    np.testing.assert_allclose(found.values, found.values.T)
    states = [collection.vectors([str(i) for i in range(40)], space=name) for name in ("layer-01", "l-layer-02")]
    other = probing.similarity(collection, other_prefix="l-")
    assert other.values[1, 2] == pytest.approx(cka(*states), abs=1e-6)
    other.plot(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 5000
    for options, told in (({"measure": "x"}, "measure is 'x'"), ({"sample": 2}, "sample is 2"),
                          ({"other_prefix": "no-"}, "holds no 'hidden' layers under the prefix 'no-'")):  # fmt: skip
        with pytest.raises(InvalidInput, match=told):
            probing.similarity(collection, **options)
