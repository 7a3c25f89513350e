"""The command that makes graphs: trace."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from circuitbase._session import Session, store_options

if TYPE_CHECKING:
    from graphstore import Store
    from tracer import AttributionGraph
    from tracer.many import Loading, Traced
    from tracer.prompts import Prompt
    from tracer.pruning import PruningRule

__all__ = ["trace"]

_EXTRA: Final = ("torch", "transformers", "safetensors", "huggingface_hub", "yaml")
_COLUMNS: Final = (
    *("prompt", "prompt_id", "graph_id", "slug", "nodes", "edges", "status", "seconds"),
    *("file", "error"),
)
_TRACED, _READ, _FAILED = "traced", "read from file", "failed"
_KNOWN, _WRITTEN = "already stored", "already written"


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


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
        "--prompts",
        "file",
        metavar="FILE",
        help="File of prompts: text (one a line), .jsonl or .csv; - for text from standard input.",
    ),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Only the first N prompts of FILE."
    ),
    click.option("--set", "set_", metavar="NAME", help="Add the graphs to this prompt set."),
    click.option("--out", metavar="DIR", help="Keep the unpruned graphs here, as .circuit files."),
    click.option("--no-store", is_flag=True, help="Only write the files of --out."),
)
_TARGETS = _options(
    click.option(
        "--target",
        "tokens",
        metavar="TOKEN",
        multiple=True,
        help="Trace this token in place of the likeliest ones: its text, with the space before "
        "it, or id=N. Can be repeated.",
    ),
    click.option(
        "--difference",
        nargs=2,
        metavar="A B",
        help="Trace the difference of two tokens' logits, A − B.",
    ),
    click.option(
        "--feature",
        "features",
        metavar="LAYER/INDEX/POSITION",
        multiple=True,
        help="Trace what is below this feature. Can be repeated.",
    ),
    click.option(
        "--max-n-logits",
        type=click.IntRange(1),
        default=10,
        show_default=True,
        help="The most tokens to trace, where none is given.",
    ),
    click.option(
        "--desired-logit-prob",
        type=click.FloatRange(0, 1),
        default=0.95,
        show_default=True,
        help="Probability that the tokens are to reach, where none is given.",
    ),
)
_HOW = _options(
    click.option(
        "--max-features",
        type=click.IntRange(1),
        metavar="N",
        help="Keep the N most influential features; the rest join the errors.  [default: all]",
    ),
    click.option(
        "--zero-first",
        type=click.IntRange(0),
        metavar="N",
        help="First positions without features and errors.  [default: as the model needs it]",
    ),
    click.option("--parts", is_flag=True, help="Split edges into residual and attention parts."),
    click.option(
        "--no-check",
        is_flag=True,
        help="Skip the proofs that the model's freeze holds and that every row is whole.",
    ),
    click.option(
        "--memory",
        type=click.FloatRange(0),
        default=2.0,
        show_default=True,
        metavar="GIB",
        help="Memory for what is carried up through the layers.",
    ),
)
_PRUNING = _options(
    click.option(
        "--node-threshold",
        type=click.FloatRange(0, 1),
        default=0.8,
        show_default=True,
        help="Share of the influence whose nodes are stored.",
    ),
    click.option(
        "--edge-threshold",
        type=click.FloatRange(0, 1),
        default=0.98,
        show_default=True,
        help="Share of the edge scores whose edges are stored.",
    ),
    click.option(
        "--pruning-rule",
        type=click.Choice(["circuit-tracer", "paper"]),
        default="circuit-tracer",
        show_default=True,
        help="Whether errors are pruned too, or all stay (paper).",
    ),
    click.option("--no-prune", is_flag=True, help="Store the graphs as they are traced."),
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
        help="cpu, cuda:0, or several with commas: a process for each. auto: all CUDA devices, "
        "else the CPU.",
    ),
    click.option("--revision", metavar="REV", help="Of the model on the hub."),
    click.option("--transcoder-revision", metavar="REV", help="Of the transcoder on the hub."),
    click.option(
        "--layout", metavar="NAME", help="Of the transcoder, where its files do not tell."
    ),
    click.option(
        "--in-memory",
        is_flag=True,
        help="Hold the whole transcoder in memory: faster, where it fits.",
    ),
)


@click.command()
@click.argument("texts", metavar="[PROMPT…]", nargs=-1)
@_WHAT
@_TARGETS
@_HOW
@_PRUNING
@_LOADING
@store_options
def trace(session: Session, /, texts: tuple[str, ...], **options: Any) -> None:
    """Trace PROMPTs into attribution graphs, and store them.

    The store gets each graph pruned, as soon as it is finished; --out keeps the unpruned one.
    Graphs that are there already are not traced again, so a run that was stopped, in whatever
    way, goes on where it was when it is started again. A prompt that cannot be traced is named and
    skipped; the status is then 1. Other settings make other graphs.

    A line of a .jsonl file is {"prompt": "…"} or {"token_ids": […]}, with "id", "slug" and whatever
    else is to be kept with the graph; a .csv file has the same names in its header.

    For example:
      circuitbase trace -m gpt2 -t owner/clt "The capital of the state containing Dallas is"
      circuitbase trace -m gpt2 -t owner/clt --prompts capitals.jsonl --set capitals
      circuitbase trace -m gpt2 -t ./clt --prompts capitals.txt --out unpruned/ --parts
      circuitbase trace -m gpt2 -t ./clt "Dallas is in" --difference " Texas" " Ohio"
    """
    if options["no_store"] and not options["out"]:
        raise click.UsageError("--no-store needs --out DIR: else nothing would be kept.")
    if options["no_store"] and options["set_"]:
        raise click.UsageError("--set is of the store: leave out one of --set and --no-store.")
    if options["set_"] is not None and not options["set_"].strip():
        raise click.UsageError("--set is empty: give the set a name, or leave it out.")
    for name in ("memory", "node_threshold", "edge_threshold", "desired_logit_prob"):
        if not math.isfinite(options[name]):
            raise click.UsageError(f"--{name.replace('_', '-')} is {options[name]}, not a number.")
    targets = _targets(options["tokens"], options["difference"], options["features"])
    prompts = _prompts(texts, options["file"], options["limit"])
    with _extra():
        from tracer.attribution.tracing import TraceSettings
        from tracer.many import trace_many

        settings = TraceSettings(
            targets=targets,
            max_n_logits=options["max_n_logits"],
            desired_logit_prob=options["desired_logit_prob"],
            max_features=options["max_features"],
            zero_first=options["zero_first"],
            parts=options["parts"],
            check=not options["no_check"],
            memory=int(options["memory"] * 2**30),
        )
        loading = _loading(options)
        folder = None if options["out"] is None else Path(options["out"])
        pruning = (options["node_threshold"], options["edge_threshold"], options["pruning_rule"])
        keep = _Keep(folder, None if options["no_prune"] else pruning)
        run = _Run(session, keep, options["set_"])
        # Names that are wrong are found out before a store is opened, or made.
        results = trace_many(
            options["model"],
            options["transcoder"],
            prompts,
            settings=settings,
            devices=options["device"],
            loading=loading,
            skip=run.is_there,
            finish=keep,
            progress=run.rows,
        )
        with contextlib.ExitStack() as stack:
            if not options["no_store"]:
                run.open(stack.enter_context(session.open()))
            stack.enter_context(contextlib.closing(results))
            records = run.take_all(results, len(prompts))
    if session.format != "table":
        import pandas as pd

        session.print(pd.DataFrame(records, columns=list(_COLUMNS), dtype=object))
    if any(record["status"] == _FAILED for record in records):
        click.get_current_context().exit(1)


def _targets(
    tokens: tuple[str, ...], difference: tuple[str, str] | None, features: tuple[str, ...]
) -> list[Any] | None:
    """Targets as the tracer takes them; None for the likeliest tokens."""
    if sum(map(bool, (tokens, difference, features))) > 1:
        raise click.UsageError("Give --target, --difference or --feature: a graph has one kind.")
    if difference:
        first, second = map(_token, difference)
        return [(first, second)]
    if features:
        return [f"feature/{feature.removeprefix('feature/')}" for feature in features]
    return [_token(token) for token in tokens] or None


def _token(text: str) -> str | int:
    number = text.removeprefix("id=")
    return int(number) if number != text and number.isascii() and number.isdigit() else text


def _prompts(texts: tuple[str, ...], file: str | None, limit: int | None) -> list[Prompt]:
    if bool(texts) == (file is not None):
        raise click.UsageError('Give prompts, as in: trace … "The capital of", or --prompts FILE.')
    if limit is not None and file is None:
        raise click.UsageError("--limit goes with --prompts FILE.")
    from tracer.prompts import Prompt, parse_prompts, read_prompts

    if file is None:
        return [Prompt(text) for text in texts]
    if file == "-":
        found = parse_prompts(sys.stdin.buffer.read(), "text", "standard input")
    else:
        found = read_prompts(file)
    return found[:limit]


@contextmanager
def _extra() -> Iterator[None]:
    """Name the extra to install where the tracer's own packages are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        from tracer.errors import TracingError

        raise TracingError(
            f"tracing needs the package {error.name}, which a plain install leaves out",
            "Install it with: pip install 'circuitbase[trace]'",
        ) from error


def _loading(options: dict[str, Any]) -> Loading:
    import torch

    from tracer.many import Loading

    return Loading(
        revision=options["revision"],
        transcoder_revision=options["transcoder_revision"],
        dtype=getattr(torch, options["dtype"]),
        layout=options["layout"],
        lazy=not options["in_memory"],
        check=not options["no_check"],
    )


@dataclass(frozen=True)
class _Keep:
    """What becomes of a graph in the process that traced it: its file, and the pruned graph."""

    folder: Path | None
    pruning: tuple[float, float, PruningRule] | None

    def __call__(self, graph: AttributionGraph) -> AttributionGraph:
        if self.folder is not None:
            from graphstore import write_graph

            write_graph(graph, self.folder / _file_name(graph.slug, graph.graph_id))
        return self.pruned(graph)

    def pruned(self, graph: AttributionGraph) -> AttributionGraph:
        from tracer.pruning import prune

        return graph if self.pruning is None else prune(graph, *self.pruning)

    def stored_id(self, graph_id: str) -> str:
        """Id that the store will have, of the id of a trace."""
        from tracer.pruning import pruned_identity

        return graph_id if self.pruning is None else pruned_identity(graph_id, *self.pruning)


def _file_name(slug: str, graph_id: str) -> str:
    """Name of an unpruned graph's file: for people first, and the id, by which it is found."""
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in slug).strip(".-")[:80]
    return f"{slug}-{graph_id}.circuit" if slug else f"{graph_id}.circuit"


class _Run:
    """One call of the command: what is there, and what has been done."""

    def __init__(self, session: Session, keep: _Keep, prompt_set: str | None) -> None:
        self.session, self.keep, self.prompt_set = session, keep, prompt_set
        self.store: Store | None = None
        self.bars: _Bars | None = None
        self.known: dict[str, dict[str, Any]] = {}  # by the id in the store
        self.files: dict[str, str] = {}  # names of files by the id of their graph
        self.read: set[str] = set()  # ids of traces that were taken from files
        self.records: list[dict[str, Any]] = []
        if keep.folder is not None:
            keep.folder.mkdir(parents=True, exist_ok=True)
            self.files = {path.stem[-16:]: path.name for path in keep.folder.glob("*.circuit")}

    def open(self, store: Store) -> None:
        """Put graphs into this store; see what it has."""
        self.store = store
        rows: list[dict[Any, Any]] = store.graphs().to_dict("records")
        self.known = {row["graph_id"]: row for row in rows}

    def take_all(self, results: Iterable[Traced], total: int) -> list[dict[str, Any]]:
        """Store results as they come; one record each."""
        start = time.monotonic()
        try:
            with _bars(total) as self.bars:
                for result in results:
                    self.records.append(self.take(result))
                    self.bars.next(result.status == "traced")
        finally:
            self.summarise(total, time.monotonic() - start)
        return self.records

    def rows(self, prompt: Prompt, done: int, total: int) -> None:
        """Show how much of a prompt is done."""
        if self.bars is not None:
            self.bars.rows(prompt, done, total)

    def is_there(self, graph_id: str) -> bool:
        """Whether a prompt need not be traced; what a file has and the store has not, it gets."""
        stored_id = self.keep.stored_id(graph_id)
        is_stored = self.store is None or stored_id in self.known
        if self.keep.folder is None:
            return is_stored
        if graph_id not in self.files:
            return False
        return is_stored or self.take_from_file(graph_id)

    def take_from_file(self, graph_id: str) -> bool:
        """Store a graph that only lies in a file; False, and a word, if the file is damaged."""
        from graphstore import read_graph
        from tracer.errors import FormatError

        if self.keep.folder is None:
            return False
        path = self.keep.folder / self.files[graph_id]
        try:
            graph = read_graph(path)
        except FormatError as error:
            self.session.say(f"warning: {error.what}; the prompt is traced again")
            return False
        if graph.graph_id != graph_id:
            return False
        self.write(self.keep.pruned(graph))
        self.read.add(graph_id)
        return True

    def write(self, graph: AttributionGraph) -> None:
        """Put a graph into the store, where there is one."""
        if self.store is not None:
            self.store.write(graph, prompt_set=self.prompt_set)
        self.known[graph.graph_id] = {
            "slug": graph.slug,
            "nodes": graph.n_nodes,
            "edges": graph.n_edges,
        }

    def include(self, graph_id: str, result: Traced) -> None:
        """Add a graph that is stored already to the set, and to it what its prompt says anew."""
        if self.store is None:
            return
        from graphstore.metadata import add_metadata

        if self.prompt_set is not None:
            self.store.include(graph_id, self.prompt_set)
        if differ := add_metadata(self.store, graph_id, result.source):
            named = ", ".join(differ)
            self.session.say(
                f"warning: {result.prompt}: its graph is stored with another {named}, which stays"
            )

    def take(self, result: Traced) -> dict[str, Any]:
        """Store a result and tell of it."""
        from circuitbase._text import visible

        prompt = result.prompt
        record: dict[str, Any] = dict.fromkeys(_COLUMNS)
        record |= {
            "prompt": prompt.prompt if isinstance(prompt.prompt, str) else list(prompt.prompt),
            "prompt_id": prompt.id or None,
            "slug": prompt.name,
            "seconds": round(result.seconds, 3),
        }
        if result.error is not None:
            text = " ".join(str(result.error).split()).removeprefix(f"{prompt.where}: ")
            self.session.say(f"error: {visible(str(prompt))}: {text}")
            return {**record, "status": _FAILED, "error": text}
        traced_id = result.graph_id or ""
        stored_id = self.keep.stored_id(traced_id)
        if result.graph is not None:
            self.write(result.graph)
            self.files[traced_id] = _file_name(result.graph.slug, traced_id)
            status = _TRACED
        else:
            self.include(stored_id, result)
            known = _KNOWN if self.store is not None else _WRITTEN
            status = _READ if traced_id in self.read else known
        row = self.known.get(stored_id, {})
        record |= {name: row.get(name, record[name]) for name in ("slug", "nodes", "edges")}
        record |= {"graph_id": stored_id, "status": status}
        if self.keep.folder is not None:
            record["file"] = str(self.keep.folder / self.files[traced_id])
        if self.session.format == "table":
            size = f"{row['nodes']:>7,} nodes {row['edges']:>9,} edges  " if row else ""
            self.session.tell(f"{stored_id}  {visible(record['slug']):<28} {size}{status}")
        return record

    def summarise(self, total: int, seconds: float) -> None:
        """Tell in one line what was done."""
        count = {
            status: sum(record["status"] == status for record in self.records)
            for status in (_TRACED, _READ, _KNOWN, _WRITTEN, _FAILED)
        }
        said = [f"{n} {status}" for status, n in count.items() if n or status == _TRACED]
        self.session.say(f"{', '.join(said)}; {seconds:.1f} s")
        if len(self.records) < total:
            left = total - len(self.records)
            self.session.say(
                f"stopped with {left} of {total} prompts left; what is finished is kept, and the "
                "same command goes on from there"
            )


# Progress ----------------------------------------------------------------------------------------


class _Bars:
    """Progress of a run, where nobody looks: nothing."""

    def rows(self, prompt: Prompt, done: int, total: int) -> None:
        """Tell how many rows of a prompt are done."""

    def next(self, traced: bool) -> None:
        """Tell that a prompt is finished."""


class _RichBars(_Bars):
    """Two bars: prompts, with rate and time left, and the rows of the prompt in work."""

    def __init__(self, progress: Any, total: int) -> None:
        self.progress = progress
        self.left, self.traced, self.start = total, 0, 0.0
        self.all = progress.add_task("prompts", total=total, rate="", left="")
        self.one = progress.add_task("loading", total=None, rate="", left="")

    def rows(self, prompt: Prompt, done: int, total: int) -> None:
        self.start = self.start or time.monotonic()
        self.progress.update(
            self.one, description=prompt.name[:24] or "rows", completed=done, total=total
        )

    def next(self, traced: bool) -> None:
        self.left -= 1
        self.traced += traced
        rate = left = ""
        if self.traced:  # what was there already took no time, and says nothing of the rest
            each = (time.monotonic() - self.start) / self.traced
            rate = f"{each:.2g} s each" if each > 1 else f"{1 / max(each, 1e-9):.1f} a second"
            minutes, seconds = divmod(round(each * self.left), 60)
            left = f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left"
        self.progress.update(self.all, advance=1, rate=rate, left=left)


@contextmanager
def _bars(total: int) -> Iterator[_Bars]:
    if not sys.stderr.isatty():
        yield _Bars()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        yield _RichBars(progress, total)
