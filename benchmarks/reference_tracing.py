"""The tracing workload, and circuit-tracer 0.5 timed on it.

Two environments take part, because circuit-tracer pins older libraries. From the repository::

    python -m benchmarks.reference_tracing make ROOT                              either one
    OTHER/bin/python -m benchmarks.reference_tracing run ROOT --kind clt …        circuit-tracer's

``make`` writes, from one seed, a GPT-2-small-shaped model (``model``), a cross-layer and a
per-layer transcoder set (``clt``, ``plt``; 4,096 features a layer) and a prompt of 16 tokens with
about 2,500 active features (``prompt.json``). Decoders are fitted to the model's own MLP outputs by
ridge regression, so that error nodes are neither nothing nor everything. The CLT takes 1.2 GB.

``run`` measures one attribution, in a process that does nothing else. Loading is not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tracing_process import Watch, answer

if TYPE_CHECKING:
    import torch

__all__ = ["FEATURES", "LAYERS", "ZEROED", "make", "run"]

SEED, LAYERS, WIDTH, HEADS, HIDDEN = 20250, 12, 768, 12, 3072
VOCABULARY, POSITIONS, FEATURES = 50257, 16, 4096
ACTIVE = 2500  # active features (layer, position, index) on the prompt
ZEROED = 1  # first positions, where circuit-tracer sets features to zero
PROMPTS = 256  # prompts that decoders are fitted on


# The workload -------------------------------------------------------------------------------------


def make(root: Path) -> None:
    """Write model, transcoders and prompt."""
    import torch
    import yaml
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    random = torch.Generator().manual_seed(SEED)
    root.mkdir(parents=True, exist_ok=True)
    model = _random_model(random)
    model.save_pretrained(root / "model")
    bos = VOCABULARY - 1
    words = {f"t{i}": i for i in range(bos)} | {"<bos>": bos}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "model" / "tokenizer.json"))
    # By hand: what newer transformers write of a tokenizer's class, older ones refuse.
    about = {f"{name}_token": "<bos>" for name in ("bos", "eos", "pad")}
    about["tokenizer_class"] = "PreTrainedTokenizerFast"
    (root / "model" / "tokenizer_config.json").write_text(json.dumps(about))
    prompts = torch.randint(0, bos, (PROMPTS, POSITIONS), generator=random)
    prompts[:, 0] = bos
    prompt = {"input_ids": prompts[0].tolist(), "seed": SEED}
    streams, outputs = _recorded(model, prompts)

    encoders = torch.randn(LAYERS, FEATURES, WIDTH, generator=random) / math.sqrt(WIDTH)
    biases = -0.1 + 0.02 * torch.randn(LAYERS, FEATURES, generator=random)
    thresholds, activations = torch.zeros(LAYERS), []
    for layer in range(LAYERS):
        before = streams[layer] @ encoders[layer].T + biases[layer]
        top = before[0, ZEROED:].flatten().sort(descending=True).values
        last = int(ACTIVE / LAYERS)
        thresholds[layer] = (top[last - 1] + top[last]) / 2
        active = torch.where(before > thresholds[layer], before, torch.zeros(()))
        activations.append(active[:, ZEROED:].reshape(-1, FEATURES))
    outputs = [output[:, ZEROED:].reshape(-1, WIDTH) for output in outputs]
    means = torch.stack([output.mean(0) for output in outputs])

    (root / "clt").mkdir(exist_ok=True)
    (root / "plt").mkdir(exist_ok=True)
    n = len(activations[0])
    kernel = torch.zeros(n, n)
    decoders = [torch.zeros(FEATURES, LAYERS - layer, WIDTH) for layer in range(LAYERS)]
    for layer in range(LAYERS):
        own, wanted = activations[layer] @ activations[layer].T, outputs[layer] - means[layer]
        kernel += own
        solved = _ridge(kernel, wanted)
        for below in range(layer + 1):
            decoders[below][:, layer - below] = activations[below].T @ solved
        tensors = {
            "W_enc": encoders[layer].contiguous(),
            "W_dec": (activations[layer].T @ _ridge(own, wanted)).contiguous(),
            "b_enc": biases[layer].clone(),
            "b_dec": means[layer].clone(),
            "activation_function.threshold": torch.full((FEATURES,), thresholds[layer].item()),
        }
        save_file(tensors, root / "plt" / f"layer_{layer}.safetensors")
    for layer in range(LAYERS):
        tensors = {
            f"W_enc_{layer}": encoders[layer].contiguous(),
            f"b_enc_{layer}": biases[layer].clone(),
            f"b_dec_{layer}": means[layer].clone(),
            f"threshold_{layer}": torch.full((FEATURES,), thresholds[layer].item()),
        }
        save_file(tensors, root / "clt" / f"W_enc_{layer}.safetensors")
        tensors = {f"W_dec_{layer}": decoders[layer].contiguous()}
        save_file(tensors, root / "clt" / f"W_dec_{layer}.safetensors")
    for kind, name in (("clt", "cross_layer_transcoder"), ("plt", "transcoder_set")):
        config = {
            "model_name": "gpt2",
            "feature_input_hook": "hook_resid_mid",
            "feature_output_hook": "hook_mlp_out",
            "scan": "bench",
            "model_kind": name,
        }
        (root / kind / "config.yaml").write_text(yaml.safe_dump(config))
    (root / "prompt.json").write_text(json.dumps(prompt))  # last: the workload is whole


def _random_model(random: torch.Generator) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=1024,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=HIDDEN,
        attn_pdrop=0,
        embd_pdrop=0,
        resid_pdrop=0,
        bos_token_id=VOCABULARY - 1,
        eos_token_id=VOCABULARY - 1,
    )
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("wte.weight"):
                p.normal_(0, 0.12, generator=random)
            elif name.endswith("wpe.weight"):
                p.normal_(0, 0.05, generator=random)
            elif p.ndim == 2:
                p.normal_(0, 0.04, generator=random)
            elif "ln_" in name and name.endswith("weight"):
                p.copy_(1 + 0.05 * torch.randn(p.shape, generator=random))
            else:
                p.normal_(0, 0.02, generator=random)
    return model


def _recorded(model: Any, prompts: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What each layer's MLP block reads (the stream) and writes, shape (prompts, P, d)."""
    import torch

    streams: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    outputs: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    hooks = []
    for layer, block in enumerate(model.transformer.h):
        hooks += [
            block.ln_2.register_forward_pre_hook(
                lambda _, given, layer=layer: streams[layer].append(given[0].detach())
            ),
            block.mlp.register_forward_hook(
                lambda _, given, made, layer=layer: outputs[layer].append(made.detach())
            ),
        ]
    with torch.no_grad():
        for start in range(0, len(prompts), 32):
            model.transformer(prompts[start : start + 32])
    for hook in hooks:
        hook.remove()
    return [torch.cat(x) for x in streams], [torch.cat(y) for y in outputs]


def _ridge(kernel: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    import torch

    penalty = 0.3 * kernel.diagonal().mean()
    return torch.linalg.solve(kernel + penalty * torch.eye(len(kernel)), wanted)


# The reference tool -------------------------------------------------------------------------------


def run(given: argparse.Namespace) -> None:
    """Measure one attribution, and answer with its figures."""
    import numpy as np
    import torch

    torch.set_num_threads(given.threads)
    torch.manual_seed(SEED)
    from circuit_tracer import attribute
    from circuit_tracer.graph import compute_graph_scores, prune_graph

    prompt = given.prompt or given.root / "prompt.json"
    ids = torch.tensor(json.loads(prompt.read_text())["input_ids"])
    with Watch() as loading:
        model = load(given.root, given.kind, len(ids))
    for layer in range(LAYERS):
        of = model.transcoders
        chosen = of[layer] if given.kind == "plt" else of
        threshold = chosen.activation_function.threshold
        (threshold if given.kind == "plt" else threshold[layer]).data.mul_(given.thr_mult)
    with Watch() as watch:
        graph = attribute(ids, model, batch_size=given.batch, verbose=False)
    replacement, completeness = compute_graph_scores(graph)
    figures = watch.figures | {
        "load_seconds": loading.figures["seconds"],
        "features": len(graph.active_features),
        "nodes": len(graph.adjacency_matrix),
        "tokens": len(ids),
        "replacement": replacement,
        "completeness": completeness,
        "kept_nodes": int(prune_graph(graph).node_mask.sum()),
        "versions": _versions(),
    }
    answer(figures)
    if given.save:
        np.savez(
            given.save,
            adjacency=graph.adjacency_matrix.detach().numpy(),
            active_features=graph.active_features.numpy(),
            selected_features=graph.selected_features.numpy(),
            activations=graph.activation_values.detach().numpy(),
            logit_tokens=graph.logit_token_ids.numpy(),
            logit_probabilities=graph.logit_probabilities.detach().numpy(),
        )


def load(root: Path, kind: str, n_positions: int) -> Any:
    """Load by circuit-tracer's TransformerLens side (its other one does not know GPT-2)."""
    import torch
    from circuit_tracer.replacement_model.replacement_model_transformerlens import (
        TransformerLensReplacementModel,
    )
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set
    from transformer_lens import HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import AutoTokenizer, GPT2LMHeadModel

    original = GPT2LMHeadModel.from_pretrained(root / "model", attn_implementation="eager")
    original = original.float().eval()
    context = max(64, n_positions)
    config = HookedTransformerConfig.from_dict(
        {
            "n_layers": LAYERS,
            "d_model": WIDTH,
            "d_head": WIDTH // HEADS,
            "n_heads": HEADS,
            "d_mlp": HIDDEN,
            "act_fn": "gelu_new",
            "eps": 1e-5,
            "d_vocab": VOCABULARY,
            "n_ctx": context,
            "normalization_type": "LN",
            "original_architecture": "GPT2LMHeadModel",
            "use_attn_scale": True,
            "positional_embedding_type": "standard",
            "device": "cpu",
            "dtype": torch.float32,
            "tokenizer_name": str(root / "model"),
            "model_name": "bench-gpt2",
        }
    )
    original.transformer.wpe.weight.data = original.transformer.wpe.weight.data[:context]
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    model = TransformerLensReplacementModel(config, tokenizer=tokenizer, move_to_device=False)
    model.load_and_process_state_dict(
        convert_gpt2_weights(original, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    settings = {
        "scan": "bench",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "lazy_encoder": False,
        "lazy_decoder": True,
    }
    if kind == "clt":
        transcoders = load_clt(str(root / "clt"), **settings)
    else:
        files = {m: str(root / "plt" / f"layer_{m}.safetensors") for m in range(LAYERS)}
        transcoders = load_transcoder_set(files, **settings)
    model._configure_replacement_model(transcoders)
    return model


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("circuit-tracer", "torch", "transformers", "transformer-lens")
    return {name: metadata.version(name) for name in names}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reference_tracing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("make", "run"))
    parser.add_argument("root", type=Path, help="folder of the workload")
    parser.add_argument("--kind", choices=("clt", "plt"), default="clt")
    parser.add_argument("--batch", type=int, default=256, help="targets a backward pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=Path, help="another prompt.json than the workload's")
    parser.add_argument("--thr-mult", type=float, default=1.0, help="multiply thresholds")
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="write the adjacency")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")  # older libraries warn of themselves
    if given.command == "make":
        make(given.root)
        print(f"made {given.root}", file=sys.stderr)
    else:
        run(given)


if __name__ == "__main__":
    main()
