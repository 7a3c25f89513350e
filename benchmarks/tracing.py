"""Measure the tracer side by side with circuit-tracer 0.5 and with two floors.

``python -m benchmarks.tracing --root bench-data --reference-python OTHER/bin/python``

The workload is made in ROOT if it is not there (1.9 GB). Each measurement is a process of its own,
and they take turns, so that what else the machine does falls on all of them. Progress goes to
standard error, tables to standard output. Without ``--reference-python`` the reference is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import as_markdown, as_text
from benchmarks.timing import machine, say
from benchmarks.tracing_process import read_answer, wait_for_quiet
from benchmarks.tracing_report import tables_of

REPOSITORY = Path(__file__).resolve().parents[1]
KINDS = ("clt", "plt")
BEST_BATCH = 16  # of the reference, on this workload
DEFAULTS = {"command line": 256, "Python": 512}
# What grows: (tokens, active features); the first is the workload itself.
SIZES = ((16, 2500), (16, 5000), (16, 10000), (64, 2500), (256, 2500))


def main() -> None:
    """Read the command line, measure, report."""
    given = _parser().parse_args()
    if not (given.root / "prompt.json").exists():
        _make(given)
    start = time.perf_counter()
    results: dict[str, Any] = {
        "command": "python -m benchmarks.tracing " + " ".join(_said(given)),
        "machine": machine(),
        "threads": given.threads,
        "limit": given.limit,
    }
    with tempfile.TemporaryDirectory(prefix="tracing-", dir=given.root) as scratch:
        results["kinds"] = {kind: compare(given, kind, Path(scratch)) for kind in given.kinds}
        results["growth"] = [] if given.no_growth else list(growth(given, Path(scratch)))
    results["versions"] = _versions()
    results["seconds"] = time.perf_counter() - start
    results["machine_after"] = machine()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    tables = tables_of(results)
    if given.markdown:
        given.markdown.write_text(as_markdown(tables))
    print(as_text(tables))


# The workload itself ------------------------------------------------------------------------------


def compare(given: argparse.Namespace, kind: str, scratch: Path) -> dict[str, Any]:
    """All figures of one kind of transcoder, in rounds that take turns."""
    ours, theirs = scratch / f"ours-{kind}.npz", scratch / f"theirs-{kind}.npz"
    case = Case(given, kind)
    found: dict[str, list[Any]] = {}
    for turn in range(given.repeats):
        first = turn == 0
        plan: list[tuple[str, Callable[[], Any]]] = [
            ("trace", partial(case.ours, "trace", ours if first else None))
        ]
        if given.reference_python:
            save = theirs if first else None
            plan.append(("reference", partial(case.reference, BEST_BATCH, save)))
        plan += [(what, partial(case.ours, what)) for what in ("parts", "walk", "products")]
        if first:
            plan.append(("pieces", partial(case.ours, "pieces")))
            for batch in given.defaults if given.reference_python else ():
                plan.append((f"reference-{batch}", partial(case.reference, batch)))
        plan.append(("trace", partial(case.ours, "trace")))
        for name, measure in plan if turn % 2 == 0 else plan[::-1]:
            found.setdefault(name, []).append(measure())
    return {"runs": found, "agreement": agreement(ours, theirs)}


def agreement(ours: Path, theirs: Path) -> dict[str, Any] | None:
    """How far two saved graphs are from each other; None where one is missing."""
    if not (ours.exists() and theirs.exists()):
        return None
    import numpy as np

    with np.load(ours) as a, np.load(theirs) as b:
        selected = b["selected_features"]
        features = b["active_features"][selected]
        found: dict[str, Any] = {
            "features": len(features),
            "same_features": np.array_equal(a["active_features"], features),
            "same_logits": np.array_equal(a["logit_tokens"], b["logit_tokens"]),
            "logits": len(b["logit_tokens"]),
        }
        if not (found["same_features"] and found["same_logits"]):
            return found
        wanted = b["adjacency"].astype(np.float64)
        off = np.abs(a["adjacency"] - wanted)
        activations = b["activations"]
        if len(activations) != len(selected):
            activations = activations[selected]
        return found | {
            "frobenius": float(np.linalg.norm(off) / np.linalg.norm(wanted)),
            "largest": float(off.max() / np.abs(wanted).max()),
            "activations": float(np.abs(a["activations"] - activations).max()),
            "probabilities": float(
                np.abs(a["logit_probabilities"] - b["logit_probabilities"]).max()
            ),
        }


# How cost grows -----------------------------------------------------------------------------------


def growth(given: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """Figures at more features and more tokens: thresholds are moved to get as many as wanted."""
    reached: dict[str, float] = {}
    for n_tokens, n_features in given.sizes:
        folder = scratch / f"{n_tokens}-{n_features}"
        folder.mkdir()
        prompt = _prompt(given.root, n_tokens, folder)
        multiplier = Case(given, "plt", prompt=prompt).scale(n_features, folder)
        for kind in given.kinds:
            case = Case(given, kind, folder / kind, prompt, multiplier)
            runs: dict[str, list[Any]] = {"trace": [], "walk": [], "products": [], "reference": []}
            for turn in range(given.growth_repeats):
                runs["trace"].append(case.ours("trace"))
                if turn == 0:
                    if given.reference_python and reached.get(kind, 0) < given.limit:
                        runs["reference"].append(case.reference(BEST_BATCH))
                        if runs["reference"][0] is None and n_tokens == given.sizes[0][0]:
                            reached[kind] = given.limit
                    runs["walk"].append(case.ours("walk"))
                    runs["products"].append(case.ours("products"))
            yield {"kind": kind, "tokens": n_tokens, "features": n_features, "runs": runs}


def _prompt(root: Path, n_tokens: int, folder: Path) -> Path:
    """The workload's own prompt, or one of random tokens after its first one."""
    own = root / "prompt.json"
    ids = json.loads(own.read_text())["input_ids"]
    if len(ids) == n_tokens:
        return own
    bos, chance = ids[0], random.Random(n_tokens)  # BOS is the last id of this vocabulary
    made = folder / "prompt.json"
    ids = [bos, *(chance.randrange(bos) for _ in range(n_tokens - 1))]
    made.write_text(json.dumps({"input_ids": ids}))
    return made


# Processes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One kind of transcoder and one prompt, measured by starting processes."""

    given: argparse.Namespace
    kind: str
    transcoder: Path | None = None
    prompt: Path | None = None
    multiplier: float = 1.0

    @property
    def common(self) -> list[str]:
        """Arguments that both sides take."""
        made = [str(self.given.root), "--kind", self.kind, "--threads", str(self.given.threads)]
        return [*made, "--prompt", str(self.prompt)] if self.prompt else made

    def ours(self, what: str, save: Path | None = None) -> dict[str, Any]:
        """One process of :mod:`benchmarks.tracing_ours`."""
        options = ["--save", str(save)] if save else []
        if self.transcoder:
            options += ["--transcoder", str(self.transcoder)]
        arguments = ["benchmarks.tracing_ours", what, *self.common, *options]
        found = self._run(sys.executable, arguments, None)
        if found is None:
            raise SystemExit(f"error: measuring {what} failed. The messages above say why.")
        self._say(what, found)
        return found

    def reference(self, batch: int, save: Path | None = None) -> dict[str, Any] | None:
        """One process of :mod:`benchmarks.reference_tracing`; None where it took too long."""
        options = ["--batch", str(batch), "--thr-mult", repr(self.multiplier)]
        options += ["--save", str(save)] if save else []
        arguments = ["benchmarks.reference_tracing", "run", *self.common, *options]
        found = self._run(str(self.given.reference_python), arguments, self.given.limit)
        self._say(f"circuit-tracer, batch {batch}", found)
        return found

    def scale(self, n_features: int, out: Path) -> float:
        """Write transcoders that let so many features through; what thresholds are times."""
        options = ["--features", str(n_features), "--out", str(out)]
        arguments = ["benchmarks.tracing_ours", "scale", *self.common, *options]
        found = self._run(sys.executable, arguments, None)
        if found is None:
            raise SystemExit("error: scaling thresholds failed. The messages above say why.")
        return float(found["multiplier"])

    def _run(self, python: str, arguments: list[str], limit: float | None) -> dict[str, Any] | None:
        environment = dict(os.environ, OMP_NUM_THREADS=str(self.given.threads))
        environment["MKL_NUM_THREADS"] = environment["OMP_NUM_THREADS"]
        environment["HF_HUB_OFFLINE"] = "1"
        command = [python, "-m", *arguments]
        spare = len(os.sched_getaffinity(0)) - self.given.threads  # cores that others may use
        wait_for_quiet(self.given.wait, max(0.5, spare - 0.5))
        try:
            done = subprocess.run(
                command,
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return None
        found = read_answer(done.stdout)
        if done.returncode or found is None:
            print(done.stderr, file=sys.stderr)
            raise SystemExit(f"error: {' '.join(arguments)} failed. The messages above say why.")
        return found

    def _say(self, what: str, found: dict[str, Any] | None) -> None:
        if found is None:
            say(f"{self.kind}, {what}: not done in {self.given.limit:g} s")
        elif "seconds" in found:
            others = f"{found['others']:.1f} other cores busy"
            say(f"{self.kind}, {what}: {found['seconds']:.2f} s, {others}")


def _make(given: argparse.Namespace) -> None:
    say(f"making the workload in {given.root}: about two minutes")
    command = [sys.executable, "-m", "benchmarks.reference_tracing", "make", str(given.root)]
    if subprocess.run(command, cwd=REPOSITORY, stdout=sys.stderr).returncode:
        raise SystemExit("error: making the workload failed. The messages above say why.")


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("torch", "transformers", "numpy", "scipy")
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in names}


# The command line ---------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=_absolute, required=True, help="folder of the workload")
    parser.add_argument(
        "--reference-python",
        type=_absolute,
        metavar="PYTHON",
        help="of an environment with circuit-tracer 0.5",
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="default 2")
    parser.add_argument(
        "--defaults",
        type=int,
        nargs="*",
        default=[DEFAULTS["command line"]],
        metavar="BATCH",
        help="other batch sizes of the reference, measured once (default 256, its command "
        "line's; its Python default is 512)",
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=_size,
        default=list(SIZES),
        metavar="TOKENS:FEATURES",
        help="how cost grows (default " + " ".join(f"{t}:{n}" for t, n in SIZES) + ")",
    )
    parser.add_argument("--growth-repeats", type=int, default=2, help="default 2")
    parser.add_argument("--no-growth", action="store_true", help="only the workload itself")
    parser.add_argument(
        "--limit", type=float, default=400, help="seconds a process of the reference may take"
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=0,
        metavar="SECONDS",
        help="before each measurement, wait so long until there are cores enough (default 0)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    return parser


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _size(text: str) -> tuple[int, int]:
    tokens, _, features = text.partition(":")
    return int(tokens), int(features)


def _said(given: argparse.Namespace) -> list[str]:
    """The command's options that change what is measured."""
    said = ["--root bench-data"]
    said += ["--reference-python PYTHON"] if given.reference_python else []
    said += [] if given.kinds == list(KINDS) else ["--kinds", *given.kinds]
    said += [f"--repeats {given.repeats}", f"--threads {given.threads}"]
    said += ["--defaults", *map(str, given.defaults)]
    said += ["--sizes", *(f"{t}:{n}" for t, n in given.sizes)] if given.sizes != list(SIZES) else []
    said += ["--no-growth"] if given.no_growth else []
    said += [f"--wait {given.wait:g}"] if given.wait else []
    return said


if __name__ == "__main__":
    main()
