"""The commands that make and measure transcoders: train, evaluate."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from circuitbase._session import Session, store_options
from circuitbase.commands_trace import _extra, _options

if TYPE_CHECKING:
    import pandas as pd

    from tracer.models import Model
    from tracer.training import Evaluation, Figures, TrainSettings

__all__ = ["evaluate", "train"]

_MODEL = _options(
    click.option("-m", "--model", metavar="MODEL", required=True, help="Folder or hub id."),
    click.option("--revision", metavar="REV", help="Of the model on the hub."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Of the model's weights.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="DEVICE",
        help="cpu or cuda:0. auto: the first CUDA device, else the CPU.",
    ),
    click.option(
        "--corpus",
        metavar="FILE",
        required=True,
        help="Text (a sequence a line), or .jsonl with text or token_ids (and classes).",
    ),
    click.option(
        "--context",
        type=click.IntRange(2),
        metavar="N",
        help="The most tokens of a sequence; longer lines are cut.  [default: 256]",
    ),
)
_WHAT = _options(
    click.option("--out", metavar="DIR", required=True, help="Folder of the transcoder."),
    click.option(
        "--kind",
        type=click.Choice(["clt", "plt"]),
        default="clt",
        show_default=True,
        help="Whether features write to all later layers, too, or to their own alone.",
    ),
    click.option(
        "--features",
        type=click.IntRange(1),
        default=1024,
        show_default=True,
        help="Features of a layer.",
    ),
    click.option(
        "--activation",
        type=click.Choice(["batchtopk", "topk", "jumprelu"]),
        default="batchtopk",
        show_default=True,
        help="jumprelu has the paper's penalty; the others are saved as thresholds.",
    ),
    click.option(
        "--k",
        type=click.FloatRange(0, min_open=True),
        default=16,
        show_default=True,
        help="Active features a layer and token, for batchtopk (on average) and topk.",
    ),
    click.option(
        "--sparsity",
        type=click.FloatRange(0),
        metavar="λ",
        help="Of the penalty of jumprelu, at the end of its ramp.  [default: 2]",
    ),
    click.option("--skip", is_flag=True, help="Add an affine skip to each layer (plt only)."),
    click.option(
        "--read",
        "read_hook",
        metavar="HOOK",
        help="What features read: hook_resid_mid, ln2.hook_normalized or mlp.hook_in.  "
        "[default: hook_resid_mid]",
    ),
    click.option(
        "--write",
        "write_hook",
        metavar="HOOK",
        help="What they replace: hook_mlp_out or mlp.hook_out.  [default: hook_mlp_out]",
    ),
)
_HOW = _options(
    click.option(
        "--steps", type=click.IntRange(1), default=5000, show_default=True, help="Of Adam."
    ),
    click.option(
        "--batch", type=click.IntRange(1), default=1024, show_default=True, help="Tokens of a step."
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(0),
        default=1e-3,
        show_default=True,
        help="After warm-up.",
    ),
    click.option(
        "--mix",
        metavar="CLASS=SHARE",
        multiple=True,
        help="Draw tokens of this class so often; others not named are not drawn. Can be repeated.",
    ),
    click.option(
        "--held-out",
        "held_out_file",
        metavar="FILE",
        help="What to measure on.  [default: a share of the corpus]",
    ),
    click.option(
        "--cache", metavar="DIR", help="Keep activations here, not to make them in each pass."
    ),
    click.option(
        "--setting",
        "more",
        metavar="NAME=VALUE",
        multiple=True,
        help="Any other field of tracer.TrainSettings, such as dead_after=100000. Can be repeated.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--save-dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="Of the saved weights.",
    ),
    click.option("--fresh", is_flag=True, help="Start over where a checkpoint is."),
)


@click.command()
@_MODEL
@_WHAT
@_HOW
@store_options
def train(session: Session, /, **options: Any) -> None:
    """Train a transcoder of a model, in circuit-tracer's layout.

    The corpus is shuffled and run through the model; figures on text that is held out are shown
    while it trains and kept in DIR/training/metrics.csv, checkpoints beside them. A run that was
    stopped, in whatever way, goes on from its last checkpoint when it is started again, and gives
    what it would have given.

    Classes of tokens come with the token ids in a .jsonl file:
    {"token_ids": [0, 17, 4], "classes": ["", "word", "answer"]}.

    For example:
      circuitbase train -m gpt2 --corpus web.txt --features 4096 --out gpt2-clt
      circuitbase train -m gpt2 --corpus web.txt --kind plt --skip --out gpt2-plt
      circuitbase train -m ./model --corpus facts.jsonl --mix answer=0.5 --mix word=0.5 --out clt
      circuitbase train -m gpt2 --corpus web.txt --activation jumprelu --sparsity 3 --out jump
    """
    with _extra():
        import torch

        from tracer.corpora import read_corpus
        from tracer.training import train as run

        settings = _settings(options)
        model = _model(options)
        session.say(f"reading {options['corpus']}")
        corpus = read_corpus(options["corpus"], model, context=settings.context)
        held_out = None
        if options["held_out_file"]:
            held_out = read_corpus(options["held_out_file"], model, context=settings.context)
        session.say(
            f"{len(corpus):,} sequences, {corpus.n_tokens:,} tokens; {settings.steps:,} steps of "
            f"{settings.batch:,} are {settings.steps * settings.batch / corpus.n_tokens:.1f} passes"
        )
        start = time.monotonic()
        with _showing(session, settings, model.n_layers) as show:
            try:
                made = run(
                    model,
                    corpus,
                    settings,
                    options["out"],
                    held_out=held_out,
                    resume=not options["fresh"],
                    progress=show,
                    dtype=getattr(torch, options["save_dtype"]),
                )
            except KeyboardInterrupt:
                session.say("stopped; the same command goes on from the last checkpoint")
                raise
    session.say(
        f"{made.transcoder_id}: saved in {options['out']}; {time.monotonic() - start:.0f} s"
    )
    path = Path(options["out"]) / "training" / "metrics.csv"
    if path.exists():
        session.print(_last_line(path, model.n_layers))
    session.say(
        f"next: circuitbase evaluate -m {options['model']} -t {options['out']} --corpus FILE"
    )


def _settings(options: dict[str, Any]) -> TrainSettings:
    from tracer.errors import SettingError
    from tracer.training import TrainSettings

    given = {
        name: options[name]
        for name in (
            *("kind", "features", "activation", "k", "sparsity", "skip", "read_hook", "write_hook"),
            *("steps", "batch", "learning_rate", "cache", "context", "seed"),
        )
        if options[name] is not None
    }
    mix = {name: float(share) for name, share in map(_pair, options["mix"])}
    more: dict[str, Any] = {}
    for name, text in map(_pair, options["more"]):
        name = name.replace("-", "_")
        if name in given or name == "mix":
            raise click.UsageError(f"{name} has an option of its own: --{name.replace('_', '-')}.")
        more[name] = _value(text)
    try:
        return TrainSettings().changed(**given, **more, mix=mix)
    except TypeError as error:
        raise SettingError(
            f"a setting has a value of the wrong kind ({error})", "Give a number"
        ) from error


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise click.UsageError(f"Give NAME=VALUE, not {text!r}.")
    return name, value


def _value(text: str) -> Any:
    if text in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text]
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _model(options: dict[str, Any]) -> Model:
    import torch

    from tracer.models import load_model

    device = options["device"]
    if device == "auto":
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return load_model(
        options["model"],
        revision=options["revision"],
        dtype=getattr(torch, options["dtype"]),
        device=device,
    )


def _last_line(path: Path, n_layers: int) -> pd.DataFrame:
    """Figures of the last line of metrics, a row a layer."""
    import pandas as pd

    last = pd.read_csv(path).iloc[-1]
    rows: list[dict[str, Any]] = [
        {"layer": layer, **{name: last[f"{name}_{layer}"] for name in ("explained", "l0", "dead")}}
        for layer in range(n_layers)
    ]
    rows.append(
        {
            "layer": "held out",
            "explained": last["held_out_explained"],
            "l0": last["held_out_l0"],
            "top1": last["held_out_top1"],
            "kl": last["held_out_kl"],
        }
    )
    return pd.DataFrame(rows)


# While it trains ----------------------------------------------------------------------------------

Show = Callable[[int, Mapping[str, float] | None], None]
_HELD: Final = ("held_out_explained", "held_out_l0", "held_out_top1", "held_out_kl")


@contextmanager
def _showing(session: Session, settings: TrainSettings, n_layers: int) -> Iterator[Show]:
    """Show a live table on a terminal, elsewhere a line for each row of metrics."""
    if not sys.stderr.isatty():

        def line(step: int, row: Mapping[str, float] | None) -> None:
            if row is None:
                return
            held = ""
            if _HELD[0] in row:
                held = f"  held out: {row[_HELD[0]]:.3f}, top-1 {row[_HELD[2]]:.3f}"
            session.say(
                f"step {step:>6,} of {settings.steps:,}  loss {row['loss']:.4g}  explained "
                f"{row['explained']:.3f}  L0 {row['l0']:.1f}  dead {row['dead']:.2f}{held}"
            )

        yield line
        return
    from rich.console import Console
    from rich.live import Live

    table = _LiveTable(settings, n_layers)
    with Live(table.drawn(), console=Console(stderr=True), transient=True) as live:

        def show(step: int, row: Mapping[str, float] | None) -> None:
            table.note(step, row)
            live.update(table.drawn())

        yield show


class _LiveTable:
    """What is known of a run, as a table that is drawn again and again."""

    def __init__(self, settings: TrainSettings, n_layers: int) -> None:
        self._settings, self._n_layers = settings, n_layers
        self._step, self._first = 0, 0
        self._start = time.monotonic()
        self._row: dict[str, float] = {}

    def note(self, step: int, row: Mapping[str, float] | None) -> None:
        """Take in a step."""
        if not self._step:  # the first took reading the activations, and may be a resumed one
            self._first, self._start = step, time.monotonic()
        self._step = step
        self._row |= row or {}

    def drawn(self) -> Any:
        """Draw it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        steps, row = self._settings.steps, self._row
        done, taken = self._step - self._first, time.monotonic() - self._start
        rate = done * self._settings.batch / taken if done and taken > 0 else 0.0
        left = (steps - self._step) / done * taken if done else math.nan
        told = f"step {self._step:,} of {steps:,}"
        if rate:
            told += f"   {rate:,.0f} tokens/s   {left // 60:.0f}:{left % 60:02.0f} left"
        parts: list[Any] = [Text(told), ProgressBar(total=steps, completed=self._step, width=60)]
        if not row:
            return Group(*parts, Text("recording activations" if not self._step else ""))
        losses = ("loss", "reconstruction", "sparsity", "preactivation", "auxiliary")
        parts.append(
            Text("   ".join(f"{name} {row[name]:.4g}" for name in losses if row[name]), style="dim")
        )
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for name in ("layer", "explained", "L0", "dead"):
            table.add_column(name, justify="right")
        for layer in [*range(self._n_layers), None]:
            end = "" if layer is None else f"_{layer}"
            table.add_row(
                "all" if layer is None else str(layer),
                f"{row[f'explained{end}']:.3f}",
                f"{row[f'l0{end}']:.1f}",
                f"{row[f'dead{end}']:.1%}",
                style="bold" if layer is None else "",
            )
        parts.append(table)
        if _HELD[0] in row:
            parts.append(
                Text(
                    f"held out: explained {row[_HELD[0]]:.3f}, L0 {row[_HELD[1]]:.1f}; all MLPs "
                    f"replaced: top-1 {row[_HELD[2]]:.1%}, KL {row[_HELD[3]]:.3f}"
                )
            )
        return Group(*parts)


# evaluate -----------------------------------------------------------------------------------------


@click.command()
@_MODEL
@click.option(
    "-t",
    "--transcoder",
    "transcoders",
    metavar="TRANSCODER",
    multiple=True,
    required=True,
    help="Folder or hub id, of any known layout. Can be repeated, to compare.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=65_536,
    show_default=True,
    help="The most tokens of the corpus.",
)
@click.option(
    "--prompts",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Trace so many sequences, for the mean figures of graphs.",
)
@click.option(
    "--max-features",
    type=click.IntRange(1),
    metavar="N",
    help="Of these graphs.  [default: all that are active]",
)
@click.option(
    "--zero-first",
    type=click.IntRange(0),
    metavar="N",
    help="First positions left out, which keep their MLPs.  [default: as the model needs it]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of sampling.")
@store_options
def evaluate(session: Session, /, **options: Any) -> None:
    """Measure transcoders on a corpus, side by side.

    For each layer: explained variance (also on each class of tokens alone), active features, dead
    share. With every MLP replaced: how often the likeliest token stays, and KL. Over traced
    prompts: mean path length, completeness and replacement of unpruned graphs.

    For example:
      circuitbase evaluate -m gpt2 -t gpt2-clt --corpus held-out.txt
      circuitbase evaluate -m gpt2 -t gpt2-clt -t gpt2-plt --corpus held-out.txt --prompts 20
    """
    with _extra():
        from tracer.corpora import read_corpus
        from tracer.training import evaluate as run
        from tracer.transcoders import load_transcoder

        model = _model(options)
        corpus = read_corpus(options["corpus"], model, context=options["context"])
        found = []
        for name in options["transcoders"]:
            transcoder = load_transcoder(name, device=model.device)
            with _bar(name) as progress:
                found.append(
                    run(
                        model,
                        transcoder,
                        corpus,
                        tokens=options["tokens"],
                        prompts=options["prompts"],
                        max_features=options["max_features"],
                        zero_first=options["zero_first"],
                        seed=options["seed"],
                        progress=progress,
                    )
                )
            for failure in found[-1].failures:
                session.say(f"error: {' '.join(failure.split())}")
    if session.format == "table":
        _tell(session, found)
    else:
        session.print(_records(found))
    if any(one.failures for one in found):
        click.get_current_context().exit(1)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[str, int, int], None] | None]:
    """Progress bar of one transcoder on a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(f"{Path(name).name}: {what}", total=total)
            progress.update(tasks[what], completed=done)

        yield show


_TOTALS: Final = (
    ("explained", "explained variance, mean over layers", ".3f"),
    ("explained_least", "… of the worst layer", ".3f"),
    ("l0", "L0, mean over layers", ".1f"),
    ("dead", "dead features, mean over layers", ".1%"),
    ("dead_most", "… of the worst layer", ".1%"),
    ("top1", "all MLPs replaced: top-1 kept", ".1%"),
    ("kl", "… KL, nats", ".3f"),
    ("top1_last", "… top-1 kept, last position of a sequence", ".1%"),
    ("kl_last", "… KL there", ".3f"),
    ("mean_path_length", "graphs: mean path length", ".2f"),
    ("completeness", "… completeness", ".3f"),
    ("replacement", "… replacement", ".3f"),
    ("features", "… features", ".0f"),
)


def _tell(session: Session, found: list[Evaluation]) -> None:
    """Print three tables for people, a column for each transcoder."""
    import pandas as pd

    names = _names(found)
    totals = [one.totals for one in found]
    rows: list[dict[str, str]] = []
    for key, title, how in _TOTALS:
        values = [total[key] for total in totals]
        if not all(math.isnan(value) for value in values):
            cells = [format(value, how) for value in values]
            rows.append({"figure": title, **dict(zip(names, cells, strict=True))})
    session.print(pd.DataFrame(rows))
    layers = pd.DataFrame({"layer": found[0].layers["layer"]})
    for name, one in zip(names, found, strict=True):
        for column in one.layers.columns[1:]:
            if not column.startswith("l0_"):
                layers[f"{column} {name}" if len(found) > 1 else column] = one.layers[column]
    session.print(layers.round(3))
    if len(found[0].figures.classes):
        parts = [
            _classes(one.figures, name if len(found) > 1 else None)
            for name, one in zip(names, found, strict=True)
        ]
        session.print(pd.concat(parts, ignore_index=True).round(3))
    session.say(f"{found[0].figures.tokens:,} tokens, {len(found[0].graphs)} prompts traced")


def _names(found: list[Evaluation]) -> list[str]:
    """Short names of transcoders, each once."""
    names: list[str] = []
    for one in found:
        name = one.transcoder_id.rsplit("/", 1)[-1]
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def _classes(figures: Figures, name: str | None) -> pd.DataFrame:
    made = figures.classes.copy()
    if name is not None:
        made.insert(0, "transcoder", name)
    return made


def _records(found: list[Evaluation]) -> pd.DataFrame:
    """For programs: a record a transcoder (layer null), and one for each of its layers."""
    import pandas as pd

    parts = []
    for one in found:
        totals = pd.DataFrame([{**one.totals, "layer": None}])
        classes = {
            f"{key}_{row['class']}": row[key]
            for row in one.figures.classes.to_dict("records")
            for key in ("explained", "l0", "top1", "kl")
        }
        totals = totals.assign(**classes)
        layers = one.layers.assign(transcoder=one.transcoder_id, kind=one.kind)
        parts += [totals.astype(object), layers.astype(object)]
    frame = pd.concat(parts, ignore_index=True)
    first = ["transcoder", "kind", "layer"]
    return frame[[*first, *(name for name in frame.columns if name not in first)]]
