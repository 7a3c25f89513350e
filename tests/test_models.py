"""Freezing: every family on small random models, against an independent re-derivation.

The oracle below never looks at `tracer.models`: it patches the transformers model itself (its own
norm formulas and attention, in the dtype of the model) and freezes it by playing recorded
denominators, patterns and MLP outputs back. With everything frozen the patched model is affine, so
the difference of two of its runs is the linear map, exactly, whatever the size of the step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from tracer.errors import SettingError, TracingError
from tracer.models import FrozenModel, FrozenNorm, Model
from tracer.models.families import FAMILIES, Family, LayerParts, Parts
from tracer.models.proof import unembed

D, VOCAB, LAYERS = 32, 61, 3
IDS = [1, 17, 4, 60, 17, 33, 8, 9, 25, 4, 50, 2]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

_COMMON = {
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 12}
_WINDOWS = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_GEMMA = {**_GROUPED, **_WINDOWS, "query_pre_attn_scalar": 7, "rms_norm_eps": 1e-3}


def _seeing() -> transformers.PretrainedConfig:
    vision = transformers.SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**_GEMMA, final_logit_softcapping=5.0),
        vision_config=vision,
        mm_tokens_per_image=1,
        image_token_index=VOCAB - 3,
    )


@dataclass(frozen=True)
class Names:
    """Where a family keeps its modules: the test's own table."""

    body: str
    embedding: str = "embed_tokens"
    layers: str = "layers"
    attention: str = "self_attn"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    final_norm: str = "norm"


_LLAMA = Names("model")
_GEMMAS = Names("model", mlp_norm="pre_feedforward_layernorm")
_GPT2 = Names("transformer", "wte", "h", "attn", "ln_1", "ln_2", "ln_f")
_NEOX = Names("gpt_neox", "embed_in", attention="attention", final_norm="final_layer_norm")

CASES: dict[str, tuple[str, Names, Callable[[], transformers.PretrainedConfig]]] = {
    "gpt2": (
        "gpt2",
        _GPT2,
        lambda: transformers.GPT2Config(
            n_embd=D,
            n_layer=LAYERS,
            n_head=4,
            n_positions=40,
            vocab_size=VOCAB,
            scale_attn_by_inverse_layer_idx=True,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "neox parallel": (
        "gpt_neox",
        _NEOX,
        lambda: transformers.GPTNeoXConfig(**_COMMON, use_parallel_residual=True),
    ),
    "neox sequential": (
        "gpt_neox",
        _NEOX,
        lambda: transformers.GPTNeoXConfig(
            **_COMMON, use_parallel_residual=False, attention_bias=False
        ),
    ),
    "llama": ("llama", _LLAMA, lambda: transformers.LlamaConfig(**_GROUPED, rms_norm_eps=1e-3)),
    "llama with biases": (
        "llama",
        _LLAMA,
        lambda: transformers.LlamaConfig(
            **_COMMON, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
        ),
    ),
    "mistral": (
        "mistral",
        _LLAMA,
        lambda: transformers.MistralConfig(**_GROUPED, sliding_window=4),
    ),
    "qwen2": (
        "qwen2",
        _LLAMA,
        lambda: transformers.Qwen2Config(
            **_COMMON, num_key_value_heads=1, use_sliding_window=True, **_WINDOWS
        ),
    ),
    "qwen3": (
        "qwen3",
        _LLAMA,
        lambda: transformers.Qwen3Config(**_GROUPED, attention_bias=True),
    ),
    "gemma2": (
        "gemma2",
        _GEMMAS,
        lambda: transformers.Gemma2Config(
            **_GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, attention_bias=True
        ),
    ),
    "gemma3": (
        "gemma3",
        _GEMMAS,
        lambda: transformers.Gemma3TextConfig(**_GEMMA, final_logit_softcapping=5.0),
    ),
    "gemma3 that sees": ("gemma3", replace(_GEMMAS, body="model.language_model"), _seeing),
}


def build(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """Random model of a case: nothing, bias or norm, is left at a value that could be forgotten."""
    torch.manual_seed(seed)
    module = transformers.AutoModelForCausalLM.from_config(
        CASES[name][2](), attn_implementation="eager", dtype=dtype
    ).eval()
    with torch.no_grad():
        for path, weight in module.named_parameters():
            if "norm" in path or ".ln_" in path:
                off = 0.0 if path.endswith("bias") or "gemma" in name else 1.0
                weight.copy_(off + 0.4 * torch.randn_like(weight))
            else:
                weight.copy_(0.25 * torch.randn_like(weight))
    return module


@dataclass
class Run:
    """What the oracle saw in one pass of its patched model."""

    denominators: dict[nn.Module, Tensor] = field(default_factory=dict)
    patterns: dict[int, Tensor] = field(default_factory=dict)
    norm_inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    norm_outputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mlps: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


@cache
def oracle_of(name: str, dtype: torch.dtype) -> tuple[Oracle, Run, FrozenModel]:
    """Oracle of a case, its free run, and the freeze under test; made once."""
    oracle = Oracle(name, dtype)
    return oracle, oracle.run(), Model(oracle.module).freeze(IDS)


class Oracle:
    """A transformers model with the test's own norms and attention, free or frozen to a run."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.family, self.names, _ = CASES[name]
        self.module = build(name, dtype)
        self.body = self.module.get_submodule(self.names.body)
        self.embedding = getattr(self.body, self.names.embedding)
        self.final_norm = getattr(self.body, self.names.final_norm)
        self.layers = getattr(self.body, self.names.layers)
        self.mlp_norms = [getattr(layer, self.names.mlp_norm) for layer in self.layers]
        self.attention_norms = [getattr(layer, self.names.attention_norm) for layer in self.layers]

    def run(
        self,
        frozen: Run | None = None,
        step: Tensor | None = None,
        mlp_steps: Tensor | None = None,
    ) -> Run:
        """One pass; frozen to another, and with steps added to embeddings and MLP outputs."""
        run = Run()
        with torch.no_grad(), self._patched(run, frozen, step, mlp_steps):
            run.logits = self.module(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
        return run

    @contextmanager
    def _patched(
        self, run: Run, frozen: Run | None, step: Tensor | None, mlp_steps: Tensor | None
    ) -> Iterator[None]:
        patched: list[nn.Module] = []

        def patch(module: nn.Module, forward: Callable[..., Any]) -> None:
            module.forward = forward
            patched.append(module)

        for module in self.body.modules():
            if type(module).__name__.endswith("Norm"):
                patch(module, self._norm(module, run, frozen))
        for index, layer in enumerate(self.layers):
            steps = None if mlp_steps is None else mlp_steps[index]
            patch(layer.mlp, self._mlp(layer.mlp, index, run, frozen, steps))
        if step is not None:
            plain = self.embedding.forward
            patch(self.embedding, lambda ids: plain(ids) + step)

        hooks = []
        for index, layer in enumerate(self.layers):
            attention = getattr(layer, self.names.attention)

            def keep(_m: nn.Module, _a: Any, output: Any, index: int = index) -> None:
                run.attention[index] = output[0][0]

            hooks.append(attention.register_forward_hook(keep))
        file = sys.modules[type(attention).__module__]
        before = file.eager_attention_forward
        file.eager_attention_forward = self._attention(run, frozen)
        try:
            yield
        finally:
            file.eager_attention_forward = before
            for hook in hooks:
                hook.remove()
            for module in patched:
                del module.forward

    def _norm(self, module: Any, run: Run, frozen: Run | None) -> Callable[[Tensor], Tensor]:
        layer_norm = isinstance(module, nn.LayerNorm)
        plus = 1.0 if "Gemma" in type(module).__name__ else 0.0
        eps = getattr(module, "eps", None) or module.variance_epsilon

        def forward(x: Tensor) -> Tensor:
            run.norm_inputs[module] = x[0]
            if layer_norm:
                x = x - x.mean(-1, keepdim=True)
            root = ((x * x).mean(-1, keepdim=True) + eps) ** 0.5
            run.denominators[module] = root
            if frozen is not None:
                root = frozen.denominators[module]
            y = x / root * (plus + module.weight) + (module.bias if layer_norm else 0.0)
            run.norm_outputs[module] = y[0]
            return y

        return forward

    def _mlp(
        self, module: Any, index: int, run: Run, frozen: Run | None, step: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        plain = module.forward

        def forward(x: Tensor) -> Tensor:
            y = plain(x) if frozen is None else frozen.mlps[index]
            run.mlps[index] = y
            return y if step is None else y + step

        return forward

    def _attention(self, run: Run, frozen: Run | None) -> Callable[..., tuple[Tensor, Tensor]]:
        def forward(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attention_mask: Tensor | None,
            scaling: float,
            softcap: float | None = None,
            sliding_window: int | None = None,
            **_: Any,
        ) -> tuple[Tensor, Tensor]:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = query @ key.mT * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            positions = torch.arange(scores.shape[-1])
            apart = positions[:, None] - positions[None, :]
            seen = (apart >= 0) & (apart < (sliding_window or len(positions)))
            pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            run.patterns[module.layer_idx] = pattern
            if frozen is not None:
                pattern = frozen.patterns[module.layer_idx]
            return (pattern @ value).transpose(1, 2).contiguous(), pattern

        return forward


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Position by position, relative to what is expected there."""
    assert found.shape == expected.shape
    error = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max()
    assert error <= tolerance, f"relative error {error:.2e}"


def whole(frozen: FrozenModel) -> tuple[list[Tensor], Tensor]:
    """Carry the recorded prompt through the frozen model."""
    entering = frozen.embeddings
    if frozen.position_embeddings is not None:
        entering = entering + frozen.position_embeddings
    return frozen.run(entering, lambda layer, _: frozen.mlp_outputs[layer], constants=True)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
every = pytest.mark.parametrize("name", CASES)


def test_every_family_has_a_case() -> None:
    assert {family for family, _, _ in CASES.values()} == {family.name for family in FAMILIES}


@every
@both
def test_the_whole_gives_streams_and_logits(name: str, dtype: torch.dtype) -> None:
    (oracle, expected, frozen), tolerance = oracle_of(name, dtype), TOLERANCE[dtype]
    assert frozen.embeddings.dtype == dtype
    assert frozen.parallel == (name == "neox parallel")

    read, final = whole(frozen)
    for layer, norm in enumerate(oracle.mlp_norms):
        close(read[layer], expected.norm_inputs[norm], tolerance)
        close(frozen.streams[layer], expected.norm_inputs[norm], tolerance)
        close(
            frozen.mlp_norms[layer](frozen.streams[layer]), expected.norm_outputs[norm], tolerance
        )
    close(final, expected.norm_inputs[oracle.final_norm], tolerance)
    close(frozen.final_norm(final), expected.norm_outputs[oracle.final_norm], tolerance)

    logits = frozen.final_norm(final)[-1] @ frozen.unembedding.T
    if frozen.unembedding_bias is not None:
        logits = logits + frozen.unembedding_bias
    if frozen.soft_cap is not None:
        logits = frozen.soft_cap * torch.tanh(logits / frozen.soft_cap)
    close(logits, expected.logits, tolerance)
    close(frozen.logits, expected.logits, tolerance)


@every
@both
def test_each_attention_layer_alone(name: str, dtype: torch.dtype) -> None:
    (oracle, expected, frozen), tolerance = oracle_of(name, dtype), TOLERANCE[dtype]
    for layer, attention in enumerate(frozen.attentions):
        before = expected.norm_inputs[oracle.attention_norms[layer]]
        if name == "neox parallel":
            written = expected.attention[layer]
        else:  # what was added to the stream, so after a norm on the way out
            written = expected.norm_inputs[oracle.mlp_norms[layer]] - before
        close(attention(before), written, 10 * tolerance if dtype == torch.float32 else tolerance)
        close(attention.probabilities, expected.patterns[layer][0], tolerance)
        seen = torch.ones(len(IDS), len(IDS)).tril().bool()
        assert not attention.pattern[:, ~seen].any()


@every
@both
def test_the_linear_part_is_the_frozen_models(name: str, dtype: torch.dtype) -> None:
    (oracle, base, frozen), tolerance = oracle_of(name, dtype), TOLERANCE[dtype]
    held = oracle.run(frozen=base)
    close(held.logits, base.logits, tolerance)  # the oracle's own freeze changes nothing

    torch.manual_seed(1)
    size = float(frozen.embeddings.norm(dim=-1).mean()) / D**0.5
    step = size * torch.randn(len(IDS), D, dtype=dtype)
    moved = oracle.run(frozen=base, step=step)
    read, final = frozen.run(step, constants=False)
    for layer, norm in enumerate(oracle.mlp_norms):
        close(read[layer], moved.norm_inputs[norm] - held.norm_inputs[norm], tolerance)
        close(
            frozen.mlp_norms[layer].linear(read[layer]),
            moved.norm_outputs[norm] - held.norm_outputs[norm],
            tolerance,
        )
    norm = oracle.final_norm
    close(final, moved.norm_inputs[norm] - held.norm_inputs[norm], tolerance)
    close(
        frozen.final_norm.linear(final),
        moved.norm_outputs[norm] - held.norm_outputs[norm],
        tolerance,
    )


@every
@both
def test_what_mlps_write_travels_alike(name: str, dtype: torch.dtype) -> None:
    (oracle, base, frozen), tolerance = oracle_of(name, dtype), TOLERANCE[dtype]
    held = oracle.run(frozen=base)
    torch.manual_seed(2)
    steps = torch.randn(LAYERS, len(IDS), D, dtype=dtype)
    steps *= frozen.mlp_outputs.norm(dim=-1, keepdim=True) / D**0.5
    moved = oracle.run(frozen=base, mlp_steps=steps)

    norms = frozen.post_norms or [FrozenNorm()] * LAYERS
    assert (frozen.post_norms is not None) == name.startswith("gemma")
    _, final = frozen.run(
        torch.zeros(len(IDS), D, dtype=dtype),
        lambda layer, _: norms[layer].linear(steps[layer]),
        constants=False,
    )
    norm = oracle.final_norm
    close(final, moved.norm_inputs[norm] - held.norm_inputs[norm], tolerance)


@every
def test_the_unpatched_model_agrees(name: str) -> None:
    """Plain transformers, nothing patched: its float32 casts are all that differs in float64."""
    module = build(name)
    with torch.no_grad():
        plain = module(input_ids=torch.tensor([IDS]), use_cache=False).logits[0, -1]
    frozen = Model(module).freeze(IDS)
    _, final = whole(frozen)
    close(unembed(frozen, frozen.final_norm(final)[-1]), plain, 1e-5)


@every
def test_what_a_model_says_of_itself(name: str) -> None:
    model = Model(build(name, torch.float32), model_id="it")
    assert model.family == CASES[name][0]
    assert (model.n_layers, model.width, model.vocab_size) == (LAYERS, D, VOCAB)
    assert model.context == 40
    assert model.has_post_norm == name.startswith("gemma")
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))


@every
def test_recording_leaves_nothing_behind(name: str) -> None:
    module = build(name, torch.float32)
    Model(module).freeze(IDS)
    for part in module.modules():
        assert not part._forward_hooks
    assert not any(weight.requires_grad for weight in module.parameters())


def test_embeddings_are_the_tokens_rows_alone() -> None:
    module = build("gpt2")
    frozen = Model(module).freeze(IDS)
    assert torch.equal(frozen.embeddings, module.transformer.wte.weight[IDS])
    assert frozen.position_embeddings is not None
    assert torch.equal(frozen.position_embeddings, module.transformer.wpe.weight[: len(IDS)])
    module = build("gemma2")
    frozen = Model(module).freeze(IDS)
    scaled = module.model.embed_tokens.weight[IDS] * D**0.5
    close(frozen.embeddings, scaled, 1e-6)  # √d is a float32 number in the module
    assert frozen.position_embeddings is None


def test_nothing_large_is_copied() -> None:
    module = build("llama", torch.float32)
    frozen = Model(module).freeze(IDS)
    assert frozen.unembedding.data_ptr() == module.lm_head.weight.data_ptr()
    for attention, layer in zip(frozen.attentions, module.model.layers, strict=True):
        assert attention.output.data_ptr() == layer.self_attn.o_proj.weight.data_ptr()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@every
def test_half_precision_is_frozen_in_float32(name: str, half: torch.dtype) -> None:
    model = Model(build(name, half))
    frozen = model.freeze(IDS)
    assert frozen.embeddings.dtype == frozen.attentions[0].pattern.dtype == torch.float32
    assert frozen.unembedding.dtype == half
    proof = model.prove(IDS)
    assert proof.holds
    assert 1e-5 < proof.worst.error < (2e-2 if half == torch.bfloat16 else 5e-3)


def test_double_freeze_of_a_single_model() -> None:
    proof = Model(build("gemma2", torch.float32)).prove(IDS, torch.float64)
    assert {piece.tolerance for piece in proof.pieces} == {1e-4}
    assert proof.worst.error < 1e-5
    proof = Model(build("gemma2", torch.float64)).prove(IDS)
    assert proof.holds
    assert {piece.tolerance for piece in proof.pieces} == {1e-9}
    assert proof.worst.error < 1e-12
    with pytest.raises(SettingError, match=r"torch\.float32 or torch\.float64"):
        Model(build("gemma2", torch.float32)).freeze(IDS, torch.bfloat16)


def test_gpt2_whose_scores_are_made_in_float32() -> None:
    config = CASES["gpt2"][2]()
    config.reorder_and_upcast_attn = True
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert Model(module).prove(IDS).worst.error < 1e-5
    with pytest.raises(TracingError, match=r"cannot do in float64\. Load it in float32"):
        Model(module.double())


def test_one_token_and_the_longest_prompt() -> None:
    model = Model(build("gemma3"))
    assert model.freeze([5]).n_positions == 1
    assert model.freeze([5] * model.context).n_positions == 40


# Tampering: each of these is an adapter that forgets or misplaces one thing.


def _layer(index: int, **changes: Any) -> Callable[[Parts], Parts]:
    return _in_layer(index, lambda layer: replace(layer, **changes))


def _heads(index: int, **changes: Callable[[Any], Any]) -> Callable[[Parts], Parts]:
    def change(layer: LayerParts) -> LayerParts:
        made = {name: make(layer.heads) for name, make in changes.items()}
        return replace(layer, heads=replace(layer.heads, **made))

    return _in_layer(index, change)


def _norm(index: int, norm: str, **changes: Any) -> Callable[[Parts], Parts]:
    return _in_layer(
        index, lambda layer: replace(layer, **{norm: replace(getattr(layer, norm), **changes)})
    )


def _in_layer(index: int, change: Callable[[LayerParts], LayerParts]) -> Callable[[Parts], Parts]:
    def tamper(parts: Parts) -> Parts:
        layers = list(parts.layers)
        layers[index] = change(layers[index])
        return replace(parts, layers=layers)

    return tamper


def _none(_: Any) -> None:
    return None


def _keys_for_values(heads: Any) -> Tensor:
    return heads.value.roll(1, 0)  # another head's


TAMPERED: dict[str, tuple[str, Callable[[Parts], Parts], str]] = {
    "norm after attention": (
        "gemma2",
        _layer(1, post_attention_norm=None),
        "layer 1, stream that the MLP reads",
    ),
    "norm after MLP": ("gemma3", _layer(2, post_mlp_norm=None), "layer 2, stream after the layer"),
    "scale - 1 taken for scale": (
        "gemma2",
        _norm(1, "attention_norm", offset=0.0),
        "layer 1, norm before attention",
    ),
    "scale - 1 after attention": (
        "gemma2",
        _norm(1, "post_attention_norm", offset=0.0),
        "layer 1, attention",
    ),
    "scale - 1 after MLP": (
        "gemma2",
        _norm(0, "post_mlp_norm", offset=0.0),
        "layer 0, norm after MLP",
    ),
    "value bias": ("qwen2", _heads(1, value_bias=_none), "layer 1, attention"),
    "output bias": ("gpt2", _heads(2, output_bias=_none), "layer 2, attention"),
    "other value head": ("llama", _heads(0, value=_keys_for_values), "layer 0, attention"),
    "other output head": (
        "mistral",
        _heads(0, output=lambda heads: heads.output.roll(1, 0)),
        "layer 0, attention",
    ),
    "untransposed": (
        "gpt2",
        _heads(0, output=lambda heads: heads.output.flatten(0, 1).view(4, 8, D).mT),
        "layer 0, attention",
    ),
    "shift before attention": (
        "neox parallel",
        _norm(0, "attention_norm", shift=None),
        "layer 0, norm before attention",
    ),
    "shift before MLP": ("gpt2", _norm(1, "mlp_norm", shift=None), "layer 1, norm before MLP"),
    "centring": ("gpt2", _norm(1, "mlp_norm", centred=False), "layer 1, norm before MLP"),
    "epsilon": ("llama", _norm(1, "mlp_norm", eps=10.0), "layer 1, norm before MLP"),
    "parallel for sequential": (
        "neox sequential",
        lambda parts: replace(parts, parallel=True),
        "layer 0, stream that the MLP reads",
    ),
    "sequential for parallel": (
        "neox parallel",
        lambda parts: replace(parts, parallel=False),
        "layer 0, stream that the MLP reads",
    ),
    "positions": ("gpt2", lambda parts: replace(parts, position_embedding=None), "embeddings"),
    "final norm": (
        "gpt2",
        lambda parts: replace(parts, final_norm=replace(parts.final_norm, shift=None)),
        "final norm",
    ),
    "final soft cap": ("gemma2", lambda parts: replace(parts, soft_cap=None), "unembedding"),
    "soft cap that is not there": (
        "gemma3 that sees",
        lambda parts: replace(parts, soft_cap=5.0),
        "unembedding",
    ),
    "transposed layers": (
        "qwen3",
        lambda parts: replace(parts, layers=[parts.layers[i] for i in (1, 0, 2)]),
        "embeddings",
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("what", TAMPERED)
def test_an_adapter_that_forgets_is_refused(what: str, dtype: torch.dtype) -> None:
    name, tamper, where = TAMPERED[what]
    model = Model(build(name, dtype))
    honest = model._family
    model._family = Family(
        honest.name, honest.model_types, lambda module: tamper(honest.parts(module))
    )
    with pytest.raises(TracingError) as caught:
        model.freeze(IDS)
    assert f"at {where}: " in caught.value.what
    assert f"this {honest.name} model" in caught.value.what
    assert f"families/{honest.name}.py" in caught.value.remedy
    model.freeze(IDS, check=False)  # nobody looked


def test_a_bias_that_the_head_has_is_added() -> None:
    module = build("llama")
    module.lm_head.bias = nn.Parameter(torch.randn(VOCAB, dtype=torch.float64))
    model = Model(module)
    frozen = model.freeze(IDS)
    assert frozen.unembedding_bias is not None
    honest = model._family
    model._family = Family(
        honest.name,
        honest.model_types,
        lambda module: replace(honest.parts(module), unembedding_bias=None),
    )
    with pytest.raises(TracingError, match="at unembedding: "):
        model.freeze(IDS)


def test_nan_is_no_proof() -> None:
    module = build("qwen3", torch.float32)
    with torch.no_grad():
        module.model.layers[1].self_attn.o_proj.weight[3, 3] = torch.nan
    with pytest.raises(TracingError, match="layer 1, attention: "):
        Model(module).freeze(IDS)


def test_a_module_that_does_not_run_is_named() -> None:
    model = Model(build("llama"))
    honest = model._family
    stray = nn.Linear(2, 2)
    model._family = Family(
        honest.name,
        honest.model_types,
        lambda module: _layer(1, mlp=stray)(honest.parts(module)),
    )
    with pytest.raises(TracingError, match="layer 1, MLP: nothing was recorded"):
        model.freeze(IDS)


def test_attention_that_keeps_no_pattern_is_refused() -> None:
    module = transformers.AutoModelForCausalLM.from_config(
        CASES["llama"][2](), attn_implementation="sdpa"
    )
    with pytest.raises(TracingError, match='attention is "sdpa"'):
        Model(module)


def test_wrapped_weights_are_refused() -> None:
    class Wrapped(nn.Linear):
        pass

    module = build("llama")
    module.model.layers[0].self_attn.v_proj = Wrapped(D, 24)
    with pytest.raises(TracingError, match=r"v_proj is a Wrapped, not a Linear"):
        Model(module)
    module = build("gpt2")
    module.transformer.h[0].attn.c_proj = nn.Linear(D, D)
    with pytest.raises(TracingError, match=r"c_proj is a Linear, not a Conv1D"):
        Model(module)


def test_models_that_read_more_than_the_prompt_are_refused() -> None:
    module = build("gpt2")
    module.config.add_cross_attention = True
    with pytest.raises(TracingError, match="cross-attention"):
        Model(module)
    module = build("gemma3")
    module.config.use_bidirectional_attention = True
    with pytest.raises(TracingError, match="both directions"):
        Model(module)
