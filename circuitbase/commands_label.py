"""The command that says what features are: labels from a table, or computed over a corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitbase._session import Session, store_options
from circuitbase.commands_trace import _extra, _options
from circuitbase.commands_train import _model

if TYPE_CHECKING:
    import pandas as pd

    from graphstore import Store

__all__ = ["label"]

_COMPUTED = _options(
    click.option("-m", "--model", metavar="MODEL", help="Compute them: folder or hub id."),
    click.option("-t", "--transcoder", metavar="TRANSCODER", help="Folder or hub id."),
    click.option(
        "--corpus",
        metavar="FILE",
        help="Text (a sequence a line), or .jsonl with text or token_ids.",
    ),
    click.option(
        "--classes",
        metavar="FILE",
        help='Classes of words that labels may name: {"Dallas": ["Texas cities"], …}.',
    ),
    click.option("--all", "all_", is_flag=True, help="All features, not those stored alone."),
    click.option(
        "--examples", type=click.IntRange(0), default=10, show_default=True, help="Of each feature."
    ),
    click.option(
        "--context",
        type=click.IntRange(2),
        metavar="N",
        help="The most tokens of a sequence; longer lines are cut.  [default: 256]",
    ),
    click.option("--revision", metavar="REV", help="Of the model on the hub."),
    click.option("--transcoder-revision", metavar="REV", help="Of the transcoder on the hub."),
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
)


@click.command()
@click.argument("file", metavar="[FILE.csv]", type=click.Path(), required=False)
@click.option(
    "--source", metavar="NAME", help="Where the labels are from.  [default: the file's name]"
)
@_COMPUTED
@store_options
def label(session: Session, /, file: str | None, source: str | None, **options: Any) -> None:
    """Label features from a file, or by what they do.

    The columns of the file are feature_id and label. A feature id is {transcoder}/{layer}/{index};
    `circuitbase query features` lists some. Labels are kept with their source.

    With a model, its transcoder and a corpus, labels are computed: from the contexts that a feature
    is most active in and the output tokens that it promotes. Figures and examples are kept too, for
    `query features` and `query feature_examples`. A label given by hand is never replaced.

    For example:
      circuitbase label labels.csv --source "J. Doe, by hand"
      circuitbase label -m gpt2 -t owner/clt --corpus texts.txt
      circuitbase label -m gpt2 -t owner/clt --corpus texts.txt --all --classes words.json
    """
    given = [name for name in ("model", "transcoder", "corpus") if options[name] is not None]
    if (file is None) == (not given):
        raise click.UsageError("Give FILE.csv, or -m, -t and --corpus to compute labels.")
    if file is not None:
        frame = _read_labels(Path(file))
        with session.open() as store:
            count = store.label(frame, source or Path(file).name)
        session.say(f"labelled {count:,} features")
        return
    if len(given) < 3:
        raise click.UsageError("Computing labels takes -m MODEL, -t TRANSCODER and --corpus FILE.")
    if source is not None:
        raise click.UsageError("--source is of labels from a file: computed ones say how.")
    with _extra():
        _compute(session, options)


def _compute(session: Session, options: dict[str, Any]) -> None:
    import pandas as pd

    from circuitbase.output import progress_bar
    from tracer.corpora import read_corpus
    from tracer.describing import describe_features
    from tracer.transcoders import load_transcoder

    classes = None if options["classes"] is None else _read_classes(Path(options["classes"]))
    model = _model(options)
    transcoder = load_transcoder(
        options["transcoder"], revision=options["transcoder_revision"], device=model.device
    )
    corpus = read_corpus(options["corpus"], model, context=options["context"])
    with session.open() as store:
        known = None if options["all_"] else _known(store, transcoder.transcoder_id)
        with progress_bar("corpus") as progress:
            frame = describe_features(
                model,
                transcoder,
                corpus,
                known,
                examples=options["examples"],
                classes=classes,
                progress=progress,
            )
        with progress_bar("storing") as progress:
            store.describe_features(frame, progress)
    labelled = int(frame["label"].notna().sum())
    shown = frame.drop(columns=["statistics", "examples"])
    promoted = [[t for t, _ in one["promoted"][:3]] for one in frame["statistics"]]
    shown["promoted"] = pd.Series(promoted, dtype=object)
    session.print(
        shown,
        columns=["layer", "index", "label", "density", "max_activation", "promoted"],
        limit=20,
    )
    never = len(frame) - labelled
    session.say(
        f"described {len(frame):,} features over {corpus.n_tokens:,} tokens; "
        f"{never:,} of them are never active there and have no label"
    )


def _known(store: Store, transcoder_id: str) -> list[str]:
    from tracer.errors import NotFoundError

    found: list[str] = store.rows(
        "MATCH (f:Feature) WHERE f.transcoder_id = $transcoder_id "
        "RETURN collect(f.feature_id) AS ids",
        transcoder_id=transcoder_id,
    )[0]["ids"]
    if not found:
        raise NotFoundError(
            f"the store has no feature of {transcoder_id}",
            "Trace a prompt with it first, or give --all",
        )
    return found


def _read_classes(path: Path) -> dict[str, list[str]]:
    from tracer.errors import FormatError

    remedy = 'Write a JSON object of words: {"Dallas": ["Texas cities", "cities"]}'
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})", "Check its name") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON ({error})", remedy) from error
    if not isinstance(found, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in found.values()
    ):
        raise FormatError(f"{path}: gives words no lists of classes", remedy)
    return found


def _read_labels(path: Path) -> pd.DataFrame:
    import pandas as pd

    from tracer.errors import FormatError

    remedy = "Give a CSV file with the columns feature_id and label"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not a CSV table ({str(error).rstrip('.')})", remedy) from error
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}", remedy) from error
    if missing := [name for name in ("feature_id", "label") if name not in frame]:
        raise FormatError(f"{path}: has no column {missing[0]!r}", remedy)
    empty = frame["feature_id"].str.strip() == ""
    if empty.any():
        raise FormatError(
            f"{path}: line {int(empty.to_numpy().argmax()) + 2} has no feature_id", remedy
        )
    return frame[["feature_id", "label"]]
