"""The training objective and its gradient against an independent float64 NumPy implementation.

The oracle is written from the formulas of the spec (section 2), position by position and feature by
feature where that is bearable, and shares no code with the trainer. Gradients are written out by
hand; the smooth parts are also checked by finite differences. Tolerance 1e-9, relative to the
largest entry: both sides are float64 and sum at most 10⁴ terms.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tracer.training.objective import _selected_dense, jump, objective
from tracer.training.settings import TrainSettings
from tracer.training.weights import Weights, initial_weights

L, N, D, F = 3, 14, 5, 11
C, LAMBDA, PRE, EPS = 4.0, 0.7, 0.03, 1.0


def make(kind: str, activation: str, *, skip: bool = False, seed: int = 0, **more):
    """Settings, float64 weights away from their start, and a batch."""
    settings = TrainSettings(
        kind=kind,
        features=F,
        activation=activation,
        k=3,
        skip=skip,
        steepness=C,
        preactivation=PRE,
        bandwidth=EPS,
        **more,
    )
    generator = torch.Generator().manual_seed(seed)
    weights = initial_weights(settings, L, D, generator)
    with torch.no_grad():
        for name, tensor in weights.named():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            scale = {"log_threshold": 0.5, "encoder_bias": 0.3}.get(name, 0.4)
            tensor.data = tensor.double() + scale * drawn
    reads = torch.randn(L, N, D, generator=generator, dtype=torch.float64)
    writes = torch.randn(N, L, D, generator=generator, dtype=torch.float64)
    return settings, weights, reads, writes


class Oracle:
    """Objective and pseudo-gradient in NumPy."""

    def __init__(self, kind: str, weights: Weights, reads, writes) -> None:
        self.kind = kind
        self.w = {name: tensor.detach().numpy() for name, tensor in weights.named()}
        self.x, self.y = reads.numpy(), writes.numpy()

    def targets(self, layer: int) -> list[int]:
        return list(range(layer, L)) if self.kind == "clt" else [layer]

    def decoder(self, layer: int, target: int) -> np.ndarray:
        start = (target - layer) * D
        return self.w[f"decoder_{layer}"][:, start : start + D]

    def preactivations(self) -> np.ndarray:
        h = np.zeros((L, N, F))
        for layer in range(L):
            for p in range(N):
                for i in range(F):
                    h[layer, p, i] = (
                        self.w["encoder"][layer, i] @ self.x[layer, p]
                        + self.w["encoder_bias"][layer, i]
                    )
        return h

    def norms(self) -> np.ndarray:
        return np.array(
            [
                [
                    math.sqrt(
                        sum((self.decoder(layer, m)[i] ** 2).sum() for m in self.targets(layer))
                    )
                    for i in range(F)
                ]
                for layer in range(L)
            ]
        )

    def written(self, a: np.ndarray) -> np.ndarray:
        """Σ of decoders alone, (N, L, D)."""
        made = np.zeros((N, L, D))
        for layer in range(L):
            for m in self.targets(layer):
                made[:, m] += a[layer] @ self.decoder(layer, m)
        return made

    def error(self, a: np.ndarray) -> np.ndarray:
        made = self.written(a) + self.w["decoder_bias"]
        if "skip" in self.w:
            for m in range(L):
                made[:, m] += self.x[m] @ self.w["skip"][m].T
        return made - self.y

    def gradients(self, of_a: np.ndarray, a: np.ndarray, g: np.ndarray, of_h=None):
        """Of all weights, from that of what is written (g) and of the pre-activations."""
        of_h = of_a if of_h is None else of_h
        found = {
            "encoder": np.einsum("lnf,lnd->lfd", of_h, self.x),
            "encoder_bias": of_h.sum(axis=1),
        }
        for layer in range(L):
            found[f"decoder_{layer}"] = np.concatenate(
                [a[layer].T @ g[:, m] for m in self.targets(layer)], axis=1
            )
        return found

    def of_activations(self, g: np.ndarray) -> np.ndarray:
        of_a = np.zeros((L, N, F))
        for layer in range(L):
            for m in self.targets(layer):
                of_a[layer] += g[:, m] @ self.decoder(layer, m).T
        return of_a

    def penalised(self, window: float = EPS):
        """Paper's objective with JumpReLU: value, parts and hand-written pseudo-gradient."""
        h, norms = self.preactivations(), self.norms()
        theta = np.exp(self.w["log_threshold"])[:, None]
        on = h > theta
        a = np.where(on, h, 0.0)
        error = self.error(a)
        slope = np.tanh(C * norms[:, None] * a)
        parts = (
            (error**2).sum() / N,
            LAMBDA * slope.sum() / N,
            PRE * np.maximum(-h, 0).sum() / N,
        )
        g = 2 * error / N
        bend = LAMBDA * (1 - slope**2) / N  # d penalty / d (c ‖W‖ a)
        of_a = self.of_activations(g) + bend * C * norms[:, None]
        inside = np.abs(h - theta) < window / 2
        of_h = of_a * (on + theta / window * inside) - PRE / N * (h < 0)
        found = self.gradients(of_a, a, g, of_h)
        of_norm = (bend * C * a).sum(axis=1)
        for layer in range(L):
            rows = self.w[f"decoder_{layer}"]
            found[f"decoder_{layer}"] += of_norm[layer][:, None] * rows / norms[layer][:, None]
        found["decoder_bias"] = g.sum(axis=0)
        # dL/dθ = −(θ/ε) Σ inside dL/da, and d log θ = θ dθ.
        found["log_threshold"] = theta[:, 0] * -(of_a * inside * theta / window).sum(axis=1)
        if "skip" in self.w:
            found["skip"] = np.einsum("nmd,mne->mde", g, self.x)
        return parts, found

    def chosen(self, activation: str, k: float, across: bool) -> np.ndarray:
        """Mask of what TopK or BatchTopK keeps, by full sorting."""
        h = self.preactivations()
        mask = np.zeros(h.shape, dtype=bool)
        if activation == "topk":
            for layer in range(L):
                for p in range(N):
                    mask[layer, p, np.argsort(-h[layer, p])[: int(k)]] = True
        else:
            score = np.maximum(h, 0) * self.norms()[:, None]
            for group in [range(L)] if across else [[layer] for layer in range(L)]:
                rows = list(group)
                flat = np.sort(score[rows].ravel())[::-1]
                mask[rows] = score[rows] >= flat[round(k * N * len(rows)) - 1]
        return mask & (h > 0)

    def selected(self, mask: np.ndarray, dead=None, k: int = 0, weight: float = 0.0):
        """TopK's objective with auxiliary loss: parts and gradient."""
        h = self.preactivations()
        a = np.where(mask, h, 0.0)
        error = self.error(a)
        g = 2 * error / N
        of_a = self.of_activations(g) * mask
        found = self.gradients(of_a, a, g)
        found["decoder_bias"] = g.sum(axis=0)
        if "skip" in self.w:
            found["skip"] = np.einsum("nmd,mne->mde", g, self.x)
        auxiliary = 0.0
        if dead is not None:
            revived = np.zeros_like(h)
            for layer in range(L):
                for p in range(N):
                    order = [i for i in np.argsort(-h[layer, p]) if dead[layer, i]]
                    for i in order[:k]:
                        revived[layer, p, i] = max(h[layer, p, i], 0.0)
            rest = self.written(revived) + error
            auxiliary = weight * (rest**2).sum() / N
            g = weight * 2 * rest / N
            more = self.gradients(self.of_activations(g) * (revived > 0), revived, g)
            found = {name: value + more.get(name, 0.0) for name, value in found.items()}
        return ((error**2).sum() / N, 0.0, 0.0, auxiliary), found


def gradients_of(weights: Weights, total: torch.Tensor) -> dict[str, np.ndarray]:
    named = dict(weights.named())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        name: np.zeros(tensor.shape) if g is None else g.numpy()
        for (name, tensor), g in zip(named.items(), found, strict=True)
    }


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = np.abs(value).max()
        assert scale > 0, f"{name}: the oracle's gradient is zero: the test tells nothing"
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-9 * scale, err_msg=name)


@pytest.mark.parametrize(("kind", "skip"), [("clt", False), ("plt", False), ("plt", True)])
def test_penalised_objective(kind, skip) -> None:
    settings, weights, reads, writes = make(kind, "jumprelu", skip=skip)
    parts = objective(settings, weights, reads, writes, sparsity=LAMBDA)
    wanted, gradient = Oracle(kind, weights, reads, writes).penalised()
    got = [parts.reconstruction, parts.sparsity, parts.preactivation]
    np.testing.assert_allclose([v.item() for v in got], wanted, rtol=1e-12)
    assert parts.total.item() == pytest.approx(sum(wanted), rel=1e-12)
    assert_same(gradients_of(weights, parts.total), gradient)


def test_the_gradient_through_the_jump_reaches_everything() -> None:
    """Without the window the encoder's gradient is another: the jump's part is really there."""
    _, weights, reads, writes = make("clt", "jumprelu")
    oracle = Oracle("clt", weights, reads, writes)
    _, wide = oracle.penalised()
    _, none = oracle.penalised(window=1e-12)
    for name in ("encoder", "encoder_bias", "log_threshold"):
        assert np.abs(wide[name] - none[name]).max() > 1e-3 * np.abs(wide[name]).max()


@pytest.mark.parametrize(("kind", "skip"), [("clt", False), ("plt", True)])
def test_penalised_finite_differences(kind, skip) -> None:
    """With a window too narrow to hold a feature the gradient is the true one, θ's is 0."""
    settings, weights, reads, writes = make(kind, "jumprelu", skip=skip)
    settings = settings.changed(bandwidth=1e-9)
    parts = objective(settings, weights, reads, writes, sparsity=LAMBDA)
    found = gradients_of(weights, parts.total)
    assert not found.pop("log_threshold").any()
    _check_differences(settings, weights, reads, writes, found)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_selected_finite_differences(activation) -> None:
    settings, weights, reads, writes = make("clt", activation)
    found = gradients_of(weights, objective(settings, weights, reads, writes).total)
    _check_differences(settings, weights, reads, writes, found)


def _check_differences(settings, weights, reads, writes, found) -> None:
    generator = torch.Generator().manual_seed(9)
    step = 1e-6
    for name, tensor in weights.named():
        if name not in found:
            continue
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor += sign * step * direction
                parts = objective(settings, weights, reads, writes, sparsity=LAMBDA)
                values.append(parts.total.item())
                tensor -= sign * step * direction
        # Central differences: error of order step² plus rounding 1e-15 · objective / step.
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(float((found[name] * direction.numpy()).sum()), rel=1e-6)


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize(("kind", "skip"), [("clt", False), ("plt", True)])
def test_selected_objective(kind, skip, activation, across) -> None:
    """Values, gradients, counts and the dense form, with and without dead features."""
    settings, weights, reads, writes = make(
        kind, activation, skip=skip, across_layers=across, auxiliary=0.3, auxiliary_k=2
    )
    oracle = Oracle(kind, weights, reads, writes)
    mask = oracle.chosen(activation, settings.k, across)
    dead = np.random.default_rng(4).random((L, F)) < 0.4
    for which in (None, dead):
        wanted, gradient = oracle.selected(mask, which, 2, 0.3)
        given = None if which is None else torch.from_numpy(which)
        sparse = objective(settings, weights, reads, writes, dead=given)
        dense = _selected_dense(settings, weights, reads, writes, given)
        for parts in (sparse, dense):
            got = [part.item() for part in parts[:4]]
            np.testing.assert_allclose(got, wanted, rtol=1e-12)
            assert_same(gradients_of(weights, parts.total), gradient)
            np.testing.assert_array_equal(parts.counts.numpy(), mask.sum(axis=1))
            np.testing.assert_allclose(
                parts.errors.sum() / N, parts.reconstruction.item(), rtol=1e-12
            )
        np.testing.assert_allclose(sparse.cut, dense.cut, rtol=1e-12)


@pytest.mark.parametrize("near", [0.0, 1e-3, 0.5, 1e3])
def test_the_last_cut_changes_nothing(near) -> None:
    """Selecting looks near the last cut first; whatever that was, the result is the same."""
    settings, weights, reads, writes = make("clt", "batchtopk")
    wanted = objective(settings, weights, reads, writes)
    cut = torch.full((L,), near, dtype=torch.float64)
    found = objective(settings, weights, reads, writes, cut=cut)
    assert torch.equal(found.counts, wanted.counts)
    assert torch.equal(found.cut, wanted.cut)
    assert found.total.item() == wanted.total.item()


def test_the_cut_is_the_threshold() -> None:
    """θ = cut / ‖W_dec‖ keeps exactly what BatchTopK kept on that batch."""
    settings, weights, reads, writes = make("clt", "batchtopk")
    parts = objective(settings, weights, reads, writes)
    oracle = Oracle("clt", weights, reads, writes)
    theta = parts.cut.numpy()[:, None] / oracle.norms()
    kept = oracle.preactivations() >= theta[:, None] * (1 - 1e-12)
    np.testing.assert_array_equal(kept.sum(axis=1), parts.counts.numpy())


def test_few_positive_scores() -> None:
    """Fewer positive pre-activations than k asks for: all of them are kept, the cut is 0."""
    settings, weights, reads, writes = make("clt", "batchtopk")
    with torch.no_grad():
        weights.encoder_bias -= 100
        weights.encoder_bias[:, 0] += 200
    parts = objective(settings, weights, reads, writes)
    assert parts.counts.tolist() == [[N] + [0] * (F - 1)] * L
    assert parts.cut.tolist() == [0.0] * L
    assert math.isfinite(parts.total.item())


def test_jumprelu_by_hand() -> None:
    """Three numbers: below the window, inside it and above, with θ = 1, ε = 1."""
    h = torch.tensor([[[0.2], [0.8], [1.2], [3.0]]], dtype=torch.float64, requires_grad=True)
    log_threshold = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    norms = torch.full((1, 1), 2.0, dtype=torch.float64)
    a, penalty, negative = jump(h, log_threshold, norms, bandwidth=1.0, steepness=4.0)
    assert penalty.item() == pytest.approx(math.tanh(8 * 1.2) + math.tanh(8 * 3.0))
    assert negative.item() == 0.0
    assert a.flatten().tolist() == [0.0, 0.0, 1.2, 3.0]
    a.backward(torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]], dtype=torch.float64))
    assert h.grad.flatten().tolist() == [0.0, 10.0, 200.0, 1000.0]
    assert log_threshold.grad.item() == -110.0
