"""The commands that make global weights: weights, merge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitbase._session import Session, store_options
from circuitbase._weights import (
    ACTIVE,
    bar,
    choose_features,
    kept_features,
    pair_of,
    show_weights,
)
from circuitbase.commands_trace import _extra, _options

if TYPE_CHECKING:
    from graphstore import Store
    from tracer import CorpusStatistics, FeatureSelection, GlobalWeights, Model, Transcoder

__all__ = ["merge", "weights"]


_WHAT = _options(
    click.option("-m", "--model", metavar="MODEL", required=True, help="Folder or hub id."),
    click.option(
        "-t",
        "--transcoder",
        metavar="TRANSCODER",
        required=True,
        help="Folder or hub id, of any known layout.",
    ),
    click.option(
        "--corpus",
        metavar="FILE",
        help="Text (a document a line), .jsonl or .parquet with text or token_ids, or a folder "
        "that datasets saved.",
    ),
    click.option(
        "--sums",
        metavar="FILE",
        help="Keep the sums over the corpus here while they grow, and go on from there; without "
        "--corpus, take them from here.",
    ),
    click.option("--out", metavar="FILE", help="Write the weights to this .npz file."),
    click.option("--no-store", is_flag=True, help="Put nothing into the store."),
)
_FEATURES = _options(
    click.option(
        "--active",
        type=click.IntRange(1),
        metavar="N",
        help=f"Features active on N tokens or more; takes a pass of its own.  [default: {ACTIVE}, "
        "where nothing else is chosen]",
    ),
    click.option(
        "--feature",
        "listed",
        metavar="LAYER/INDEX",
        multiple=True,
        help="This feature. Can be repeated.",
    ),
    click.option(
        "--features",
        "file",
        metavar="FILE",
        help="Features of a .csv file with layer and index, or of an .npz file of sums or weights.",
    ),
    click.option(
        "--set", "sets", metavar="NAME", multiple=True, help="Features of this prompt set's graphs."
    ),
    click.option(
        "--graph", "graphs", metavar="GRAPH", multiple=True, help="Features of this stored graph."
    ),
    click.option(
        "--sample",
        type=click.IntRange(1),
        metavar="N",
        help="N features of each layer at random; with --active, among those.",
    ),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
)
_COUNTING = _options(
    click.option(
        "--context",
        type=click.IntRange(2),
        metavar="N",
        help="The most tokens of a sequence; longer documents are cut.  [default: 256]",
    ),
    click.option(
        "--bos",
        type=click.Choice(["texts", "all", "none"]),
        default="texts",
        show_default=True,
        help="Put BOS in front of texts, of token ids as well, or of nothing.",
    ),
    click.option(
        "--zero-first",
        type=click.IntRange(0),
        metavar="N",
        help="First positions that are not counted.  [default: as in graphs of the model]",
    ),
    click.option(
        "--unit",
        type=click.IntRange(1),
        default=65_536,
        show_default=True,
        help="Tokens between two points where a run can be cut.",
    ),
    click.option(
        "--batch", type=click.IntRange(1), default=4096, show_default=True, help="Tokens of a pass."
    ),
    click.option(
        "--every",
        type=click.IntRange(1),
        default=1_000_000,
        show_default=True,
        help="Tokens between two savings of --sums.",
    ),
    click.option("--fresh", is_flag=True, help="Begin anew where --sums has something."),
    click.option(
        "--shard", metavar="I/N", help="Count every N-th unit from the I-th on, into --sums."
    ),
    click.option(
        "--ray", type=click.IntRange(1), metavar="N", help="Run N shards on a Ray cluster."
    ),
    click.option("--ray-address", metavar="URL", help="Of the cluster.  [default: this machine]"),
)
_WEIGHTS = _options(
    click.option(
        "--norm",
        type=click.Choice(["omitted", "folded"]),
        default="omitted",
        show_default=True,
        help="Leave the denominators of norms out, or count activations over the target's.",
    ),
    click.option(
        "--top-k",
        type=click.IntRange(1),
        default=100,
        show_default=True,
        help="Inputs of each target and outputs of each source that are kept.",
    ),
    click.option("--all-pairs", is_flag=True, help="Keep all pairs: --top-k is not looked at."),
    click.option(
        "--threshold",
        "thresholds",
        metavar="MEASURE=VALUE",
        multiple=True,
        help="Least absolute weight, era or twera. Can be repeated.",
    ),
    click.option(
        "--by",
        type=click.Choice(["weight", "era", "twera"]),
        multiple=True,
        help="Measures by which a pair is kept.  [default: all three]",
    ),
    click.option(
        "--target",
        "targets",
        metavar="LAYER/INDEX",
        multiple=True,
        help="Attach every feature's influence on this one. Can be repeated.",
    ),
    click.option(
        "--influence-by",
        type=click.Choice(["weight", "era", "twera"]),
        default="twera",
        show_default=True,
    ),
)
_LOADING = _options(
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float64", "bfloat16", "float16"]),
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
    click.option("--revision", metavar="REV", help="Of the model on the hub."),
    click.option("--transcoder-revision", metavar="REV", help="Of the transcoder on the hub."),
    click.option(
        "--layout", metavar="NAME", help="Of the transcoder, where its files do not tell."
    ),
    click.option("--in-memory", is_flag=True, help="Hold the whole transcoder in memory."),
)


@click.command()
@_WHAT
@_FEATURES
@_COUNTING
@_WEIGHTS
@_LOADING
@store_options
def weights(session: Session, /, **options: Any) -> None:
    """Compute global weights over a corpus, and store them.

    A virtual weight is what one feature adds to another on any prompt, through the residual stream;
    ERA and TWERA are how much of that the corpus uses, with standard errors. They are computed
    between chosen features. The store joins them to the graphs by their features.

    With --sums FILE a run that was stopped goes on where it was, and gives the same sums to the
    last bit. So do shards: give each --shard I/N and a file of its own, on as many machines as
    there are, and put them together with circuitbase merge. BOS and special tokens are not counted.

    For example:
      circuitbase weights -m gpt2 -t ./clt --corpus web.txt --active 100 --sums web.npz
      circuitbase weights -m gpt2 -t ./clt --corpus capitals.jsonl --set capitals
      circuitbase weights -m gpt2 -t ./clt --corpus web.parquet --shard 2/8 --sums part2.npz
      circuitbase merge part*.npz --out web.npz
      circuitbase weights -m gpt2 -t ./clt --sums web.npz --norm folded --target 11/4071
    """
    shard = _shard(options["shard"])
    _check(options, shard)
    thresholds = _thresholds(options["thresholds"])
    with _extra():
        from tracer.weights.cutting import Cut
        from tracer.weights.influence import global_influence
        from tracer.weights.scores import check_norm, global_weights

        Cut(threshold=thresholds or {})  # refused before the corpus is read, not after
        model, transcoder = _loaded(session, options)
        check_norm(model, transcoder, options["norm"])
        sums = _sums(session, options, model, transcoder, shard)
        session.say(
            f"{sums.tokens:,} tokens, {len(sums):,} features, {sums.n_pairs:,} pairs that fire "
            f"together; sums {sums.fingerprint()}"
        )
        if shard is not None:
            session.say(f"next: circuitbase merge FILE… --out FILE, with {options['sums']}")
            return
        if missing := sums.units.missing:
            session.say(f"warning: {missing:,} units of the corpus are not in the sums")
        with bar("virtual weights", "tiles") as show:
            made = global_weights(
                model,
                transcoder,
                sums,
                options["norm"],
                top_k=None if options["all_pairs"] else options["top_k"],
                threshold=thresholds,
                by=options["by"] or ("weight", "era", "twera"),
                progress=show,
            )
        if options["targets"]:
            influence = global_influence(made, options["targets"], options["influence_by"])
            made = made.with_influence(influence)
    if options["out"]:
        made.save(options["out"])
        session.say(f"written: {options['out']}")
    status = "not stored"
    if not options["no_store"]:
        with session.open() as store:
            status = "stored" if store.write_weights(made) else "already stored"
            if made.influence is not None:
                _say_other_influence(session, store, made)
    show_weights(session, made, status)


@click.command()
@click.argument("files", metavar="FILE…", nargs=-1, required=True)
@click.option("--out", metavar="FILE", required=True, help="Where the sums go.")
@store_options
def merge(session: Session, /, files: tuple[str, ...], out: str) -> None:
    """Sum shards of a corpus, or several corpora, into one file.

    The sums are those of one run, to the last bit, in whatever order the FILEs are given. Files of
    another model, transcoder or choice of features are refused, and so is a stretch of a corpus
    that is in two files: it would count twice.

    For example:
      circuitbase merge part1.npz part2.npz part3.npz --out web.npz
      circuitbase merge web.npz books.npz --out both.npz
    """
    from tracer.weights.statistics import CorpusStatistics

    def read() -> Iterator[CorpusStatistics]:
        for file in files:
            yield CorpusStatistics.load(file)

    made = CorpusStatistics.merge(read())
    made.save(out)
    missing = made.units.missing
    left = "" if not missing else f"; {missing:,} units of the corpus are still missing"
    session.say(
        f"{out}: {made.tokens:,} tokens, {made.n_pairs:,} pairs of {len(made):,} features; sums "
        f"{made.fingerprint()}{left}"
    )


# Details ------------------------------------------------------------------------------------------


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    part, _, of = text.partition("/")
    if not (part.isascii() and part.isdigit() and of.isascii() and of.isdigit()):
        raise click.UsageError(f"--shard is I/N, as in 2/8, not {text!r}.")
    if not 1 <= int(part) <= int(of):
        raise click.UsageError(f"--shard {text}: the first number goes from 1 to the second.")
    return int(part), int(of)


def _check(options: dict[str, Any], shard: tuple[int, int] | None) -> None:
    if not options["corpus"] and not options["sums"]:
        raise click.UsageError("Give --corpus FILE, or --sums FILE of an earlier run.")
    if shard is not None and not (options["corpus"] and options["sums"]):
        raise click.UsageError("--shard needs --corpus FILE and --sums FILE.")
    if options["ray"] and (shard is not None or not options["corpus"]):
        raise click.UsageError("--ray runs the shards of --corpus FILE: leave out --shard.")
    if options["no_store"] and not (options["out"] or options["sums"]):
        raise click.UsageError("--no-store needs --out or --sums: else nothing would be kept.")
    for text in options["listed"]:
        pair_of(text, "--feature")
    for text in options["targets"]:
        pair_of(text, "--target")
    if not options["corpus"]:
        chosen = ("active", "listed", "file", "sets", "graphs", "sample")
        if any(options[name] for name in chosen):
            raise click.UsageError(
                "Sums have their features: choosing others needs --corpus FILE again."
            )
        if not Path(options["sums"]).exists():
            raise click.UsageError(f"{options['sums']} is not there: give --corpus FILE.")


def _thresholds(pairs: tuple[str, ...]) -> dict[Any, float] | None:
    made: dict[Any, float] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in ("weight", "era", "twera"):
            raise click.UsageError(
                f"--threshold is of weight, era or twera, as in era=0.01: {pair}"
            )
        try:
            made[name] = float(value)
        except ValueError:
            raise click.UsageError(f"--threshold {pair}: {value!r} is no number.") from None
    return made or None


def _loaded(session: Session, options: dict[str, Any]) -> tuple[Model, Transcoder]:
    import torch

    from tracer.models import load_model
    from tracer.transcoders import load_transcoder

    device = _device(options["device"])
    session.say(f"loading {options['model']} and {options['transcoder']}")
    dtype = getattr(torch, options["dtype"])
    model = load_model(options["model"], revision=options["revision"], dtype=dtype, device=device)
    transcoder = load_transcoder(
        options["transcoder"],
        revision=options["transcoder_revision"],
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        device=device,
        lazy=not options["in_memory"],
        layout=options["layout"],
    )
    return model, transcoder


def _device(name: str) -> str:
    import torch

    return ("cuda:0" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _sums(
    session: Session,
    options: dict[str, Any],
    model: Model,
    transcoder: Transcoder,
    shard: tuple[int, int] | None,
) -> CorpusStatistics:
    """Read the sums of the corpus from the file, or make them, or make them further."""
    from tracer.errors import SettingError
    from tracer.weights.collecting import corpus_statistics
    from tracer.weights.statistics import CorpusStatistics

    if not options["corpus"]:
        return CorpusStatistics.load(options["sums"])
    how: dict[str, Any] = {name: options[name] for name in ("context", "zero_first", "batch")}
    how["bos"] = {"texts": None, "all": True, "none": False}[options["bos"]]
    chosen = kept_features(options) or choose_features(session, options, model, transcoder, how)
    session.say(f"{len(chosen):,} features are chosen")
    found = set(zip(chosen.features["layer"], chosen.features["index"], strict=True))
    for text in options["targets"]:
        if pair_of(text, "--target") not in found:
            raise SettingError(
                f"target {text} is not among the {len(found):,} chosen features",
                f"Add --feature {text}",
            )
    how["unit"] = options["unit"]
    if options["ray"]:
        return _with_ray(session, options, chosen, how)
    start = time.monotonic()
    try:
        with bar("counting", "tokens") as show:
            made = corpus_statistics(
                model,
                transcoder,
                options["corpus"],
                chosen,
                **how,
                shard=shard,
                checkpoint=options["sums"],
                every=options["every"],
                resume=not options["fresh"],
                progress=show,
            )
    except KeyboardInterrupt:
        if options["sums"]:
            session.say("stopped; the same command goes on from what is saved")
        raise
    session.say(f"counted in {time.monotonic() - start:.1f} s")
    return made


def _with_ray(
    session: Session, options: dict[str, Any], chosen: FeatureSelection, how: dict[str, Any]
) -> CorpusStatistics:
    import torch

    from tracer.many import Loading
    from tracer.weights.sharding import ray_statistics

    folder = None
    if options["sums"]:
        folder = Path(f"{options['sums']}.shards").resolve()
        if options["fresh"] and folder.is_dir():
            for file in folder.glob("shard_*.npz"):
                file.unlink()
    device = _device(options["device"])
    with bar("shards", "shards") as show:
        made = ray_statistics(
            _absolute(options["model"]),
            _absolute(options["transcoder"]),
            _absolute(options["corpus"]),
            chosen,
            shards=options["ray"],
            loading=Loading(
                revision=options["revision"],
                transcoder_revision=options["transcoder_revision"],
                dtype=getattr(torch, options["dtype"]),
                layout=options["layout"],
                lazy=not options["in_memory"],
            ),
            device=device,
            folder=folder,
            resources={"num_cpus": 1, **({"num_gpus": 1} if device != "cpu" else {})},
            address=options["ray_address"],
            progress=show,
            **how,
        )
    if options["sums"]:
        made.save(options["sums"])
    return made


def _say_other_influence(session: Session, store: Store, made: GlobalWeights) -> None:
    """Weights that are stored keep the influence they have: say so where it is another."""
    (kept,) = store.rows(
        "MATCH (w:GlobalWeights {weights_id: $weights_id}) "
        "RETURN w.influence_by AS by, w.influence_targets AS targets",
        weights_id=made.weights_id,
    )
    if (kept["by"], sorted(kept["targets"])) != (
        made.influence.by if made.influence else None,
        sorted(made.targets),
    ):
        session.say(
            f"warning: {made.weights_id} is stored with the influence by {kept['by']} on "
            f"{', '.join(kept['targets'])}, which stays. To have this one instead: "
            f"circuitbase delete {made.weights_id}, and again"
        )


def _absolute(name: str) -> str:
    """Name a folder or file so that a worker finds it; hub ids stay what they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name
