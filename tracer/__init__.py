"""Attribution graphs: tracing them, the object, its influence, pruning and scores.

Importing this package imports neither torch nor NumPy: each name below loads its file when it is
first used (PEP 562), so that a command which only asks for help starts at once. Torch is needed
for `load_model`, `load_transcoder`, and what traces with them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from tracer.errors import CircuitError, CircuitWarning

if TYPE_CHECKING:
    from tracer.attribution.heads import head_loadings
    from tracer.attribution.tracing import TraceSettings, trace, trace_identity
    from tracer.convert import from_networkx, from_pandas, to_networkx, to_pandas
    from tracer.corpora import Corpus, read_corpus
    from tracer.describing import describe_features
    from tracer.graph import AttributionGraph, Scores, Supernode
    from tracer.influence import (
        Flow,
        edge_scores,
        error_fraction,
        influence,
        influence_by_length,
        normalised,
        path_lengths,
    )
    from tracer.many import Loading, Traced, trace_many
    from tracer.models import Model, load_model
    from tracer.prompts import Prompt, read_prompts
    from tracer.pruning import prune, prune_masks, pruned_identity
    from tracer.reconstruction import reconstruction
    from tracer.scores import (
        all_scores,
        completeness_score,
        mean_path_length,
        replacement_score,
        scores,
    )
    from tracer.training import TrainSettings, evaluate, save_transcoder, train
    from tracer.transcoders import Transcoder, load_transcoder
    from tracer.weights.collecting import FeatureCounts, corpus_statistics, feature_counts
    from tracer.weights.influence import global_influence, interference
    from tracer.weights.scores import global_weights
    from tracer.weights.selection import FeatureSelection
    from tracer.weights.sharding import ray_statistics
    from tracer.weights.statistics import CorpusStatistics
    from tracer.weights.weights import GlobalInfluence, GlobalWeights

__all__ = [
    "AttributionGraph",
    "CircuitError",
    "CircuitWarning",
    "Corpus",
    "CorpusStatistics",
    "FeatureCounts",
    "FeatureSelection",
    "Flow",
    "GlobalInfluence",
    "GlobalWeights",
    "Loading",
    "Model",
    "Prompt",
    "Scores",
    "Supernode",
    "TraceSettings",
    "Traced",
    "TrainSettings",
    "Transcoder",
    "all_scores",
    "completeness_score",
    "corpus_statistics",
    "describe_features",
    "edge_scores",
    "error_fraction",
    "evaluate",
    "feature_counts",
    "from_networkx",
    "from_pandas",
    "global_influence",
    "global_weights",
    "head_loadings",
    "influence",
    "influence_by_length",
    "interference",
    "load_model",
    "load_transcoder",
    "mean_path_length",
    "normalised",
    "path_lengths",
    "prune",
    "prune_masks",
    "pruned_identity",
    "ray_statistics",
    "read_corpus",
    "read_prompts",
    "reconstruction",
    "replacement_score",
    "save_transcoder",
    "scores",
    "to_networkx",
    "to_pandas",
    "trace",
    "trace_identity",
    "trace_many",
    "train",
]

_FILES: Final = {
    "tracer.attribution.heads": ("head_loadings",),
    "tracer.attribution.tracing": ("TraceSettings", "trace", "trace_identity"),
    "tracer.convert": ("from_networkx", "from_pandas", "to_networkx", "to_pandas"),
    "tracer.graph": ("AttributionGraph", "Scores", "Supernode"),
    "tracer.influence": (
        "Flow",
        "edge_scores",
        "error_fraction",
        "influence",
        "influence_by_length",
        "normalised",
        "path_lengths",
    ),
    "tracer.many": ("Loading", "Traced", "trace_many"),
    "tracer.models": ("Model", "load_model"),
    "tracer.prompts": ("Prompt", "read_prompts"),
    "tracer.pruning": ("prune", "prune_masks", "pruned_identity"),
    "tracer.reconstruction": ("reconstruction",),
    "tracer.scores": (
        "all_scores",
        "completeness_score",
        "mean_path_length",
        "replacement_score",
        "scores",
    ),
    "tracer.corpora": ("Corpus", "read_corpus"),
    "tracer.describing": ("describe_features",),
    "tracer.training": ("TrainSettings", "evaluate", "save_transcoder", "train"),
    "tracer.transcoders": ("Transcoder", "load_transcoder"),
    "tracer.weights.collecting": ("FeatureCounts", "corpus_statistics", "feature_counts"),
    "tracer.weights.influence": ("global_influence", "interference"),
    "tracer.weights.scores": ("global_weights",),
    "tracer.weights.selection": ("FeatureSelection",),
    "tracer.weights.sharding": ("ray_statistics",),
    "tracer.weights.statistics": ("CorpusStatistics",),
    "tracer.weights.weights": ("GlobalInfluence", "GlobalWeights"),
}
_FILE_OF: Final = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_FILE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))


class _Package(ModuleType):
    """Package that keeps its functions apart from its files of the same name.

    Importing the file ``tracer.influence`` would otherwise put the file where users find the
    function ``tracer.influence`` (and ``scores`` likewise).
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _FILE_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
