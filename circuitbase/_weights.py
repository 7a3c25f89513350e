"""What the command weights needs beside its options: choosing features, showing results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from circuitbase._session import Session

if TYPE_CHECKING:
    import pandas as pd

    from tracer import FeatureSelection, GlobalWeights, Model, Transcoder

__all__ = ["ACTIVE", "bar", "choose_features", "kept_features", "pair_of", "show_weights"]

ACTIVE: Final = 10  # tokens, where no rule for choosing features is given
_SHOWN: Final = ("source", "target", "weight", "era", "twera", "standard_error_twera", "cofiring")


def kept_features(options: dict[str, Any]) -> FeatureSelection | None:
    """Features of the sums that are there already, if they were chosen by the same rules."""
    from tracer.weights.selection import FeatureSelection
    from tracer.weights.statistics import CorpusStatistics

    path = options["sums"]
    if not path or options["fresh"] or not Path(path).exists():
        return None
    found = CorpusStatistics.load(path)
    if found.selection.get("asked") != _asked(options):
        return None
    return FeatureSelection(found.features, found.selection)


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    """Rules that were asked for, as they are kept with the sums."""
    names = ("active", "listed", "file", "sets", "graphs", "sample", "seed", "corpus")
    return {
        name: list(options[name]) if isinstance(options[name], tuple) else options[name]
        for name in names
    }


def choose_features(
    session: Session,
    options: dict[str, Any],
    model: Model,
    transcoder: Transcoder,
    how: dict[str, Any],
) -> FeatureSelection:
    """Choose features by the rules that are given; each adds to the others."""
    from tracer.weights.collecting import feature_counts
    from tracer.weights.selection import FeatureSelection

    found: list[FeatureSelection] = []
    if options["listed"]:
        found.append(
            FeatureSelection.of([pair_of(text, "--feature") for text in options["listed"]])
        )
    if options["file"]:
        found.append(_of_file(options["file"]))
    if options["sets"] or options["graphs"]:
        with session.open() as store:
            for name in options["sets"]:
                found.append(_of_graphs(store, name, f"set {name}", transcoder))
            if options["graphs"]:
                ids = [store.find(name) for name in options["graphs"]]
                named = f"graphs {', '.join(options['graphs'])}"
                found.append(_of_graphs(store, ids, named, transcoder))
    at_least = options["active"]
    if at_least is None and not found and options["sample"] is None:
        at_least = ACTIVE
    active = None
    if at_least is not None:
        with bar("choosing features", "tokens") as show:
            counts = feature_counts(model, transcoder, options["corpus"], **how, progress=show)
        active = FeatureSelection.active(counts, at_least)
    if options["sample"] is not None:
        found.append(
            FeatureSelection.sample(
                transcoder, options["sample"], seed=options["seed"], among=active
            )
        )
    elif active is not None:
        found.append(active)
    chosen = found[0]
    for more in found[1:]:
        chosen = chosen | more
    return FeatureSelection(chosen.features, {**chosen.record, "asked": _asked(options)})


def pair_of(text: str, option: str) -> tuple[int, int]:
    """Layer and index of a feature given as LAYER/INDEX."""
    layer, _, index = text.partition("/")
    if not (layer.isascii() and layer.isdigit() and index.isascii() and index.isdigit()):
        raise click.UsageError(f"{option} is LAYER/INDEX, as in 3/1024, not {text!r}.")
    return int(layer), int(index)


def _of_file(name: str) -> FeatureSelection:
    import pandas as pd

    from tracer.errors import FormatError
    from tracer.weights.selection import FeatureSelection
    from tracer.weights.statistics import CorpusStatistics
    from tracer.weights.weights import GlobalWeights

    path = Path(name)
    if path.suffix.lower() == ".npz":
        found: CorpusStatistics | GlobalWeights
        try:
            found = CorpusStatistics.load(path)
        except FormatError as first:
            try:
                found = GlobalWeights.load(path)
            except FormatError:
                raise first from None
        return FeatureSelection(found.features[["layer", "index", "reason"]], found.selection)
    try:
        table: pd.DataFrame = pd.read_csv(path)
        pairs = table[["layer", "index"]].astype("int64")
        if (pairs != table[["layer", "index"]]).any(axis=None):
            raise ValueError("a number is not whole")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path}: is no table of features ({error})", "Give the columns layer and index"
        ) from error
    return FeatureSelection.of(pairs, f"listed in {path.name}")


def _of_graphs(
    store: Any, graphs: str | list[str], named: str, transcoder: Transcoder
) -> FeatureSelection:
    """Features of stored graphs, which must be of this transcoder."""
    import queries
    from tracer.errors import SettingError
    from tracer.weights.selection import FeatureSelection

    found = queries.recurring_features(store, prompt_set=graphs, min_graphs=1)
    if not len(found):
        raise SettingError(f"{named}: holds no feature", "Give graphs with features")
    begins = f"{transcoder.transcoder_id}/"
    others = found[~found["feature_id"].str.startswith(begins)]
    if len(others):
        other = str(others["feature_id"].iloc[0]).rsplit("/", 2)[0]
        raise SettingError(
            f"{named}: holds features of the transcoder {other}, not of {transcoder.transcoder_id}",
            "Trace its prompts with this transcoder, or give graphs of it",
        )
    return FeatureSelection.of(found[["layer", "index"]].astype("int64"), f"in {named}")


# Showing ------------------------------------------------------------------------------------------


@contextmanager
def bar(what: str, of: str) -> Iterator[Callable[..., None]]:
    """Show how far something is: a bar on a terminal, elsewhere nothing."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,} {task.fields[of]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=None, of=of, rate="")
        start, first = time.monotonic(), None

        def show(done: int, total: int | None = None) -> None:
            nonlocal first
            first = done if first is None else first
            taken = time.monotonic() - start
            rate = f"{(done - first) / taken:,.0f} a second" if taken > 1 else ""
            progress.update(task, completed=done, total=total, rate=rate)

        yield show


def show_weights(session: Session, made: GlobalWeights, status: str) -> None:
    """Print one row about the weights; for people, what is strongest and what to beware of."""
    import pandas as pd

    row = {
        "weights_id": made.weights_id,
        "corpus_id": made.corpus_id,
        "norm": made.norm,
        "features": len(made),
        "pairs": made.weights.nnz,
        "tokens": made.tokens,
        "transcoder_id": made.transcoder_id,
        "status": status,
    }
    if session.format != "table":
        session.print(pd.DataFrame([row]))
        return
    from tracer.weights.influence import interference
    from tracer.weights.weights import LIMITS

    session.print(pd.DataFrame([row]).drop(columns="transcoder_id"))
    session.say("")
    pairs = made.to_pandas()
    for end in ("source", "target"):
        pairs[end] = [
            f"{a}/{b}" for a, b in zip(pairs[f"{end}_layer"], pairs[f"{end}_index"], strict=True)
        ]
    strongest = pairs.sort_values("twera", key=lambda x: -x.abs(), kind="stable").head(10)
    session.print(strongest[list(_SHOWN)])
    cut, flags = made.cut, interference(made)["flag"].value_counts()
    kept = ", ".join(f"{share:.1%} of |{name}|" for name, share in cut["share_kept"].items())
    session.say(
        f"\nkept {cut['kept']:,} of {cut['pairs']:,} pairs ({cut['cofiring']:,} fire together): "
        f"{kept}"
    )
    session.say(
        f"flagged: {flags.get('unused', 0):,} large weights between features that never fire "
        f"together, {flags.get('tiny', 0):,} tiny weights with large TWERA"
    )
    for limit in LIMITS:
        session.say(f"  {limit}")
    if not status.startswith("not"):
        session.say("next: circuitbase query hubs; circuitbase query interference")
