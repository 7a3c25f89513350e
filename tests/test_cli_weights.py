"""`circuitbase weights` and `merge`: from a corpus to the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tracer
from circuitbase.cli import cli
from tracer import CorpusStatistics, GlobalWeights

GOLDEN = Path(__file__).parent / "data" / "golden"
MODEL = str(GOLDEN / "models" / "llama")
TRANSCODER = str(GOLDEN / "transcoders" / "llama_plt_mlp")
FAST = ["--unit", "20", "--top-k", "6"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    draw = np.random.default_rng(5)
    docs = [draw.integers(3, 90, size=n).tolist() for n in (9, 12, 5, 14, 8, 11)]
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in docs))
    return str(path)


def run(*words: str, store: Any = None) -> Any:
    where = [] if store is None else ["--store", str(store)]
    return CliRunner().invoke(cli, [*words, *where], catch_exceptions=True)


def weights(*words: str, store: Any = None) -> Any:
    return run("weights", "-m", MODEL, "-t", TRANSCODER, *FAST, *words, store=store)


def test_a_corpus_fills_the_store(corpus: str, embedded_server: Path, embedded_store: Any) -> None:
    where = embedded_server
    args = ["--corpus", corpus, "--active", "8", "--norm", "folded", "--target", "2/7"]
    args[-1] = "2/" + str(_common(corpus))
    done = weights(*args, store=where)
    assert done.exit_code == 0, done.stderr
    for said in ("features are chosen", "fire together", "stored", "lower bounds", "flagged:"):
        assert said in done.output
    again = weights(*args, "--format", "json", store=where)
    (row,) = json.loads(again.stdout)
    assert row["status"] == "already stored"
    assert "which stays" not in again.stderr
    other = weights(*args, "--influence-by", "era", store=where)
    assert f"{row['weights_id']} is stored with the influence by twera on " in other.stderr
    assert "which stays" in other.stderr
    kept = embedded_store.read_weights(row["weights_id"])
    assert kept.norm == "folded"
    assert kept.targets == [f"{row['transcoder_id']}/{args[-1]}"]
    assert kept.selection["asked"]["active"] == 8
    assert (kept.features["active"] >= 8).all()


def test_folding_is_refused_before_the_corpus_is_read(tmp_path: Path) -> None:
    done = run(
        *("weights", "-m", MODEL, "-t", str(GOLDEN / "transcoders" / "llama_pltskip_mlp")),
        *("--corpus", "none.txt", "--norm", "folded"),
        store=tmp_path / "store",
    )
    assert done.exit_code == 1
    assert "the folded convention does not hold" in done.stderr


def test_a_table_of_features_holds_whole_numbers(corpus: str, tmp_path: Path) -> None:
    table = tmp_path / "f.csv"
    table.write_text("layer,index\n0,1.5\n")
    done = weights("--corpus", corpus, "--features", str(table), store=tmp_path / "store")
    assert (done.exit_code, "a number is not whole" in done.stderr) == (1, True), done.stderr


def _common(corpus: str) -> int:
    """A feature of the last layer that is active often."""
    model, transcoder = tracer.load_model(MODEL, check=False), tracer.load_transcoder(TRANSCODER)
    return int(np.argmax(tracer.feature_counts(model, transcoder, corpus).counts[2]))


def test_features_of_graphs_in_the_store(
    corpus: str, embedded_server: Path, embedded_store: Any, tmp_path: Path
) -> None:
    model, transcoder = tracer.load_model(MODEL, check=False), tracer.load_transcoder(TRANSCODER)
    graph = tracer.prune(tracer.trace(model, transcoder, [5, 9, 33, 41], slug="one"), 0.95)
    embedded_store.write(graph, prompt_set="some")
    nodes = graph.nodes[graph.is_feature]
    wanted = set(zip(nodes["layer"], nodes["index"], strict=True))
    for words in (["--set", "some"], ["--graph", "one"]):
        out = tmp_path / "w.npz"
        done = weights(
            "--corpus", corpus, *words, "--no-store", "--out", str(out), store=embedded_server
        )
        assert done.exit_code == 0, done.stderr
        found = GlobalWeights.load(out).features
        assert set(zip(found["layer"], found["index"], strict=True)) == wanted
        assert found["reason"].str.startswith("in ").all()
    other = GOLDEN / "transcoders" / "qwen3_clt_mlp"
    done = run(
        *("weights", "-m", str(GOLDEN / "models" / "qwen3"), "-t", str(other)),
        *("--corpus", corpus, "--set", "some"),
        store=embedded_server,
    )
    assert done.exit_code == 1
    assert "features of the transcoder" in done.stderr


def test_shards_are_merged_and_used(corpus: str, tmp_path: Path) -> None:
    def path(name: str) -> str:
        return str(tmp_path / name)

    choose = ["--feature", "0/3", "--feature", "1/7", "--sample", "9", "--seed", "4"]
    whole = weights(
        "--corpus", corpus, *choose, "--sums", path("w.npz"), "--no-store", "--out", path("a.npz")
    )
    assert whole.exit_code == 0, whole.stderr
    for i in (1, 2, 3):
        done = weights(
            *("--corpus", corpus, "--features", path("w.npz")),
            *("--shard", f"{i}/3", "--sums", path(f"p{i}.npz")),
        )
        assert done.exit_code == 0, done.stderr
    shards = [path(f"p{i}.npz") for i in (3, 1, 2)]
    part = run("merge", *shards[:2], "--out", path("part.npz"))
    assert "still missing" in part.stderr
    done = run("merge", *shards, "--out", path("m.npz"))
    assert done.exit_code == 0, done.stderr
    sums = CorpusStatistics.load(path("w.npz"))
    assert CorpusStatistics.load(path("m.npz")).fingerprint() == sums.fingerprint()
    assert sums.fingerprint() in done.stderr
    done = weights("--sums", path("m.npz"), "--no-store", "--out", path("b.npz"))
    assert done.exit_code == 0, done.stderr
    one, two = (GlobalWeights.load(path(name)) for name in ("a.npz", "b.npz"))
    assert one.weights_id == two.weights_id
    np.testing.assert_array_equal(one.twera.toarray(), two.twera.toarray())
    twice = run("merge", path("m.npz"), shards[0], "--out", path("bad.npz"))
    assert twice.exit_code == 1
    assert "in both statistics" in twice.stderr
    assert not Path(path("bad.npz")).exists()
    # Sums that are there already are not made again, nor the choice of their features.
    again = weights("--corpus", corpus, *choose, "--sums", path("w.npz"), "--no-store")
    assert again.exit_code == 0
    assert sums.fingerprint() in again.stderr
    other = weights("--corpus", corpus, "--feature", "0/9", "--sums", path("w.npz"), "--no-store")
    assert other.exit_code == 1
    assert "of another run" in other.stderr
    fresh = weights(
        *("--corpus", corpus, "--feature", "0/9", "--feature", "2/9"),
        *("--sums", path("w.npz"), "--no-store", "--fresh"),
    )
    assert fresh.exit_code == 0


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ([], 2, "Give --corpus FILE, or --sums"),
        (["--sums", "none.npz"], 2, "is not there: give --corpus"),
        (["--corpus", "C", "--no-store"], 2, "--no-store needs --out or --sums"),
        (["--corpus", "C", "--shard", "1/2"], 2, "--shard needs --corpus FILE and --sums"),
        (["--corpus", "C", "--shard", "half", "--sums", "s"], 2, "--shard is I/N"),
        (["--corpus", "C", "--shard", "3/2", "--sums", "s"], 2, "from 1 to the second"),
        (["--corpus", "C", "--shard", "1/2", "--sums", "s", "--ray", "2"], 2, "leave out --shard"),
        (["--sums", "C", "--active", "3"], 2, "needs --corpus FILE again"),
        (["--corpus", "C", "--feature", "three"], 2, "--feature is LAYER/INDEX"),
        (["--corpus", "C", "--threshold", "x=1", "--feature", "0/1"], 2, "--threshold is of"),
        (["--corpus", "C", "--threshold", "era=x", "--feature", "0/1"], 2, "is no number"),
        # Refused before the corpus is looked at: a pass over it can take days.
        (["--corpus", "none.txt", "--threshold", "era=nan"], 1, "threshold of era is nan"),
        (["--corpus", "C", "--feature", "0/999"], 1, "feature 0/999 does not exist"),
        (["--corpus", "C", "--target", "five"], 2, "--target is LAYER/INDEX"),
        (["--corpus", "C", "--feature", "0/1", "--target", "2/5"], 1, "Add --feature 2/5"),
        (["--corpus", "C", "--features", "C"], 1, "is no table of features"),
        (["--corpus", "none.txt"], 1, "there is no such file"),
        (["--sums", "C"], 1, "cannot be read as circuitbase corpus statistics"),
        (["--corpus", "C", "--active", "9999"], 1, "no feature is chosen"),
    ],
)
def test_wrong_words(words: list[str], status: int, says: str, corpus: str, tmp_path: Path) -> None:
    words = [corpus if word == "C" else word for word in words]
    done = weights(*words, store=tmp_path / "store")
    assert (done.exit_code, says in done.stderr) == (status, True), done.stderr
    assert not (tmp_path / "store").exists()
