"""Who is taken for dead: a worker's name must not be mistaken for another's, alive or gone."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from graphstore import claims
from graphstore.claims import Claim, has_died

NAME = "import sys; from graphstore.claims import Claim; print(Claim(None, 'x').writer, flush=True)"


@pytest.fixture
def other():
    """Worker name of another process of this machine, and the process, which runs."""
    program = f"{NAME}; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield SimpleNamespace(name=process.stdout.readline().strip(), process=process)
        process.kill()


def with_part(name: str, place: int, value: str) -> str:
    """Replace one part of host/pid/start/machine/process-claim."""
    parts = name.split("/")
    assert len(parts) == 5
    parts[place] = value
    return "/".join(parts)


def test_another_process_is_alive_until_it_ends(other):
    assert not has_died(other.name)
    other.process.kill()
    other.process.wait()
    assert has_died(other.name)


def test_a_killed_process_that_nobody_waited_for_has_died(other):
    other.process.kill()
    os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{other.process.pid}").exists()
    assert has_died(other.name)


def test_a_pid_used_again_is_another_process(other):
    """The worker is gone; what has its number now began later."""
    start = int(other.name.split("/")[2])
    assert has_died(with_part(other.name, 2, str(start - 5)))


def test_a_container_with_the_same_host_name_and_pid_is_another_machine(other):
    """Only its heartbeat tells whether a process of another space of pids lives."""
    other.process.kill()
    other.process.wait()
    boot, _, space = other.name.split("/")[3].partition(":")
    assert not has_died(with_part(other.name, 3, f"{boot}:pid:[1]"))
    assert not has_died(with_part(other.name, 3, f"00000000-0000:{space}"))
    assert not has_died(with_part(other.name, 0, "elsewhere"))


@pytest.mark.parametrize(
    "name",
    [None, "", "w", "gone", "vm/1/x", "{host}/999999999/abc", "{host}/999999999///x-y", "////-"],
)
def test_who_is_not_known_is_not_taken_for_dead(name):
    host = Claim(None, "x").writer.partition("/")[0]
    assert not has_died(name and name.format(host=host))


def test_where_the_system_tells_nothing_the_heartbeat_decides(other, monkeypatch):
    monkeypatch.setattr(claims, "_machine", lambda: "")
    other.process.kill()
    other.process.wait()
    assert not has_died(with_part(other.name, 3, ""))


def test_a_process_that_is_hidden_is_not_taken_for_dead(other, monkeypatch):
    """/proc may be mounted so that it shows only one's own processes."""
    monkeypatch.setattr(claims, "_stat", lambda pid: None)
    assert not has_died(other.name)


def test_own_claims_are_alive_while_they_are_held():
    with Claim(None, "x") as claim:
        assert not has_died(claim.writer)
    assert has_died(claim.writer)


def test_a_forked_process_is_not_its_parent():
    """In a process of its own: this one may have a Java runtime, which does not survive a fork."""
    program = """
        import os
        from graphstore.claims import Claim, has_died
        with Claim(None, "x") as mine:
            child = os.fork()
            if child == 0:
                same = Claim(None, "x").writer.rpartition("-")[0] == mine.writer.rpartition("-")[0]
                os._exit(2 * has_died(mine.writer) + same)
            raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)]).returncode == 0
