"""Tracing many prompts: one after another, or side by side with a process for each device.

What a graph will be called is known before it is traced, so prompts whose graphs exist already cost
a look at their tokens: names of models are read without their weights until a prompt needs them.
Each result is handed over when it is finished. A prompt that cannot be traced is a result, too, and
the others go on; whatever stops a run (Ctrl-C, a kill) costs the prompts in work and nothing else.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import re
import signal
import time
import warnings
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Literal

import torch

from tracer.attribution.local import check_fit
from tracer.attribution.targets import describe_targets
from tracer.attribution.tracing import (
    TraceSettings,
    ran_out_of_memory,
    trace,
    trace_identity,
)
from tracer.errors import CircuitError, CircuitWarning, SettingError, TracingError
from tracer.graph import JSON, AttributionGraph
from tracer.models import Model, load_model, outline_model
from tracer.prompts import Prompt, as_prompt
from tracer.roles import prompt_facts
from tracer.transcoders import Transcoder, load_transcoder

__all__ = ["Loading", "Traced", "find_devices", "trace_many"]

Name = str | os.PathLike[str]
Skip = Callable[[str], bool]
Finish = Callable[[AttributionGraph], AttributionGraph]
RowProgress = Callable[[Prompt, int, int], None]

_DEVICE: Final = re.compile(r"cpu|cuda(?::(\d{1,4}))?")
_TELL_EVERY = 0.2  # seconds between a worker's words on how far it is


@dataclass(frozen=True)
class Loading:
    """How a model and a transcoder that are given by name are loaded.

    Attributes
    ----------
    revision, transcoder_revision
        Branch, tag or commit on the hub.
    dtype
        Of the model. The transcoder computes in float64 if that is asked for, else in float32, in
        which narrower weights are exact.
    layout
        Of the transcoder's files, where they do not tell.
    lazy
        Whether the transcoder stays on disk and is read in the parts that a prompt needs; without
        it it must fit into the device's memory, and prompts take less time.
    check
        Whether the freeze of the model is proved when it is loaded.
    """

    revision: str | None = None
    transcoder_revision: str | None = None
    dtype: torch.dtype = torch.float32
    layout: str | None = None
    lazy: bool = True
    check: bool = True


@dataclass(frozen=True)
class Traced:
    """What became of one prompt.

    Attributes
    ----------
    prompt
        The prompt, with its id and metadata.
    place
        Its place among the prompts given, from 0.
    graph_id
        Id of its unpruned graph; None if it could not even be tokenized.
    graph
        The graph, or what `finish` made of it; None unless it was traced.
    error
        Why it could not be traced; None otherwise.
    seconds
        How long it took.
    source
        What is known of the prompt, as its graph's ``source`` holds it: ``prompt_id``,
        ``metadata``, ``roles`` (positions), ``answer_tokens``. There for a skipped prompt, too.
    """

    prompt: Prompt
    place: int
    graph_id: str | None
    graph: AttributionGraph | None = None
    error: CircuitError | None = None
    seconds: float = 0.0
    source: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def status(self) -> Literal["traced", "skipped", "failed"]:
        """``traced``, ``skipped`` (it is there already) or ``failed``."""
        if self.error is not None:
            return "failed"
        return "skipped" if self.graph is None else "traced"


def trace_many(
    model: Model | Name,
    transcoder: Transcoder | Name,
    prompts: Iterable[Prompt | str | Sequence[int]],
    *,
    settings: TraceSettings | None = None,
    devices: str | Sequence[str] | None = None,
    loading: Loading | None = None,
    skip: Skip | Collection[str] = (),
    finish: Finish | None = None,
    progress: RowProgress | None = None,
    **changes: Any,
) -> Generator[Traced, None, None]:
    """Trace prompts, each result as it is finished.

    Parameters
    ----------
    model, transcoder
        Both loaded, then everything runs here, on the model's device; or both names (folders or hub
        ids), loaded when the first prompt needs them, on each of `devices`.
    prompts
        Texts, token ids, or :class:`~tracer.prompts.Prompt` (:func:`~tracer.prompts.read_prompts`).
    settings
        See :class:`~tracer.attribution.tracing.TraceSettings`; its fields can also be given as
        keywords.
    devices
        For names: ``auto`` (all CUDA devices, else the CPU; the default), a device, or several,
        each of which gets a process of its own (spawned, so a script needs the usual
        ``if __name__ == "__main__"``). Results then come in the order in which they are finished.
    loading
        For names: how they are loaded.
    skip
        Ids of graphs that are not needed, or a function that tells; ids are those of unpruned
        graphs (:func:`~tracer.pruning.pruned_identity` follows from them). A prompt given twice is
        traced once.
    finish
        What is done with each graph where it was traced (so it must be picklable for several
        devices), such as pruning; the results hold what it returns.
    progress
        Called with a prompt, and how many of its rows are done and how many there are.

    Yields
    ------
    Traced
        One for every prompt. The graph's ``source`` holds the prompt's id as ``prompt_id``, its
        ``metadata``, and the positions of its ``roles``; its slug is the prompt's name.

    Raises
    ------
    TracingError, FormatError
        If the model or the transcoder cannot be loaded, or they do not fit each other. What is
        wrong with a prompt is in its result.
    SettingError
        If a setting is out of range or unknown, or targets are malformed or no tokens of the model.

    Examples
    --------
    ::

        done = {path.stem for path in folder.glob("*.circuit")}
        for result in tracer.trace_many("gpt2", "owner/clt", prompts, skip=done):
            if result.graph is not None:
                graphstore.write_graph(result.graph, folder / f"{result.graph_id}.circuit")
    """
    settings = (settings or TraceSettings()).changed(**changes)
    known = skip if callable(skip) else frozenset(skip).__contains__
    if isinstance(model, Model) and isinstance(transcoder, Transcoder):
        if devices is not None or loading is not None:
            raise SettingError(
                "devices and loading are for models and transcoders given by name",
                "Leave them out, or give both names",
            )
        _check(model, transcoder, settings)
        planned = _plans(prompts, model, transcoder, settings)
        task = _Task(_Names("", "", Loading()), settings, finish)
        return _one_by_one(planned, lambda: (model, transcoder), task, known, progress)
    if isinstance(model, Model) or isinstance(transcoder, Transcoder):
        raise SettingError(
            "of model and transcoder one is loaded and the other a name",
            "Load both, or give both names",
        )
    names = _Names(os.fspath(model), os.fspath(transcoder), loading or Loading())
    where = find_devices(devices)
    sketch = names.outline()
    _check(*sketch, settings)
    planned, task = _plans(prompts, *sketch, settings), _Task(names, settings, finish)
    if len(where) == 1:
        load = partial(names.load, where[0])
        return _one_by_one(planned, load, task, known, progress)
    return _side_by_side(planned, where, task, known, progress)


def _check(model: Model, transcoder: Transcoder, settings: TraceSettings) -> None:
    """Refuse once, before any prompt is tried, what would be wrong with every one of them."""
    check_fit(model, transcoder)
    describe_targets(settings.targets, model)


def find_devices(devices: str | Sequence[str] | None = None) -> list[str]:
    """Names of devices: of ``auto``, of names with commas between, or of a list.

    Examples
    --------
    >>> find_devices("cpu,cpu")
    ['cpu', 'cpu']
    """
    if devices is None or devices == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    names = devices.split(",") if isinstance(devices, str) else devices
    found = [str(name).strip() for name in names]
    if not found:
        raise SettingError("devices is an empty list", 'Give "auto", "cpu" or "cuda:0"')
    for name in found:
        match = _DEVICE.fullmatch(name)
        if match is None:
            raise SettingError(
                f"device {name!r} is unknown", 'Give "auto", "cpu" or "cuda:0", or several'
            )
        if name != "cpu" and int(match[1] or 0) >= torch.cuda.device_count():
            raise SettingError(
                f"device {name!r} is not one of this machine's",
                f"torch finds {torch.cuda.device_count()} CUDA devices; the CPU is cpu",
            )
    return found


@dataclass(frozen=True)
class _Names:
    """A model and a transcoder by name."""

    model: str
    transcoder: str
    how: Loading

    def outline(self) -> tuple[Model, Transcoder]:
        """Make what identities follow from: the model without weights, the transcoder unread."""
        how = self.how
        model = outline_model(self.model, revision=how.revision, dtype=how.dtype)
        return model, load_transcoder(
            self.transcoder,
            revision=how.transcoder_revision,
            dtype=self.transcoder_dtype,
            layout=how.layout,
        )

    @property
    def transcoder_dtype(self) -> torch.dtype:
        """Dtype that the transcoder computes in (:class:`Loading`); it enters graphs' ids."""
        return torch.float64 if self.how.dtype == torch.float64 else torch.float32

    def load(self, device: str) -> tuple[Model, Transcoder]:
        """Load both, onto a device."""
        how, short = self.how, False
        try:
            return (
                load_model(
                    self.model,
                    revision=how.revision,
                    dtype=how.dtype,
                    device=device,
                    check=how.check,
                ),
                load_transcoder(
                    self.transcoder,
                    revision=how.transcoder_revision,
                    dtype=self.transcoder_dtype,
                    device=device,
                    lazy=how.lazy,
                    layout=how.layout,
                ),
            )
        except (MemoryError, RuntimeError) as error:
            if not (short := ran_out_of_memory(error)):
                raise
        if short:
            _free()
        raise TracingError(
            f"memory ran out on {device} while {self.model} and {self.transcoder} were loaded",
            "Choose another device, bfloat16, or leave the transcoder on disk",
        )


@dataclass(frozen=True)
class _Task:
    """What is done to every prompt."""

    names: _Names
    settings: TraceSettings
    finish: Finish | None


@dataclass(frozen=True)
class _Plan:
    """A prompt that can be traced."""

    place: int
    prompt: Prompt
    ids: list[int]
    graph_id: str
    source: Mapping[str, JSON]

    def result(self, outcome: AttributionGraph | CircuitError | None, start: float) -> Traced:
        seconds = time.monotonic() - start
        if isinstance(outcome, CircuitError):
            return Traced(self.prompt, self.place, self.graph_id, error=outcome, seconds=seconds)
        return Traced(
            self.prompt, self.place, self.graph_id, outcome, seconds=seconds, source=self.source
        )

    def skipped(self) -> Traced:
        return Traced(self.prompt, self.place, self.graph_id, source=self.source)


def _plans(
    prompts: Iterable[Prompt | str | Sequence[int]],
    model: Model,
    transcoder: Transcoder,
    settings: TraceSettings,
) -> Iterator[_Plan | Traced]:
    """Identities of prompts, as they are asked for; or why one has none."""
    for place, given in enumerate(prompts):
        prompt = as_prompt(given)
        try:
            ids = model.tokenize(prompt.prompt)
            facts = prompt_facts(model, prompt.prompt, ids, prompt.metadata)
        except TracingError as error:
            if prompt.where:
                error = TracingError(f"{prompt.where}: {error.what}", error.remedy)
            yield Traced(prompt, place, None, error=_bare(error))
            continue
        told = {"prompt_id": prompt.id, "metadata": dict(prompt.metadata), **facts}
        source = {name: value for name, value in told.items() if value}
        yield _Plan(place, prompt, ids, trace_identity(model, transcoder, ids, settings), source)


def _one_by_one(
    plans: Iterator[_Plan | Traced],
    load: Callable[[], tuple[Model, Transcoder]],
    task: _Task,
    skip: Skip,
    progress: RowProgress | None,
) -> Generator[Traced, None, None]:
    """Trace in this process; nothing is loaded before a prompt needs it."""
    loaded: tuple[Model, Transcoder] | None = None
    done: set[str] = set()
    for plan in plans:
        if isinstance(plan, Traced):
            yield plan
        elif plan.graph_id in done or skip(plan.graph_id):
            yield plan.skipped()
        else:
            loaded = loaded or load()
            start = time.monotonic()
            told = None if progress is None else partial(progress, plan.prompt)
            outcome = _attempt(*loaded, plan, task, told)
            if isinstance(outcome, AttributionGraph):
                done.add(plan.graph_id)
            yield plan.result(outcome, start)
            del outcome  # not held while the next is traced


def _attempt(
    model: Model,
    transcoder: Transcoder,
    plan: _Plan,
    task: _Task,
    progress: Callable[[int, int], None] | None,
) -> AttributionGraph | CircuitError:
    """Graph of a prompt, or what is wrong with it."""
    prompt = plan.prompt
    try:
        graph = trace(
            model,
            transcoder,
            prompt.prompt,
            settings=task.settings,
            slug=prompt.name,
            source=plan.source,
            progress=progress,
        )
        if graph.graph_id != plan.graph_id:
            raise TracingError(
                f"the graph is {graph.graph_id}, which {plan.graph_id} was expected to be",
                "Did the files of the model or the transcoder change meanwhile? Run it again",
            )
        return graph if task.finish is None else task.finish(graph)
    except CircuitError as error:
        problem = _bare(error)
    except (MemoryError, RuntimeError) as error:
        # Tracing tells of it itself; this is `finish`, which may be anybody's.
        if not ran_out_of_memory(error):
            raise
        problem = TracingError(
            f"memory ran out while the graph of a prompt of {len(plan.ids)} tokens was finished",
            "Lower max_features, or shorten the prompt",
        )
    _free()
    return problem


def _bare(error: CircuitError) -> CircuitError:
    """Make an error let go of where it was raised: frames there hold what filled the memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _free() -> None:
    """Give back what a failed prompt held, so that the next one has it."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where there is no such device


# Side by side ------------------------------------------------------------------------------------


def _side_by_side(
    plans: Iterator[_Plan | Traced],
    devices: Sequence[str],
    task: _Task,
    skip: Skip,
    progress: RowProgress | None,
) -> Generator[Traced, None, None]:
    """Trace in a process for each device; each is started when there is a prompt for it."""
    workers: list[_Worker] = []
    idle = list(reversed(devices))
    done: set[str] = set()
    twins: dict[str, list[_Plan]] = {}  # of graphs in work: prompts that are the same
    finished: list[Traced] = []
    more = True
    try:
        while True:
            # First work for everybody, then results: whoever takes those may be slow.
            while more and (idle or any(worker.plan is None for worker in workers)):
                plan = next(plans, None)
                if plan is None:
                    more = False
                elif isinstance(plan, Traced):
                    yield plan
                elif plan.graph_id in twins:
                    twins[plan.graph_id].append(plan)
                elif plan.graph_id in done:
                    finished.append(plan.skipped())  # after the one that it equals
                elif skip(plan.graph_id):
                    yield plan.skipped()
                else:
                    twins[plan.graph_id] = []
                    free = [worker for worker in workers if worker.plan is None]
                    if not free:
                        free = [_Worker(task, idle.pop(), len(devices))]
                        workers += free
                    free[0].give(plan)
            yield from finished
            finished.clear()
            busy = {worker.connection: worker for worker in workers if worker.plan is not None}
            if not busy:
                if more:
                    continue
                return
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                plan = worker.plan
                outcome = worker.hear(progress)
                if plan is None or outcome is None:
                    continue
                if not worker.alive:
                    workers.remove(worker)
                    idle.append(worker.device)
                finished.append(plan.result(outcome, worker.start))
                for twin in twins.pop(plan.graph_id):
                    problem = outcome if isinstance(outcome, CircuitError) else None
                    finished.append(twin.result(problem, time.monotonic()))
                if isinstance(outcome, AttributionGraph):
                    done.add(plan.graph_id)
                del outcome
    finally:
        for worker in workers:
            worker.stop()


@dataclass
class _Worker:
    """A process on one device, seen from here."""

    task: _Task
    device: str
    of: int
    plan: _Plan | None = None
    start: float = 0.0
    ready: bool = False
    alive: bool = True
    connection: Connection[Any, Any] = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.of)
        self.process = context.Process(
            target=_work, args=(theirs, self.task, self.device, threads), daemon=True
        )
        self.process.start()
        theirs.close()  # so that its end is seen here

    def give(self, plan: _Plan) -> None:
        """Give it a prompt."""
        self.plan, self.start = plan, time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # heard of below
            self.connection.send(plan)

    def hear(self, progress: RowProgress | None) -> AttributionGraph | CircuitError | None:
        """Take one message; what became of the prompt, if it is that."""
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return self._died()
        if kind == "refused":
            raise content[0]
        if kind == "warning":
            warnings.warn(content[0], CircuitWarning, stacklevel=2)
        if kind == "ready":
            self.ready, self.start = True, time.monotonic()
        if kind == "rows" and progress is not None and self.plan is not None:
            progress(self.plan.prompt, *content)
        if kind != "outcome":
            return None
        self.plan = None
        outcome: AttributionGraph | CircuitError = content[0]
        return outcome

    def _died(self) -> CircuitError:
        self.process.join()
        code = self.process.exitcode or 0
        self.alive, self.plan = False, None
        if code >= 0:
            raise TracingError(
                f"the process on {self.device} ended with status {code}",
                "What it said stands above; report it if it is a traceback",
            )
        error = TracingError(
            f"the process on {self.device} was killed ({signal.Signals(-code).name})",
            "If nobody did, memory ran out: lower max_features or memory, use fewer devices, or "
            "shorten the prompt",
        )
        if not self.ready:
            raise error
        return error

    def stop(self) -> None:
        """End it, whatever it does."""
        self.connection.close()
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _work(connection: Connection[Any, Any], task: _Task, device: str, threads: int) -> None:
    """Trace what comes, until nothing comes any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started this
    if device == "cpu":
        torch.set_num_threads(threads)
    with (
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),  # it has gone
        warnings.catch_warnings(),
    ):
        warnings.showwarning = partial(_forward, connection)
        try:
            model, transcoder = task.names.load(device)
        except CircuitError as error:
            connection.send(("refused", _bare(error)))
            return
        connection.send(("ready",))
        last = 0.0

        def tell(done: int, total: int) -> None:
            nonlocal last
            if (now := time.monotonic()) - last >= _TELL_EVERY:
                last = now
                connection.send(("rows", done, total))

        while True:
            plan = connection.recv()
            connection.send(("outcome", _attempt(model, transcoder, plan, task, tell)))


def _forward(
    connection: Connection[Any, Any],
    message: Warning | str,
    category: type[Warning],
    *_: object,
    **__: object,
) -> None:
    """Tell whoever started this of a warning of ours; those of others are for developers."""
    if issubclass(category, CircuitWarning):
        connection.send(("warning", str(message)))
