"""How well a transcoder reconstructs the MLPs on one prompt, layer by layer and token by token.

Source: Circuit Tracing (2025), "Evaluating the replacement model"; spec, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from tracer.attribution.tracing import local_model
from tracer.models import Model
from tracer.transcoders import Transcoder

__all__ = ["reconstruction"]


def reconstruction(
    model: Model,
    transcoder: Transcoder,
    prompt: str | Sequence[int],
    *,
    zero_first: int | None = None,
) -> pd.DataFrame:
    """Quality of a transcoder on one prompt.

    With ``y`` an MLP's output and ``ŷ`` what the transcoder makes of the same input, both as they
    are added to the residual stream: ``explained = 1 − ‖y − ŷ‖² / ‖y‖²``.

    Parameters
    ----------
    model, transcoder
        From :func:`tracer.load_model` and :func:`tracer.load_transcoder`.
    prompt
        A text or token ids.
    zero_first
        First positions left out, as in a trace; None for what the model asks for.

    Returns
    -------
    DataFrame
        One row a layer and position: ``layer``, ``position``, ``token``, ``active`` (features, the
        L0), ``output_norm`` = ‖y‖, ``error_norm`` = ‖y − ŷ‖, ``deviation_norm`` = ‖y − ȳ‖ with ȳ
        the mean over these positions, ``explained`` (nan where y is 0). The explained variance of a
        layer is ``1 − Σ error_norm² / Σ deviation_norm²``.

    Raises
    ------
    TracingError
        If the transcoder does not fit the model, the prompt is empty or too long, or no feature is
        active.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating the replacement model".
    """
    ids = model.tokenize(prompt)
    with torch.no_grad():
        local = local_model(model, transcoder, ids, zero_first)
    first, n_positions = local.zero_first, local.frozen.n_positions
    n_layers, live = local.frozen.n_layers, n_positions - first
    output = local.frozen.mlp_outputs[:, first:].double()
    error = local.errors[:, first:].double()
    active = np.zeros((n_layers, n_positions), dtype=np.int64)
    np.add.at(active, (local.layers, local.positions), 1)
    norms = {
        "output_norm": output.norm(dim=-1),
        "error_norm": error.norm(dim=-1),
        "deviation_norm": (output - output.mean(dim=1, keepdim=True)).norm(dim=-1),
    }
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(n_layers), live),
            "position": np.tile(np.arange(first, n_positions), n_layers),
            "token": model.tokens(ids)[first:] * n_layers,
            "active": active[:, first:].ravel(),
            **{name: norm.cpu().numpy().ravel() for name, norm in norms.items()},
        }
    )
    zero = table["output_norm"] == 0
    table["explained"] = 1 - (table["error_norm"] / table["output_norm"].mask(zero)) ** 2
    return table
