"""Corpus statistics with Ray: shards run wherever there are workers, and are merged here.

A worker that dies costs its shard since the last checkpoint, and nothing else: Ray starts the shard
again, and sums do not depend on where or how often they were begun.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from tracer.errors import CircuitError, SettingError, TracingError
from tracer.many import Loading
from tracer.models import load_model
from tracer.transcoders import load_transcoder
from tracer.weights.collecting import corpus_statistics
from tracer.weights.documents import CorpusLike
from tracer.weights.selection import FeatureSelection
from tracer.weights.statistics import CorpusStatistics

__all__ = ["ray_statistics"]

_OWN: Final = ("shard", "units", "checkpoint", "resume", "progress")


def ray_statistics(
    model: str,
    transcoder: str,
    corpus: CorpusLike,
    features: FeatureSelection,
    *,
    shards: int,
    loading: Loading | None = None,
    device: str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    retries: int = 3,
    resources: dict[str, float] | None = None,
    address: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> CorpusStatistics:
    """Collect corpus statistics on the workers of a Ray cluster.

    Parameters
    ----------
    model, transcoder
        Folders or hub ids, which every worker can load.
    corpus
        As in :func:`tracer.corpus_statistics`; a file must be there on every machine.
    features
        Chosen beforehand: all shards need the same.
    shards
        How many tasks. More than there are workers is well: a death costs less.
    loading
        How model and transcoder are loaded.
    device
        Of each worker.
    folder
        Where shards keep checkpoints, seen by all machines; None for none. Shards that are finished
        there are not run again.
    retries
        How often a shard is begun again after its worker died.
    resources
        What a task takes, such as ``{"num_cpus": 4, "num_gpus": 1}``.
    address
        Of the cluster; None for the one that is connected already, or one on this machine.
    progress
        Called with (shards done, shards).
    **settings
        As in :func:`tracer.corpus_statistics`.

    Returns
    -------
    CorpusStatistics
        Equal to those of one run.

    Raises
    ------
    TracingError
        If Ray is not installed, or a shard's workers died more often than `retries`.
    SettingError
        If a setting belongs to shards alone; as :func:`tracer.corpus_statistics`.
    """
    if shards < 1 or retries < 0:
        raise SettingError(f"{shards} shards, {retries} retries", "Give 1 shard or more")
    for name in _OWN:
        if name in settings:
            raise SettingError(f"{name} is set for each shard", "Leave it out")
    ray = _ray()
    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    task = ray.remote(max_retries=retries, **(resources or {"num_cpus": 1}))(_shard)
    shared = ray.put((corpus, features))
    how = (model, transcoder, loading or Loading(), device)
    waiting = {
        task.remote(how, shared, (number, shards), _file(folder, number, shards), settings): number
        for number in range(1, shards + 1)
    }
    found: list[CorpusStatistics] = []
    while waiting:
        done, _ = ray.wait(list(waiting))
        for one in done:
            number = waiting.pop(one)
            try:
                found.append(ray.get(one))
            except ray.exceptions.RayTaskError as error:
                for rest in waiting:
                    ray.cancel(rest)
                if isinstance(error.cause, CircuitError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayError as error:
                raise TracingError(
                    f"the worker of shard {number}/{shards} died {retries + 1} times "
                    f"({type(error).__name__})",
                    "Give each task more memory, or more shards; what is in folder is kept",
                ) from error
            if progress is not None:
                progress(len(found), shards)
    made = CorpusStatistics.merge(found)
    if not made.tokens:
        raise TracingError("no token of the corpus is counted", "Give more text")
    return made


def _shard(
    how: tuple[str, str, Loading, str],
    shared: tuple[CorpusLike, FeatureSelection],
    shard: tuple[int, int],
    file: Path | None,
    settings: dict[str, Any],
) -> CorpusStatistics:
    """Collect one shard, in a worker."""
    model, transcoder = _loaded(*how)
    corpus, features = shared
    return corpus_statistics(
        model, transcoder, corpus, features, shard=shard, checkpoint=file, **settings
    )


@lru_cache(maxsize=1)
def _loaded(model: str, transcoder: str, loading: Loading, device: str) -> tuple[Any, Any]:
    """Load once a worker."""
    import torch

    found = load_model(
        model, revision=loading.revision, dtype=loading.dtype, device=device, check=loading.check
    )
    wide = torch.float64 if loading.dtype == torch.float64 else torch.float32
    return found, load_transcoder(
        transcoder,
        revision=loading.transcoder_revision,
        dtype=wide,
        device=device,
        lazy=loading.lazy,
        layout=loading.layout,
    )


def _file(folder: str | os.PathLike[str] | None, number: int, shards: int) -> Path | None:
    return None if folder is None else Path(folder) / f"shard_{number}_of_{shards}.npz"


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ModuleNotFoundError as error:
        raise TracingError(
            "running shards on a cluster needs the package ray, which a plain install leaves out",
            "Install it with: pip install 'circuitbase[ray]', or run shards with --shard i/n",
        ) from error
    # Nothing here reports to anybody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return ray
