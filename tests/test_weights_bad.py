"""Global weights: what is refused, and that nothing is lost by it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array

import tracer
from tracer import CorpusStatistics, FeatureSelection, GlobalInfluence, GlobalWeights
from tracer.errors import FormatError, SettingError, TracingError

GOLDEN = Path(__file__).parent / "data" / "golden"
DOCS = [[5, 9, 17, 33, 21], [7, 8, 40, 41, 42, 43], [3, 60, 61, 62]]
IDS = [(0, 1), (0, 5), (1, 3), (1, 7), (2, 2), (2, 30)]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    model = tracer.load_model(str(GOLDEN / "models" / "llama"), check=False)
    model.tokenizer = None
    return model, tracer.load_transcoder(GOLDEN / "transcoders" / "llama_plt_mlp")


@pytest.fixture(scope="module")
def statistics(pair: tuple[Any, Any]) -> CorpusStatistics:
    return tracer.corpus_statistics(*pair, DOCS, IDS, unit=6)


@pytest.fixture(scope="module")
def weights(pair: tuple[Any, Any], statistics: CorpusStatistics) -> GlobalWeights:
    return tracer.global_weights(*pair, statistics, top_k=None)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"features": [(0, 64)]}, SettingError, r"feature 0/64 does not exist"),
        ({"features": [(3, 0)]}, SettingError, r"feature 3/0 does not exist"),
        ({"features": [(0, -1)]}, SettingError, "does not exist"),
        ({"features": []}, SettingError, "no feature is chosen"),
        ({"features": [(0, "one")]}, SettingError, "pairs of layer and index"),
        ({"features": [(0, 1.5)]}, SettingError, "pairs of layer and index"),
        ({"features": pd.DataFrame({"layer": [1]})}, SettingError, "lacks layer or index"),
        ({"corpus": []}, TracingError, "corpus is empty"),
        ({"corpus": [[5], [7]]}, TracingError, "no token of the corpus is counted"),
        ({"corpus": "nowhere.txt"}, FormatError, "no such file"),
        ({"corpus": ["a text"]}, TracingError, "without a tokenizer"),
        ({"corpus": [[5, 10**6]]}, TracingError, "token id 1000000"),
        ({"corpus": [[5, -1]]}, TracingError, "token id -1"),
        ({"corpus": [[5, 1.5]]}, FormatError, "document 1: token_ids"),
        ({"corpus": [{"words": 1}]}, FormatError, "neither of text and token_ids"),
        ({"corpus": [7]}, FormatError, "document 1: is a int"),
        ({"corpus": 7}, SettingError, "the corpus is a int"),
        ({"corpus": {"train": DOCS}}, SettingError, "Give one of them: train"),
        ({"corpus": iter(DOCS), "features": None}, SettingError, "read only once"),
        ({"context": 1}, SettingError, "context is 1"),
        ({"context": 10**6}, SettingError, "context is 1000000"),
        ({"unit": 0}, SettingError, "unit is 0"),
        ({"batch": 0}, SettingError, "batch is 0"),
        ({"every": 0}, SettingError, "every is 0"),
        ({"bos": True}, SettingError, "no BOS to add"),
        ({"bos": 10**6}, SettingError, "bos is 1000000"),
        ({"zero_first": -1}, SettingError, "zero_first is -1"),
        ({"shard": (0, 2)}, SettingError, "shard is 0/2"),
        ({"shard": (3, 2)}, SettingError, "shard is 3/2"),
        ({"shard": (1, 2), "units": [1]}, SettingError, "both shard and units"),
        ({"norms": ["half"]}, SettingError, "norm 'half' is unknown"),
        ({"norms": []}, SettingError, "no convention"),
    ],
)
def test_bad_settings(
    pair: tuple[Any, Any], change: dict[str, Any], error: type[Exception], match: str
) -> None:
    given = {"corpus": DOCS, "features": IDS, **change}
    with pytest.raises(error, match=match):
        tracer.corpus_statistics(*pair, **given)


def test_a_transcoder_of_another_model_is_refused(pair: tuple[Any, Any]) -> None:
    class Other:
        n_layers, width = 7, 32

    with pytest.raises(TracingError, match="layers"):
        tracer.corpus_statistics(Other(), pair[1], DOCS, IDS)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"transcoder_id": "another"}, "statistics are of another transcoder"),
        ({"model_id": "another"}, "statistics are of another model"),
        ({"transcoder_fingerprint": "0" * 16}, "weights of the transcoder"),
        ({"model_fingerprint": "0" * 16}, "weights of the model"),
    ],
)
def test_statistics_of_something_else_are_refused(
    pair: tuple[Any, Any], statistics: CorpusStatistics, change: dict[str, str], match: str
) -> None:
    other = dataclasses.replace(statistics, identity={**statistics.identity, **change})
    with pytest.raises(SettingError, match=match):
        tracer.global_weights(*pair, other)
    with pytest.raises(SettingError, match="not of the same thing"):
        CorpusStatistics.merge([statistics, other])


def test_a_corpus_that_changed_is_not_counted_onto_its_own_sums(
    pair: tuple[Any, Any], tmp_path: Path
) -> None:
    file = tmp_path / "sums.npz"
    first = tracer.corpus_statistics(*pair, DOCS, IDS, unit=6, checkpoint=file)
    longer = [*DOCS, [4, 5, 6, 7, 8, 9]]
    with pytest.raises(SettingError, match="of this one before it changed"):
        tracer.corpus_statistics(*pair, longer, IDS, unit=6, checkpoint=file)
    assert CorpusStatistics.load(file).fingerprint() == first.fingerprint()
    again = tracer.corpus_statistics(*pair, DOCS, IDS, unit=6, checkpoint=file)
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"no zip at all", b"PK\x03\x04"])
def test_what_is_no_archive_is_not_called_a_pickle(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "sums.npz"
    file.write_bytes(content)
    for kind in (CorpusStatistics, GlobalWeights):
        with pytest.raises(FormatError, match=r"no whole \.npz file"):
            kind.load(file)


def test_shards_that_overlap_are_refused(
    pair: tuple[Any, Any], statistics: CorpusStatistics
) -> None:
    one, two = (tracer.corpus_statistics(*pair, DOCS, IDS, unit=6, shard=(i, 2)) for i in (1, 2))
    assert CorpusStatistics.merge([two, one]).fingerprint() == statistics.fingerprint()
    with pytest.raises(SettingError, match=r"in both statistics, the first from document 1 "):
        CorpusStatistics.merge([one, two, one])
    with pytest.raises(SettingError, match="in both statistics"):
        CorpusStatistics.merge([statistics, two])
    # The same documents in another corpus, too.
    longer = tracer.corpus_statistics(*pair, [*DOCS, [4, 5, 6, 7, 8, 9]], IDS, unit=6)
    with pytest.raises(SettingError, match="in both statistics"):
        CorpusStatistics.merge([statistics, longer])
    another = tracer.corpus_statistics(*pair, [[4, 5, 6, 7, 8, 9]], IDS, unit=6)
    both = CorpusStatistics.merge([another, statistics])
    assert both.tokens == statistics.tokens + 5
    assert both.corpus_id not in (another.corpus_id, statistics.corpus_id)
    with pytest.raises(SettingError, match="nothing to merge"):
        CorpusStatistics.merge([])
    with pytest.raises(SettingError, match="not of the same thing: counting"):
        CorpusStatistics.merge(
            [statistics, tracer.corpus_statistics(*pair, DOCS, IDS, unit=6, zero_first=2)]
        )
    with pytest.raises(SettingError, match="6 and 5 features"):
        CorpusStatistics.merge(
            [statistics, tracer.corpus_statistics(*pair, DOCS, IDS[:-1], unit=6)]
        )


def test_too_many_units_are_refused(
    pair: tuple[Any, Any], statistics: CorpusStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.weights.statistics.MOST_ADDITIONS", 1)
    monkeypatch.setattr("tracer.weights.collecting.MOST_ADDITIONS", 2)
    with pytest.raises(SettingError, match="more than 1 units"):
        CorpusStatistics.merge([statistics])
    with pytest.raises(SettingError, match="more than 2 units"):
        tracer.corpus_statistics(*pair, DOCS, IDS, unit=4)


def test_activations_that_are_not_finite_are_refused(pair: tuple[Any, Any], tmp_path: Path) -> None:
    model = tracer.load_model(str(GOLDEN / "models" / "llama"), check=False)
    with torch.no_grad():
        model.module.get_input_embeddings().weight[61] = float("inf")
    file = tmp_path / "sums.npz"
    with pytest.raises(
        TracingError, match=r"layer 0: an activation is not finite, .*document 3, position"
    ):
        tracer.corpus_statistics(
            model, pair[1], DOCS, IDS, unit=4, every=1, batch=1, checkpoint=file
        )
    kept = CorpusStatistics.load(file)  # what came before it is there
    assert kept.tokens == sum(len(doc) - 1 for doc in DOCS[:2])


def test_a_full_disk_loses_nothing(
    pair: tuple[Any, Any], statistics: CorpusStatistics, weights: GlobalWeights, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    for one, kind in ((statistics, CorpusStatistics), (weights, GlobalWeights)):
        file = one.save(tmp_path / "kept.npz")
        before = file.read_bytes()
        real = np.savez

        def full(target: Any, *args: Any, **kwargs: Any) -> None:
            target.write(b"some")
            raise OSError(28, "No space left on device")

        np.savez = full
        try:
            with pytest.raises(FormatError, match="No space left on device"):
                one.save(file)
        finally:
            np.savez = real
        assert file.read_bytes() == before
        assert kind.load(file)
        assert [path.name for path in tmp_path.iterdir()] == ["kept.npz"]
    with pytest.raises(FormatError, match="cannot be written"):
        statistics.save("/dev/null/nowhere/sums.npz")


@pytest.mark.parametrize("kind", [CorpusStatistics, GlobalWeights])
def test_damaged_files_are_refused(
    kind: Any, statistics: CorpusStatistics, weights: GlobalWeights, tmp_path: Path
) -> None:
    one: Any = statistics if kind is CorpusStatistics else weights
    other: Any = weights if kind is CorpusStatistics else statistics
    good = one.save(tmp_path / "good.npz").read_bytes()
    file = tmp_path / "bad.npz"
    with pytest.raises(FormatError, match="cannot be read"):
        kind.load(tmp_path / "none.npz")
    for content in (b"", b"PK\x03\x04", good[: len(good) // 2], b"\x93NUMPY", b"nothing here"):
        file.write_bytes(content)
        with pytest.raises(FormatError, match=r"bad\.npz"):
            kind.load(file)
    np.save(file.with_suffix(".npy"), np.arange(3))
    with pytest.raises(FormatError, match="bad"):
        kind.load(file.with_suffix(".npy"))
    with pytest.raises(FormatError, match="is no file of"):
        kind.load(other.save(tmp_path / "other.npz"))
    np.savez(file, header=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FormatError, match="bad"):  # a pickle is never opened
        kind.load(file)
    with np.load(tmp_path / "good.npz") as found:
        arrays = dict(found)
    header = json.loads(arrays["header"].tobytes())

    def change(name: str, value: Any = None, **more: Any) -> None:
        made = dict(arrays)
        if value is None:
            del made[name]
        else:
            made[name] = value
        text = json.dumps({**header, **more}).encode()
        made["header"] = np.frombuffer(text, dtype=np.uint8)
        np.savez(file, **made)

    change("layer" if kind is CorpusStatistics else "indices", None)
    with pytest.raises(FormatError, match="does not hold together"):
        kind.load(file)
    name = "pair_keys" if kind is CorpusStatistics else "indices"
    for wrong in (arrays[name][::-1].copy(), arrays[name] + 10**6, arrays[name][:-1]):
        change(name, wrong)
        with pytest.raises(FormatError, match="does not hold together"):
            kind.load(file)
    change(name, arrays[name], version=99)
    with pytest.raises(FormatError, match="is of version 99"):
        kind.load(file)
    if kind is GlobalWeights:
        change(name, arrays[name], corpus_id="0" * 16)
        with pytest.raises(FormatError, match="its id is"):
            kind.load(file)
    else:
        change("pair_high", np.full_like(arrays["pair_high"], np.nan))
        with pytest.raises(FormatError, match="not finite"):
            kind.load(file)


def changed(weights: GlobalWeights, name: str, **change: Any) -> GlobalWeights:
    matrix = getattr(weights, name)
    given = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, **change}
    shape = given.pop("shape", matrix.shape)
    made = csr_array((given["data"], given["indices"], given["indptr"]), shape=shape)
    return dataclasses.replace(weights, **{name: made})


def test_weights_must_hold_together(weights: GlobalWeights) -> None:
    assert dataclasses.replace(weights).weights_id == weights.weights_id
    data = weights.era.data.copy()
    data[1] = np.nan
    with pytest.raises(SettingError, match="era has an entry that is not finite"):
        changed(weights, "era", data=data)
    with pytest.raises(SettingError, match="stores other entries"):
        dataclasses.replace(weights, twera=csr_array(weights.twera.shape))
    with pytest.raises(SettingError, match="has shape"):
        dataclasses.replace(weights, weights=csr_array((2, 2)))
    with pytest.raises(SettingError, match="from a lower layer to a higher"):
        dataclasses.replace(weights, weights=csr_array(weights.weights.T))
    twice = weights.features.iloc[[0, 0, 2, 3, 4, 5]].reset_index(drop=True)
    with pytest.raises(SettingError, match="repeat or are out of order"):
        dataclasses.replace(weights, features=twice)
    with pytest.raises(SettingError, match="lack the column"):
        dataclasses.replace(weights, features=weights.features[["layer"]])
    with pytest.raises(SettingError, match="norm 'half'"):
        dataclasses.replace(weights, norm="half")
    with pytest.raises(SettingError, match="tokens is"):
        dataclasses.replace(weights, tokens=-1)
    short = GlobalInfluence("era", *[np.zeros(2)] * 4)
    with pytest.raises(SettingError, match="is not of 6 features"):
        weights.with_influence(short)
    with pytest.raises(SettingError, match="Did you mean"):
        weights.matrix("twear")


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        ([], "no target feature"),
        (["9/9"], "feature 9/9 is not among the 6"),
        (["nothing"], "is not among the 6"),
        ({"2/2": 0.0}, "weight of 2/2 is 0.0"),
        ({"2/2": float("nan")}, "is nan"),
        ([(2, 2), "2/2"], "given twice"),
    ],
)
def test_bad_targets(weights: GlobalWeights, targets: Any, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        tracer.global_influence(weights, targets)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"norm": "half"}, "norm 'half'"),
        ({"top_k": 0}, "top_k is 0"),
        ({"by": ("strength",)}, "measure 'strength'"),
        ({"by": ()}, "no measure"),
        ({"threshold": {"era": -1}}, "threshold of era is -1"),
        ({"threshold": float("nan")}, "threshold of weight is nan"),
    ],
)
def test_bad_cuts(
    pair: tuple[Any, Any], statistics: CorpusStatistics, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(SettingError, match=match):
        tracer.global_weights(*pair, statistics, **change)


def test_conventions_that_were_not_kept_are_refused(pair: tuple[Any, Any]) -> None:
    for kept, other in (("omitted", "folded"), ("folded", "omitted")):
        made = tracer.corpus_statistics(*pair, DOCS, IDS, norms=[kept])
        assert tracer.global_weights(*pair, made, kept).norm == kept
        with pytest.raises(SettingError, match=f"no sums of the {other} convention"):
            tracer.global_weights(*pair, made, other)


def test_choices_that_cannot_be_made() -> None:
    with pytest.raises(SettingError, match="holds no feature"):
        FeatureSelection.of_graphs([])
    with pytest.raises(SettingError, match="active is 0"):
        FeatureSelection.active(tracer.FeatureCounts([np.zeros(3, np.int64)], 1, "c"), 0)
    with pytest.raises(SettingError, match="sample of 0"):
        FeatureSelection.sample(None, 0)


def test_missing_packages_are_named(
    pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pyarrow", "datasets", "ray"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(FormatError, match=r"circuitbase\[parquet\]"):
        tracer.corpus_statistics(*pair, tmp_path / "c.parquet", IDS)
    with pytest.raises(FormatError, match="pip install datasets"):
        tracer.corpus_statistics(*pair, tmp_path, IDS)
    with pytest.raises(TracingError, match=r"circuitbase\[ray\]"):
        tracer.ray_statistics("m", "t", DOCS, FeatureSelection.of(IDS), shards=2)
    with pytest.raises(SettingError, match="shard is set for each shard"):
        tracer.ray_statistics("m", "t", DOCS, FeatureSelection.of(IDS), shards=2, shard=(1, 2))


def test_a_damaged_parquet_file_is_refused(pair: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(FormatError, match="cannot be read as Parquet"):
        tracer.corpus_statistics(*pair, tmp_path / "c.parquet", IDS)
