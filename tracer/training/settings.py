"""What is trained and how: one dataclass, one line of doc a field.

Source of the defaults: Circuit Tracing (2025), "Building an interpretable replacement model" and
its appendix on training; spec, section 2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from tracer.errors import SettingError, nearest
from tracer.transcoders.checkpoint import READ_HOOKS, WRITE_HOOKS

__all__ = ["TrainSettings"]


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a training run; those of the paper where it gives them.

    Attributes
    ----------
    kind
        ``clt``: features write to their own and all later layers; ``plt``: to their own alone.
    features
        Features of a layer, F.
    activation
        ``jumprelu`` (the paper's), ``topk`` or ``batchtopk``; the last two become thresholds at
        the end.
    k
        Active features a layer and position on average, for ``topk`` and ``batchtopk``.
    across_layers
        Whether ``batchtopk`` shares its active features between layers (one ranking of all), or
        each layer gets the same number.
    skip
        Whether layers have an affine skip, ``ŷ += W_skip x`` (PLT only: no tool's CLT files have
        it).
    read_hook, write_hook
        What features read and what they replace.
    steps
        Optimiser steps.
    batch
        Tokens of a step.
    learning_rate
        Of Adam, after warm-up.
    warm_up
        Share of the steps over which the learning rate rises from 0.
    decay
        Share of the steps, at the end, over which it falls to 0.
    betas
        Adam's decay rates of the mean gradient and the mean square.
    clip
        Largest norm of the gradient (of the objective per target number); 0 for no clipping.
    sparsity
        λ of the sparsity penalty at the end of its ramp (``jumprelu``).
    steepness
        c in ``tanh(c ‖W_dec‖ a)``.
    preactivation
        λ_pre of ``Σ ReLU(−h)``, what keeps JumpReLU features from dying.
    bandwidth
        Width of the window in which the jump has a straight-through gradient.
    threshold
        θ of every JumpReLU at the start.
    auxiliary
        Weight of the auxiliary loss that revives dead features; None for 0.1 with ``topk`` and
        ``batchtopk``, and 0 with ``jumprelu`` (the paper's objective as it is).
    auxiliary_k
        Dead features a layer and position that take part in the auxiliary loss; None for k (32
        with ``jumprelu``): shared among many more, the error would revive none of them.
    dead_after
        Tokens without activity after which a feature counts as dead; None for a thirtieth of the
        run, 10 million at most.
    mix
        Share of each token class in what is drawn, ``{"answer": 0.5, …}``; tokens of classes not
        named are not drawn. Empty: all tokens alike.
    zero_first
        First positions that are left out, as in graphs; None for what the model asks for.
    context
        The most tokens of a sequence that are read from a file of texts.
    buffer
        GiB of activations that are shuffled together.
    cache
        Folder for activations as safetensors shards; None makes them anew whenever needed.
    held_out_share
        Share of the sequences that figures are measured on and nothing is trained on.
    held_out_tokens
        The most tokens for these figures.
    log_every
        Steps between lines of the metrics file.
    evaluate_every
        Steps between figures on held-out text; 0 for the end alone.
    checkpoint_every
        Steps between checkpoints; 0 for the end alone.
    seed
        Of everything random.
    """

    kind: Literal["clt", "plt"] = "clt"
    features: int = 1024
    activation: Literal["jumprelu", "topk", "batchtopk"] = "batchtopk"
    k: float = 16.0
    across_layers: bool = True
    skip: bool = False
    read_hook: str = "hook_resid_mid"
    write_hook: str = "hook_mlp_out"
    steps: int = 5000
    batch: int = 1024
    learning_rate: float = 1e-3
    warm_up: float = 0.02
    decay: float = 0.3
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    sparsity: float = 2.0
    steepness: float = 4.0
    preactivation: float = 3e-6
    bandwidth: float = 1.0
    threshold: float = 0.03
    auxiliary: float | None = None
    auxiliary_k: int | None = None
    dead_after: int | None = None
    mix: dict[str, float] = field(default_factory=dict)
    zero_first: int | None = None
    context: int | None = None
    buffer: float = 1.0
    cache: str | None = None
    held_out_share: float = 0.02
    held_out_tokens: int = 4096
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("kind", ("clt", "plt")),
            ("activation", ("jumprelu", "topk", "batchtopk")),
            ("read_hook", READ_HOOKS),
            ("write_hook", WRITE_HOOKS),
        ):
            value = getattr(self, name)
            if value not in known:
                hint = nearest(str(value), known) or f"Known are {', '.join(known)}"
                raise SettingError(f'{name} is "{value}"', hint)
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                limit = f"{low:g} or more" if high == _MANY else f"{low:g} to {high:g}"
                raise SettingError(f"{name} is {value}", f"Give {limit}")
        if self.warm_up + self.decay > 1:
            raise SettingError("warm_up and decay are more than the whole run", "Lower one")
        if self.activation != "jumprelu" and self.k > self.features:
            raise SettingError(
                f"k is {self.k:g} of {self.features} features", "Lower k, or give more features"
            )
        if self.activation == "topk" and self.k != int(self.k):
            raise SettingError(f"k of topk is {self.k}", "Give a whole number, or use batchtopk")
        if self.skip and self.kind == "clt":
            raise SettingError(
                "a CLT with an affine skip cannot be saved in circuit-tracer's layout",
                "Leave out skip, or train a PLT",
            )
        if any(share < 0 for share in self.mix.values()) or (
            self.mix and not sum(self.mix.values()) > 0
        ):
            raise SettingError(f"mix is {self.mix}", "Give positive shares")

    @property
    def auxiliary_weight(self) -> float:
        """`auxiliary`, or its default for the activation."""
        if self.auxiliary is not None:
            return self.auxiliary
        return 0.0 if self.activation == "jumprelu" else 0.1

    @property
    def dead_tokens(self) -> int:
        """`dead_after`, or its default for the run."""
        if self.dead_after is not None:
            return self.dead_after
        return min(10_000_000, max(1, self.steps // 30) * self.batch)

    @property
    def auxiliary_features(self) -> int:
        """`auxiliary_k`, or its default for the activation."""
        if self.auxiliary_k is not None:
            return self.auxiliary_k
        return 32 if self.activation == "jumprelu" else max(1, round(self.k))

    def changed(self, **changes: Any) -> TrainSettings:
        """Copy with some settings changed.

        Raises
        ------
        SettingError
            If there is no setting of that name, or a value is out of range.
        """
        known = asdict(self)
        for name in changes:
            if name not in known:
                raise SettingError(
                    f"there is no setting {name!r} of training", nearest(name, known)
                )
        return replace(self, **changes)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, from 0: linear up, level, linear down."""
        rise, fall = self.warm_up * self.steps, self.decay * self.steps
        up = (step + 1) / rise if rise > 0 else 1.0
        down = (self.steps - step) / fall if fall > 0 else 1.0
        return self.learning_rate * min(1.0, up, down)

    def sparsity_at(self, step: int) -> float:
        """λ of a step, from 0: a linear ramp over the whole run."""
        return self.sparsity * step / max(self.steps - 1, 1)


_MANY: Final = float("inf")
_RANGES: Final = (
    ("features", 1, _MANY),
    ("k", 1e-9, _MANY),
    ("steps", 1, _MANY),
    ("batch", 1, _MANY),
    ("learning_rate", 0, _MANY),
    ("warm_up", 0, 1),
    ("decay", 0, 1),
    ("clip", 0, _MANY),
    ("sparsity", 0, _MANY),
    ("steepness", 0, _MANY),
    ("preactivation", 0, _MANY),
    ("bandwidth", 1e-9, _MANY),
    ("threshold", 1e-9, _MANY),
    ("auxiliary", 0, _MANY),
    ("auxiliary_k", 1, _MANY),
    ("dead_after", 1, _MANY),
    ("zero_first", 0, _MANY),
    ("context", 2, _MANY),
    ("buffer", 1e-6, _MANY),
    ("held_out_share", 0, 0.9),
    ("held_out_tokens", 1, _MANY),
    ("log_every", 1, _MANY),
    ("evaluate_every", 0, _MANY),
    ("checkpoint_every", 0, _MANY),
    ("seed", 0, _MANY),
)
