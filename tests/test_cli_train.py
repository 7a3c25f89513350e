"""`circuitbase train` and `evaluate`: from a text file to a saved and measured transcoder."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from circuitbase.cli import cli
from tracer.models import load_model
from tracer.training import TrainSettings
from tracer.transcoders import load_transcoder

FAST = ["--features", "40", "--k", "4", "--steps", "20", "--batch", "64"]


@pytest.fixture(autouse=True)
def two_threads():
    """Tests share the machine: more threads than free cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(data) -> str:
    return str(data / "golden/models/gpt2")


@pytest.fixture(scope="module")
def corpus(model, tmp_path_factory) -> str:
    """Lines of token ids with classes."""
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    draw, vocabulary = np.random.default_rng(0), load_model(model, check=False).vocab_size
    lines = []
    for _ in range(80):
        ids = draw.integers(0, vocabulary, size=draw.integers(4, 16)).tolist()
        classes = ["", *["word"] * (len(ids) - 2), "answer"]
        lines.append(json.dumps({"token_ids": ids, "classes": classes}))
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def folders(model, corpus, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("trained")
    made = [str(folder / kind) for kind in ("clt", "plt")]
    for kind, out in zip(("clt", "plt"), made, strict=True):
        done = run("train", "-m", model, "--corpus", corpus, "--out", out, "--kind", kind, *FAST)
        assert done.exit_code == 0, done.output
    return made


def run(*words, **how):
    """Run a command in this process; an exception that escapes it fails the test."""
    return CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False, **how)


def test_train_and_say_so(model, corpus, tmp_path) -> None:
    out = tmp_path / "clt"
    mix = ["--mix", "answer=0.5", "--mix", "word=0.5"]
    done = run(
        "train", "-m", model, "--corpus", corpus, "--out", out, *FAST, *mix, "--format", "json"
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["layer"] for row in rows] == [0, 1, 2, "held out"]
    assert all(0 <= row["l0"] <= 40 for row in rows)
    assert "80 sequences" in done.stderr
    assert f"next: circuitbase evaluate -m {model} -t {out}" in done.stderr
    assert (out / "training/metrics.csv").exists()
    found = load_transcoder(out)
    assert (found.kind, found.n_features) == ("clt", 40)
    again = run("train", "-m", model, "--corpus", corpus, "--out", out, *FAST, *mix)
    assert again.exit_code == 0
    other = run("train", "-m", model, "--corpus", corpus, "--out", out, *FAST, "--seed", "4", *mix)
    assert other.exit_code == 1
    assert "seed was 0 and is 4" in other.stderr
    assert "--fresh" in other.stderr
    assert (
        run(
            "train", "-m", model, "--corpus", corpus, "--out", out, *FAST, "--seed", "4", "--fresh"
        ).exit_code
        == 0
    )


def test_every_setting_can_be_given(model, corpus, tmp_path) -> None:
    done = run(
        *("train", "-m", model, "--corpus", corpus, "--out", tmp_path / "x", *FAST),
        *("--kind", "plt", "--skip", "--activation", "jumprelu", "--sparsity", "0.5"),
        *("--read", "mlp.hook_in", "--write", "hook_mlp_out", "--save-dtype", "float16"),
        *("--setting", "betas=0.8,0.99", "--setting", "clip=2", "--setting", "log-every=5"),
        *("--cache", tmp_path / "cache", "--context", "8"),
    )
    assert done.exit_code == 0, done.output
    found = load_transcoder(tmp_path / "x")
    assert (found.kind, found.has_skip, found.read_hook) == ("plt", True, "mlp.hook_in")
    assert list((tmp_path / "cache").glob("block_*.safetensors"))
    config = (tmp_path / "x/config.yaml").read_text()
    assert "clip: 2" in config
    assert "log_every: 5" in config


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--setting", "dead_afer=2"], 1, 'Did you mean "dead_after"'),
        (["--setting", "features=2"], 2, "option of its own: --features"),
        (["--setting", "clip"], 2, "Give NAME=VALUE"),
        (["--setting", "clip=high"], 1, "error: "),
        (["--mix", "answr=1"], 1, 'Did you mean "answer"'),
        (["--skip"], 1, "affine skip"),
        (["--batch", "100000"], 1, "Give a larger corpus, or a smaller batch"),
        (["--read", "hook_resid"], 1, 'Did you mean "hook_resid_mid"'),
    ],
)
def test_wrong_options(model, corpus, tmp_path, words, status, says) -> None:
    done = run("train", "-m", model, "--corpus", corpus, "--out", tmp_path / "x", *FAST, *words)
    assert done.exit_code == status, done.output
    assert says in done.stderr
    if status == 1:
        assert done.stderr.splitlines()[-1].startswith("error: ")


def test_no_corpus(model, tmp_path) -> None:
    done = run("train", "-m", model, "--corpus", tmp_path / "none", "--out", tmp_path / "x")
    assert done.exit_code == 1
    assert "No such file" in done.stderr


def test_evaluate_side_by_side(model, corpus, folders) -> None:
    words = ["evaluate", "-m", model, "--corpus", corpus, "--tokens", "200"]
    for folder in folders:
        words += ["-t", folder]
    done = run(*words, "--prompts", "2")
    assert done.exit_code == 0, done.output
    for figure in ("explained variance", "top-1 kept", "mean path length", "completeness"):
        assert figure in done.stdout
    assert "clt-" in done.stdout
    assert "plt-" in done.stdout
    assert "explained_answer" in done.stdout
    rows = json.loads(run(*words, "--format", "json").stdout)
    totals = [row for row in rows if row["layer"] is None]
    assert [row["kind"] for row in totals] == ["clt", "plt"]
    assert all(0 <= row["top1"] <= 1 and row["kl"] >= 0 for row in totals)
    assert all(row["replacement"] is None for row in totals)
    assert "kl_answer" in totals[0]
    assert len(rows) == 2 + 2 * 3


def test_evaluate_a_published_layout(model, corpus, data) -> None:
    folder = data / "golden/transcoders/gpt2_plt_ln2"
    done = run("evaluate", "-m", model, "-t", folder, "--corpus", corpus, "--tokens", "100")
    assert done.exit_code == 0, done.output


def test_help_names_real_settings() -> None:
    for command in ("train", "evaluate"):
        done = run(command, "--help")
        assert done.exit_code == 0
        assert "For example:" in done.stdout
    defaults = TrainSettings()
    text = run("train", "--help").stdout
    for name in ("features", "steps", "batch", "k"):
        assert f"{getattr(defaults, name):g}" in text.replace(",", "")


def program(*words: str) -> list[str]:
    return [sys.executable, "-m", "circuitbase", *words]


def test_killed_and_started_again(model, corpus, tmp_path) -> None:
    """A process killed in the middle goes on, and gives what an undisturbed one gives."""
    common = ["train", "-m", model, "--corpus", corpus, *FAST[:4], "--batch", "64"]
    common += [
        "--steps",
        "160",
        "--setting",
        "checkpoint_every=20",
        "--setting",
        "evaluate_every=0",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    killed = subprocess.Popen(
        program(*common, "--out", str(tmp_path / "a")), env=environment, stderr=subprocess.DEVNULL
    )
    state = tmp_path / "a/training/state.json"
    for _ in range(600):
        if state.exists():
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not json.loads(state.read_text())["finished"], "it was over before it was killed"
    for name in ("a", "b"):
        subprocess.run(
            program(*common, "--out", str(tmp_path / name)),
            env=environment,
            check=True,
            capture_output=True,
        )
    for path in sorted((tmp_path / "a").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_live_table_on_a_terminal(model, corpus, tmp_path) -> None:
    """On a terminal a table is drawn again and again, and none of it reaches standard output."""
    primary, secondary = pty.openpty()
    words = program(
        *("train", "-m", model, "--corpus", corpus, "--out", str(tmp_path / "x"), *FAST),
        *("--setting", "log_every=5", "--format", "json"),
    )
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=secondary, env=environment, text=True
    )
    os.close(secondary)
    seen = b""
    while True:
        try:
            part = os.read(primary, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    text = seen.decode("utf-8", "replace")
    assert "tokens/s" in text
    assert "explained" in text
    assert len(json.loads(out)) == 4


def test_a_folder_in_the_way(model, corpus, tmp_path) -> None:
    Path(tmp_path / "x").write_text("a file")
    done = run("train", "-m", model, "--corpus", corpus, "--out", tmp_path / "x", *FAST)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
