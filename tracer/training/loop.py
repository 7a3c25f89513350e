"""Train a transcoder: batches in, steps of Adam, figures on the way, a folder at the end.

Source: Circuit Tracing (2025), "Building an interpretable replacement model" and its appendix on
training; spec, section 2.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.corpora import Corpus
from tracer.errors import FormatError, SettingError, TracingError, nearest
from tracer.models import Model
from tracer.training.activations import Buffer, Recorder, make_source
from tracer.training.checkpoints import Checkpoint, clear, find_checkpoint, write_checkpoint
from tracer.training.evaluating import Figures, measure
from tracer.training.normalising import Normalisation, normalisation_of
from tracer.training.objective import Parts, objective
from tracer.training.settings import TrainSettings
from tracer.training.weights import folded, initial_weights
from tracer.transcoders import Transcoder, load_transcoder
from tracer.transcoders.saving import PlainTranscoder, save_transcoder

__all__ = ["Row", "train"]

Row = Mapping[str, float]
Progress = Callable[[int, Row | None], None]

_FOLDER: Final = "training"  # in the transcoder's folder: checkpoints and metrics
_METRICS: Final = "metrics.csv"
_NORMALISED_ON: Final = 65_536  # tokens that means and scales are taken of
_CUT_DECAY: Final = 0.99  # of the running mean of where the ranking is cut
# Settings that a run may be continued without: they change nothing that is trained.
_HARMLESS: Final = ("cache", "evaluate_every", "checkpoint_every", "log_every", "held_out_tokens")
_CUT_BATCHES: Final = 16  # that thresholds are taken of


def train(
    model: Model,
    corpus: Corpus,
    settings: TrainSettings | None = None,
    out: str | os.PathLike[str] = "transcoder",
    *,
    held_out: Corpus | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    dtype: torch.dtype = torch.float32,
    name: str = "",
    work: str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Transcoder:
    """Train a transcoder on a model's activations over a corpus.

    Parameters
    ----------
    model
        From :func:`tracer.load_model`; the run is on its device, float32 on the CPU and with
        bfloat16 products (autocast) on CUDA.
    corpus
        From :func:`tracer.corpora.read_corpus`, or :meth:`Corpus.of` of token ids.
    settings
        See :class:`~tracer.training.settings.TrainSettings`; its fields can also be given as
        keywords.
    out
        Folder of the transcoder.
    held_out
        What figures are measured on; None for a share of the corpus, which is then not trained on.
    resume
        Whether a checkpoint in the folder is continued, which gives what one run would have given,
        bit for bit (with the same versions, threads and machine). Without it the folder's run is
        thrown away.
    progress
        ``progress(step, row)`` after every step; row is the line of the metrics file if one was
        written, else None.
    dtype
        Of the saved weights.
    name
        ``scan`` of the saved configuration; the folder's name where empty.
    work
        Folder of checkpoints and ``metrics.csv``; None for ``training`` in `out`.

    Returns
    -------
    Transcoder
        As it was saved.

    Raises
    ------
    TracingError
        If the corpus is too small, or the loss is not finite any more (the last good checkpoint
        stays).
    SettingError
        If a setting is out of range, or the folder holds a checkpoint of another run.
    FormatError
        If something cannot be written, such as on a full disk; the last checkpoint stays.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Building an interpretable replacement model".
    """
    settings = (settings or TrainSettings()).changed(**changes)
    out = Path(out)
    folder = out / _FOLDER if work is None else Path(work)
    run = _Run(model, corpus, settings, held_out)
    if not resume:
        clear(folder)
    found = find_checkpoint(folder, run.identity)
    if found is not None and found.finished:
        if (out / "config.yaml").exists():
            return load_transcoder(out)
        found = None  # what was made has been taken away
    if found is not None:
        run.restore(found)
    metrics = _Metrics(folder / _METRICS, run.columns, run.step)
    while run.step < settings.steps:
        try:
            row = run.advance()
        except FloatingPointError as error:
            raise TracingError(f"{out}: {error}", run.advice(folder)) from None
        if row is not None:
            metrics.write(row)
        if progress is not None:
            progress(run.step, row)
        every = settings.checkpoint_every
        if every and run.step % every == 0 and run.step < settings.steps:
            write_checkpoint(folder, run.checkpoint(), run.identity)
    more = {"training": {**_plain(asdict(settings)), "corpus": corpus.name}}
    save_transcoder(out, run.plain(), model_name=model.model_id, name=name, dtype=dtype, more=more)
    final = replace(run.checkpoint(), finished=True, tensors={})
    write_checkpoint(folder, final, run.identity)
    return load_transcoder(out)


class _Run:
    """Everything that a run holds; what is in :meth:`checkpoint` changes with each step."""

    def __init__(
        self, model: Model, corpus: Corpus, settings: TrainSettings, held_out: Corpus | None
    ) -> None:
        self.model, self.settings = model, settings
        self.device = model.device
        first = settings.zero_first
        self.zero_first = model.default_zero_first if first is None else first
        kept, held = (corpus, held_out) if held_out is not None else _split(corpus, settings)
        _check_corpus(kept, settings, self.zero_first)
        self.corpus, self.held_out = kept, held
        self.identity: dict[str, Any] = {
            "settings": _plain(asdict(settings)),
            "model": {"model_id": model.model_id, "weights": _fingerprint(model)},
            "corpus": {"fingerprint": corpus.fingerprint(), "tokens": corpus.n_tokens},
            "held_out": None if held_out is None else held_out.fingerprint(),
        }
        for harmless in _HARMLESS:
            del self.identity["settings"][harmless]
        self.buffer = self._buffer()
        generator = torch.Generator().manual_seed(settings.seed)
        self.weights = initial_weights(
            settings, model.n_layers, model.width, generator, self.device
        )
        self.named = dict(self.weights.named())
        self.optimizer = torch.optim.Adam(
            list(self.named.values()), lr=0.0, betas=settings.betas, fused=True
        )
        shape = (model.n_layers, settings.features)
        self.step = 0
        self.seconds = 0.0
        self.since_active = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.cut = torch.zeros(model.n_layers, dtype=torch.float64, device=self.device)
        self.sums = _Sums.empty(model.n_layers, self.device)
        self.normalisation: Normalisation | None = None
        self._start = time.monotonic()

    # One step -------------------------------------------------------------------------------------

    def advance(self) -> Row | None:
        """Make one step; give a line of metrics where one is due.

        Raises
        ------
        FloatingPointError
            If the loss or its gradient is not finite; nothing has been changed then.
        """
        settings, normalisation = self.settings, self._normalisation()
        reads, writes = next(self.buffer)
        x = normalisation.reads(reads.to(self.device)).transpose(0, 1).contiguous()
        y = normalisation.writes(writes.to(self.device))
        dead = self.since_active >= settings.dead_tokens
        self.optimizer.zero_grad(set_to_none=True)
        with _autocast(self.device):
            parts = objective(
                settings,
                self.weights,
                x,
                y,
                sparsity=settings.sparsity_at(self.step),
                dead=dead,
                cut=self.cut,
            )
        total = parts.total
        # The gradient of the objective per target number, so that `clip` means the same whatever
        # the model's size; Adam does not mind the factor.
        (total / (y.shape[1] * y.shape[2])).backward()  # type: ignore[no-untyped-call]
        norm = _clip(list(self.named.values()), settings.clip)
        if not (math.isfinite(norm) and math.isfinite(total.item())):
            what = "loss" if not math.isfinite(total.item()) else "gradient"
            raise FloatingPointError(f"step {self.step + 1}: the {what} is not finite")
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.step)
        self.optimizer.step()
        self._note(parts, y, norm)
        self.step += 1
        return self._row()

    def _normalisation(self) -> Normalisation:
        if self.normalisation is None:
            self.normalisation = normalisation_of(*self.buffer.sample(_NORMALISED_ON)).to(
                self.device
            )
        return self.normalisation

    def _note(self, parts: Parts, y: Tensor, norm: float) -> None:
        """Update what the next steps and the metrics need."""
        with torch.no_grad():
            self.since_active += y.shape[0]
            self.since_active[parts.counts > 0] = 0
            if parts.cut is not None:
                # The mean of the first steps is over as many as there were.
                keep = min(_CUT_DECAY, self.step / (self.step + 1))
                self.cut = keep * self.cut + (1 - keep) * parts.cut
            self.sums.add(parts, y, norm)

    # Metrics --------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """Columns of the metrics file."""
        layers = range(self.model.n_layers)
        return [
            *("step", "tokens", "seconds", "learning_rate", "sparsity_weight", "gradient_norm"),
            *("loss", "reconstruction", "sparsity", "preactivation", "auxiliary"),
            *("explained", *(f"explained_{i}" for i in layers)),
            *("l0", *(f"l0_{i}" for i in layers)),
            *("dead", *(f"dead_{i}" for i in layers)),
            *("held_out_explained", "held_out_l0", "held_out_top1", "held_out_kl"),
        ]

    def _row(self) -> Row | None:
        settings, step = self.settings, self.step
        last = step == settings.steps
        if not (last or step % settings.log_every == 0):
            return None
        self.seconds += time.monotonic() - self._start
        self._start = time.monotonic()
        dead = (self.since_active >= settings.dead_tokens).float().mean(dim=1).tolist()
        row: dict[str, float] = {
            "step": step,
            "tokens": step * settings.batch,
            "seconds": round(self.seconds, 2),
            "learning_rate": settings.learning_rate_at(step - 1),
            "sparsity_weight": settings.sparsity_at(step - 1),
            **self.sums.row(),
            "dead": sum(dead) / len(dead),
            **{f"dead_{i}": value for i, value in enumerate(dead)},
        }
        self.sums = _Sums.empty(self.model.n_layers, self.device)
        every = settings.evaluate_every
        if self.held_out is not None and (last or (every and step % every == 0)):
            found = self.measure()
            row |= {
                "held_out_explained": found.explained,
                "held_out_l0": found.l0,
                "held_out_top1": found.top1,
                "held_out_kl": found.kl,
            }
        return row

    def measure(self) -> Figures:
        """Figures on held-out text, as the transcoder would be saved now."""
        if self.held_out is None:
            raise ValueError("nothing is held out")
        return measure(
            self.model,
            self.plain().open(device=self.device),
            self.held_out,
            zero_first=self.zero_first,
            tokens=self.settings.held_out_tokens,
        )

    def plain(self) -> PlainTranscoder:
        """Make the transcoder as it is saved: folded, with thresholds."""
        return folded(self.weights, self._normalisation(), self.settings, self._thresholds())

    def _thresholds(self) -> Tensor:
        """θ of each feature, shape (L, F): trained, or what the ranking's cut amounts to.

        The cut is the mean over batches of the buffer with the weights as they are.
        """
        settings, weights = self.settings, self.weights
        with torch.no_grad():
            if weights.log_threshold is not None:
                return weights.log_threshold.exp()
            normalisation, cuts = self._normalisation(), []
            drawn = self.buffer.sample(_CUT_BATCHES * settings.batch, self.buffer.position)
            parts = (torch.split(tensor, settings.batch) for tensor in drawn)
            for reads, writes in zip(*parts, strict=True):
                x = normalisation.reads(reads.to(self.device)).transpose(0, 1).contiguous()
                y = normalisation.writes(writes.to(self.device))
                with _autocast(self.device):
                    found = objective(settings, weights, x, y, cut=self.cut).cut
                cuts += [] if found is None else [found]
            cut = torch.stack(cuts).mean(dim=0).to(weights.encoder.dtype).unsqueeze(1)
            if settings.activation == "topk":
                return cut.expand(-1, settings.features)
            return cut / weights.norms().clamp(min=1e-30)

    # Checkpoints ----------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """All that the next step depends on."""
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.named.items():
            tensors[f"weights.{name}"] = tensor.detach()
            state = self.optimizer.state[tensor]
            tensors[f"mean.{name}"] = state["exp_avg"]
            tensors[f"square.{name}"] = state["exp_avg_sq"]
        tensors["cut"], tensors["since_active"] = self.cut, self.since_active
        tensors |= {f"normalisation.{k}": v for k, v in vars(self._normalisation()).items()}
        tensors |= {f"sums.{k}": v for k, v in self.sums.tensors.items()}
        return Checkpoint(self.step, self.buffer.position, tensors, seconds=self.seconds)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint."""
        found = {name: one.to(self.device) for name, one in checkpoint.tensors.items()}
        try:
            with torch.no_grad():
                for name, tensor in self.named.items():
                    tensor.copy_(found[f"weights.{name}"])
                    self.optimizer.state[tensor] = {
                        "step": torch.tensor(float(checkpoint.step), device=tensor.device),
                        "exp_avg": found[f"mean.{name}"],
                        "exp_avg_sq": found[f"square.{name}"],
                    }
            self.cut, self.since_active = found["cut"], found["since_active"]
            self.normalisation = Normalisation(
                *(found[f"normalisation.{k}"] for k in Normalisation.__dataclass_fields__)
            )
            self.sums = _Sums({k: found[f"sums.{k}"] for k in self.sums.tensors})
        except (KeyError, RuntimeError) as error:
            raise FormatError(
                f"the checkpoint of step {checkpoint.step} lacks a tensor, or has one of another "
                f"shape ({error})",
                "Start over with resume=False (--fresh)",
            ) from error
        self.step, self.buffer.position = checkpoint.step, checkpoint.position
        self.seconds = checkpoint.seconds

    def advice(self, folder: Path) -> str:
        """Say what to do about a loss that is not finite."""
        settings = self.settings
        kept = sorted(folder.glob("state_*.safetensors"))
        where = (
            f"The checkpoint of step {int(kept[-1].stem.removeprefix('state_')):,} is kept in "
            f"{folder}"
            if kept
            else "There was no checkpoint yet"
        )
        change = f"Lower learning_rate ({settings.learning_rate:g})"
        if not settings.clip or settings.clip > 1:
            change += f" or clip ({settings.clip:g}; 1 is usual)"
        return f"{where}. {change}, and start over with resume=False (--fresh) or another folder"

    # Data -----------------------------------------------------------------------------------------

    def _buffer(self) -> Buffer:
        settings, model = self.settings, self.model
        each = 2 * model.n_layers * model.width * 4
        held = max(settings.batch, int(settings.buffer * 2**30 / each))
        recorder = Recorder(model, settings.read_hook, settings.write_hook, self.zero_first)
        source = make_source(
            recorder,
            self.corpus,
            block_tokens=max(1, min(held // 4, 16_384)),
            seed=settings.seed,
            cache=None if settings.cache is None else Path(settings.cache),
            identity=f"{_fingerprint(model)} {settings.read_hook} {settings.write_hook}",
        )
        return Buffer(
            source,
            batch=settings.batch,
            tokens=held,
            seed=settings.seed,
            weights=_drawing(self.corpus, settings, self.zero_first),
        )


class _Sums:
    """Sums since the last line of metrics."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def empty(cls, n_layers: int, device: torch.device) -> _Sums:
        """No step yet."""
        zeros = {
            name: torch.zeros(n_layers, dtype=torch.float64, device=device)
            for name in ("errors", "squares", "active")
        }
        return cls({**zeros, "parts": torch.zeros(7, dtype=torch.float64, device=device)})

    def add(self, parts: Parts, y: Tensor, norm: float) -> None:
        """Add a step."""
        self.tensors["errors"] += parts.errors
        self.tensors["squares"] += (y - y.mean(dim=0)).square().sum(dim=(0, 2))
        self.tensors["active"] += parts.counts.sum(dim=1)
        self.tensors["parts"] += torch.stack(
            [
                *(part.detach().double() for part in parts[:4]),
                torch.tensor(norm, dtype=torch.float64, device=y.device),
                torch.tensor(1.0, dtype=torch.float64, device=y.device),
                torch.tensor(float(y.shape[0]), dtype=torch.float64, device=y.device),
            ]
        )

    def row(self) -> dict[str, float]:
        """Means over these steps."""
        *sums, steps, tokens = self.tensors["parts"].tolist()
        means = [value / max(steps, 1) for value in sums]
        explained = (1 - self.tensors["errors"] / self.tensors["squares"]).tolist()
        l0 = (self.tensors["active"] / max(tokens, 1)).tolist()
        return {
            "gradient_norm": means[4],
            "loss": sum(means[:4]),
            **dict(
                zip(
                    ("reconstruction", "sparsity", "preactivation", "auxiliary"),
                    means[:4],
                    strict=True,
                )
            ),
            "explained": sum(explained) / len(explained),
            **{f"explained_{i}": value for i, value in enumerate(explained)},
            "l0": sum(l0) / len(l0),
            **{f"l0_{i}": value for i, value in enumerate(l0)},
        }


class _Metrics:
    """The metrics file: a line for each row, those after a checkpoint written again."""

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        self._path, self._columns = path, columns
        kept: list[dict[str, str]] = []
        if step and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        self._rewrite(kept)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
        except OSError as error:
            raise _unwritten(self._path, error) from error

    def write(self, row: Row) -> None:
        """Add a line."""
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(
                    {
                        name: f"{value:.6g}" if isinstance(value, float) else value
                        for name, value in row.items()
                    }
                )
        except OSError as error:
            raise _unwritten(self._path, error) from error


def _unwritten(path: Path, error: OSError) -> FormatError:
    return FormatError(
        f"{path}: cannot be written ({error.strerror})", "Free space, or choose another folder"
    )


def _autocast(device: torch.device) -> AbstractContextManager[Any]:
    if device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16)


def _clip(tensors: list[Tensor], limit: float) -> float:
    """Scale gradients so that their norm is at most `limit`; return the norm before."""
    gradients = [tensor.grad for tensor in tensors if tensor.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients])))
    if limit and norm > limit and math.isfinite(norm):
        for gradient in gradients:
            gradient.mul_(limit / norm)
    return norm


def _split(corpus: Corpus, settings: TrainSettings) -> tuple[Corpus, Corpus | None]:
    """Training and held-out sequences; None where nothing is held out."""
    count = round(settings.held_out_share * len(corpus))
    if settings.held_out_share and len(corpus) > 1:
        count = max(1, count)
    if not count:
        return corpus, None
    order = np.random.default_rng([settings.seed, 3]).permutation(len(corpus))
    return corpus.select(np.sort(order[count:])), corpus.select(np.sort(order[:count]))


def _check_corpus(corpus: Corpus, settings: TrainSettings, zero_first: int) -> None:
    usable = corpus.usable(zero_first)
    if usable < settings.batch:
        raise TracingError(
            f"{corpus.name}: {usable:,} tokens are left to train on, and one batch has "
            f"{settings.batch:,}",
            "Give a larger corpus, or a smaller batch",
        )


def _drawing(
    corpus: Corpus, settings: TrainSettings, zero_first: int
) -> NDArray[np.float64] | None:
    """How often each token is drawn, in proportion; None for all alike."""
    if not settings.mix:
        return None
    if corpus.classes is None:
        raise SettingError(
            f"{corpus.name}: its tokens have no classes, and mix names some",
            'Leave out mix, or give "classes" with the token ids of a .jsonl file',
        )
    for wanted in settings.mix:
        if wanted not in corpus.class_names:
            known = ", ".join(corpus.class_names)
            raise SettingError(
                f'mix names the class "{wanted}", which no token of {corpus.name} has',
                nearest(wanted, corpus.class_names) or f"Its classes are {known}",
            )
    usable = np.ones(corpus.n_tokens, dtype=bool)
    for start in corpus.starts[:-1]:
        usable[start : start + zero_first] = False
    weights = np.zeros(corpus.n_tokens)
    for name, share in settings.mix.items():
        which = usable & (corpus.classes == corpus.class_names.index(name))
        if which.any():
            weights[which] = share / which.sum()
    return weights


def _fingerprint(model: Model) -> str:
    """Sixteen hex digits over names, shapes and samples of the model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        digest.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // 64)
        digest.update(flat[::step][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Make settings what JSON and YAML have."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
    }
