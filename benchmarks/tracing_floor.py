"""Two floors of tracing: the multiply-adds that edges take, as bare products of matrices.

*Walk*: every target is carried from its layer to layer 0, at all positions up to its own. In each
layer that is a product with (d × d), the mixing of positions by the patterns, another product with
(d × d), and one with the stacked vectors of everything that writes there. Nothing is skipped and
nothing but products is done.

*Products*: the products that circuitbase's own edges take, recorded while it computes them and done
again by themselves. It is lower where the tracer finds products that need not be done.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.tracing_process import Watch

if TYPE_CHECKING:
    from tracer.attribution.edges import Targets
    from tracer.attribution.local import LocalModel

__all__ = ["Recorder", "replay", "walk_down"]

Shape = tuple[int, ...]


class Recorder(TorchDispatchMode):
    """Notes the shapes of every product of matrices done inside its ``with`` block.

    Attributes
    ----------
    shapes
        (batch, rows, inner, columns) of each product, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[Shape] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0].rstrip("_")
        if name in ("mm", "bmm", "mv"):
            self._note(*args[:2])
        elif name in ("addmm", "baddbmm", "addmv"):
            self._note(*args[1:3])
        elif name in ("dot", "linear", "addbmm"):
            raise NotImplementedError(f"{name} is a product, and is not counted yet")
        return func(*args, **(kwargs or {}))

    def _note(self, left: Tensor, right: Tensor) -> None:
        batch = left.shape[0] if left.ndim == 3 else 1
        columns = right.shape[-1] if right.ndim > 1 else 1
        self.shapes.append((batch, *left.shape[-2:], columns))


def replay(recorder: Recorder) -> dict[str, Any]:
    """Do products of recorded shapes once more; see :func:`_timed`."""
    return _timed(recorder.shapes)


def walk_down(local: LocalModel, targets: Targets) -> dict[str, Any]:
    """Do the products of a plain walk down of all targets of each position together."""
    frozen = local.frozen
    width, heads = frozen.width, len(frozen.attentions[0].pattern)
    shapes: list[Shape] = []
    for position in range(frozen.n_positions):
        length = position + 1
        counts = targets.counts[position]
        for layer in reversed(range(frozen.n_layers)):
            above = int(counts[layer + 1 :].sum())  # read after this layer's MLP
            for place in range(length if above else 0):
                written = len(local.writers[layer].at(place)[0]) + (place >= local.zero_first)
                if written:
                    shapes.append((1, above, width, written))
            reading = above if frozen.parallel else int(counts[layer:].sum())
            if reading:
                shapes.append((1, reading * length, width, width))
                shapes.append((heads, length, length, reading * width // heads))
                shapes.append((1, reading * length, width, width))
        if counts.any():
            shapes += [(1, int(counts.sum()), width, 1)] * length  # embeddings
    return _timed(shapes)


def _timed(shapes: list[Shape], passes: int = 3) -> dict[str, Any]:
    """Fastest of some passes over products of these shapes, into memory that is there already."""
    sizes = np.array([(b * n * k, b * k * m, b * n * m) for b, n, k, m in shapes])
    left, right, out = (torch.randn(int(size)) for size in sizes.max(axis=0))
    calls = []
    for batch, rows, inner, columns in shapes:
        operands = []
        for buffer, size in ((left, (rows, inner)), (right, (inner, columns))):
            operands.append(buffer[: batch * math.prod(size)].view(batch, *size))
        made = out[: batch * rows * columns].view(batch, rows, columns)
        if batch == 1:
            calls.append((torch.mm, operands[0][0], operands[1][0], made[0]))
        else:
            calls.append((torch.bmm, *operands, made))
    best: dict[str, Any] = {}
    seconds = []
    for _ in range(passes):
        with Watch() as watch:
            for product, a, b, made in calls:
                product(a, b, out=made)
        seconds.append(watch.figures["seconds"])
        if seconds[-1] == min(seconds):
            best = watch.figures
    work = np.array([math.prod(shape) for shape in shapes], dtype=np.float64)
    return best | {"products": len(shapes), "multiply_adds": float(work.sum())}
