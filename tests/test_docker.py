"""The files of docker/: the Docker-less server for real, the others by what they say."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import neo4j
import pytest
import yaml
from neo4j.exceptions import AuthError

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
SCRIPT = DOCKER / "neo4j.sh"
PASSWORD = """it's a "pässwörd" \\ $HOME"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="neo4j.sh is tested on Linux")


@dataclass
class Shell:
    """Runs neo4j.sh in an environment of its own, with homes and caches under one folder."""

    folder: Path
    path: str = field(default_factory=lambda: os.environ["PATH"])
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return Path(self.environment()["NEO4J_HOME"])

    def environment(self, **extra: str) -> dict[str, str]:
        return {
            "PATH": self.path,
            "HOME": os.environ.get("HOME", "/"),
            "NEO4J_HOME": str(self.folder / "home"),
            "CIRCUITBASE_CACHE": str(self.folder / "cache"),
            **self.env,
            **extra,
        }

    def __call__(self, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *args],
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def begin(self, *args: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPT), *args],
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def assert_error(result: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One line ``error: what. remedy`` and nothing to evaluate."""
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert re.match(r"error: .+\. .+", line), line
    for word in words:
        assert word in line


def program(folder: Path, name: str, text: str) -> Path:
    """Write a program that stands in for a real one."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def java_of(version: str) -> str:
    """Return a stand-in for Java: says its version; as neo4j-admin it prints what it was given."""
    return f"""
if [[ $1 == -XshowSettings:properties ]]; then
    echo "    java.home = /somewhere"
    echo "    java.specification.version = {version}"
    exit
fi
[[ " $* " != *AdminTool* ]] || {{ printf '<%s>' "$@"; exit; }}
echo "no server here"
exit 1"""


# Stands in for Maven: counts its runs, takes a while, and leaves what the script looks for.
MAVEN = """
echo run >>"${0%/*}/maven-runs"
for argument; do case $argument in -Dserver.directory=*) folder=${argument#*=} ;; esac; done
mkdir -p "$folder/lib" "$folder/META-INF/services"
touch "$folder/lib/some.jar"
sleep 0.5
[[ ! -e ${0%/*}/maven-fails ]] || exit 1
echo some.Main >"$folder/META-INF/services/org.neo4j.server.startup.EntryPoint"
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Give the script as a user has it."""
    return Shell(tmp_path)


@pytest.fixture
def bare(tmp_path: Path) -> Shell:
    """Give the script a PATH of basic tools only: no Java, no Maven, and none elsewhere either."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (
        *("bash", "cat", "chmod", "dirname", "env", "find", "flock", "grep", "head", "mkdir"),
        *("mktemp", "mv", "od", "rm", "sed", "setsid", "sleep", "sort", "tail", "touch", "tr"),
        "wc",
    ):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"{name} is not installed")
        (tools / name).symlink_to(found)
    return Shell(tmp_path, str(tools), {"CIRCUITBASE_JVM_DIR": str(tmp_path / "jvm")})


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [("--help",), ("-h",), ("start", "--help")])
def test_help_names_every_command_and_variable(shell, args):
    result = shell(*args)
    assert result.returncode == 0
    assert result.stderr == ""
    for word in ("start", "stop", "status", "admin", 'eval "$(docker/neo4j.sh start)"'):
        assert word in result.stdout
    text = SCRIPT.read_text(encoding="utf-8")
    read = set(re.findall(r"\$\{?((?:NEO4J|CIRCUITBASE|JAVA|HEAP)_[A-Z_]+)\b", text))
    assert read >= {"NEO4J_HOME", "NEO4J_PASSWORD", "JAVA_HOME"}
    for name in read:
        assert name in result.stdout, f"--help does not name {name}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), ["--help"]),
        (("restart",), ["restart", "--help"]),
        (("start", "now"), ["now", "--help"]),
        (("status", "-v"), ["-v", "--help"]),
        (("admin", "server", "start"), ["server start", "neo4j.sh start"]),
    ],
)
def test_wrong_usage_exits_2(shell, args, words):
    assert_error(shell(*args), 2, *words)
    assert not shell.home.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEO4J_VERSION", "4.4.30"),
        ("NEO4J_VERSION", "5.26"),
        ("NEO4J_VERSION", "5.26.30/../.."),
        ("NEO4J_VERSION", "2026.13.0"),
        ("NEO4J_HEAP", "lots"),
        ("NEO4J_PAGECACHE", "2gb"),
        ("NEO4J_TIMEOUT", "0"),
    ],
)
def test_wrong_settings_are_named(bare, name, value):
    assert_error(bare("start", **{name: value}), 1, name, value)
    assert not bare.home.exists()


# --- what a start needs ---------------------------------------------------------------------------


def test_no_java(bare):
    assert_error(bare("start"), 1, "no Java found", "17", "JAVA_HOME")


@pytest.mark.parametrize(
    ("version", "java", "needed"),
    [("5.26.30", "11", "17"), ("5.26.30", "1.8", "17"), ("2026.08.1", "17", "21")],
)
def test_java_too_old(bare, version, java, needed):
    program(bare.folder / "tools", "java", java_of(java))
    result = bare("start", NEO4J_VERSION=version)
    assert_error(result, 1, version, f"Java {needed}", f"found {java.removeprefix('1.')} (")


def test_java_too_old_elsewhere(bare):
    old = program(bare.folder / "jvm/java-11/bin", "java", java_of("11"))
    assert_error(bare("start"), 1, "Java 17", f"found 11 ({old})")


def test_java_home_comes_before_path_and_other_javas_last(bare):
    program(bare.folder / "tools", "mvn", MAVEN)
    program(bare.folder / "jvm/new/bin", "java", "echo new; exit 1")
    oldest = program(bare.folder / "jvm/zulu-21/bin", "java", java_of("21"))
    program(bare.folder / "jvm/other-25/bin", "java", java_of("25"))
    program(bare.folder / "tools", "java", java_of("17"))
    chosen = program(bare.folder / "mine/bin", "java", java_of("23"))

    def java_used(**extra: str) -> str:
        log = bare.folder / "trace"
        with log.open("w") as file:
            result = subprocess.run(
                ["bash", "-x", str(SCRIPT), "admin", "version"],
                env=bare.environment(**extra),
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                check=False,
            )
        assert result.returncode == 0, log.read_text()
        assert "<org.neo4j.cli.AdminTool><version>" in result.stdout
        return re.findall(r"^\++ exec (\S+/java) ", log.read_text(), re.MULTILINE)[-1]

    assert java_used() == str(bare.folder / "tools/java")
    assert java_used(JAVA_HOME=str(bare.folder / "mine")) == str(chosen)
    assert java_used(NEO4J_VERSION="2026.08.1") == str(oldest)
    result = bare("admin", "version", NEO4J_VERSION="2026.08.1", JAVA_HOME=str(bare.folder / "no"))
    assert result.returncode == 0
    assert "has no bin/java" in result.stderr


def test_no_maven(bare):
    program(bare.folder / "tools", "java", java_of("21"))
    assert_error(bare("start"), 1, "mvn", "Install Maven")


def test_failed_download_leaves_nothing_that_looks_complete(bare):
    program(bare.folder / "tools", "java", java_of("21"))
    program(bare.folder / "tools", "mvn", MAVEN)
    (bare.folder / "tools/maven-fails").touch()
    assert_error(bare("admin", "version"), 1, "Maven", "5.26.30")
    cached = bare.folder / "cache/neo4j/5.26.30"
    assert [file.name for file in cached.iterdir()] == [".lock"]

    # What a killed download leaves is swept away, and not taken for the whole.
    (cached / "partial.killed/lib").mkdir(parents=True)
    (cached / "server/lib").mkdir(parents=True)
    (cached / "server/lib/half.jar").touch()
    (bare.folder / "tools/maven-fails").unlink()
    assert bare("admin", "version").returncode == 0
    assert sorted(file.name for file in cached.iterdir()) == [".lock", "server"]
    assert [file.name for file in (cached / "server/lib").iterdir()] == ["some.jar"]


def test_two_starts_at_once_download_once(bare):
    program(bare.folder / "tools", "java", java_of("21"))
    program(bare.folder / "tools", "mvn", MAVEN)
    # Different homes, so that only the lock of the download keeps them apart.
    running = [
        bare.begin("admin", "version", NEO4J_HOME=str(bare.folder / f"home-{i}")) for i in range(4)
    ]
    for process in running:
        output, messages = process.communicate(timeout=60)
        assert process.returncode == 0, messages
        assert "<version>" in output
    assert (bare.folder / "tools/maven-runs").read_text().count("run") == 1


def test_admin_passes_arguments_and_settings_through(bare):
    java = java_of("21").replace("printf '<%s>' \"$@\"", 'env; printf "<%s>" "$@"')
    program(bare.folder / "tools", "java", java)
    program(bare.folder / "tools", "mvn", MAVEN)
    result = bare("admin", "database", "import", "full", "a b", "--nodes=x,y", HEAP_SIZE="300m")
    assert result.returncode == 0, result.stderr
    assert "<database><import><full><a b><--nodes=x,y>" in result.stdout
    assert "<-Xmx300m>" in result.stdout
    assert f"NEO4J_HOME={bare.home}" in result.stdout.splitlines()
    assert f"NEO4J_CONF={bare.home}/conf" in result.stdout.splitlines()
    assert (bare.home / "conf/neo4j.conf").is_file()


# --- home folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["start", "admin"])
def test_a_home_that_somebody_else_filled_is_left_alone(bare, command):
    conf = bare.home / "conf/neo4j.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text("server.default_listen_address=0.0.0.0\n")
    assert_error(bare(command), 1, str(bare.home), "NEO4J_HOME")
    assert conf.read_text() == "server.default_listen_address=0.0.0.0\n"
    assert [file.name for file in bare.home.iterdir()] == ["conf"]


def test_home_that_is_a_file(bare):
    bare.home.write_text("")
    assert_error(bare("start"), 1, "not a folder", "NEO4J_HOME")


def test_data_of_a_newer_release_is_refused(bare):
    (bare.home / "data").mkdir(parents=True)
    (bare.home / "circuitbase-neo4j").write_text("2026.08.1\n")
    assert_error(bare("start"), 1, "2026.08.1", "5.26.30", "NEO4J_VERSION")
    assert (bare.home / "circuitbase-neo4j").read_text() == "2026.08.1\n"


def test_stopped_and_never_started(shell):
    status = shell("status")
    assert (status.returncode, status.stdout, status.stderr) == (3, "stopped\n", "")
    stop = shell("stop")
    assert (stop.returncode, stop.stdout) == (0, "")
    assert not shell.home.exists()


@pytest.mark.parametrize("pid", ["alive", "gone", "", "no number"])
def test_stale_pid_file(shell, pid):
    """A pid file may outlive its server, and its number may be another program's by then."""
    (shell.home / "run").mkdir(parents=True)
    (shell.home / "circuitbase-neo4j").write_text("5.26.30\n")
    (shell.home / "run/bolt.port").write_text("23456\n")
    other = subprocess.Popen(["sleep", "60"])
    try:
        if pid == "gone":
            other.kill()
            other.wait()
        text = str(other.pid) if pid in ("alive", "gone") else pid
        (shell.home / "run/neo4j.pid").write_text(text + "\n")
        status = shell("status")
        assert (status.returncode, status.stdout) == (3, "stopped\n")
        assert shell("stop").returncode == 0
        assert list((shell.home / "run").iterdir()) == []
        if pid == "alive":
            assert other.poll() is None, "stop ended a program that is not ours"
    finally:
        other.kill()
        other.wait()


def test_server_that_ends_at_once_is_reported(bare):
    program(bare.folder / "tools", "java", java_of("21"))
    program(bare.folder / "tools", "mvn", MAVEN)
    result = bare("start")
    assert_error(result, 1, "ended while starting", str(bare.home / "logs"))
    assert "no server here" in result.stderr
    assert list((bare.home / "run").iterdir()) == []
    assert stat.S_IMODE((bare.home / "password").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("password", "word"), [("short", "too short"), ("two\nlines of it", "control character")]
)
def test_password_that_neo4j_would_not_take(bare, password, word):
    program(bare.folder / "tools", "java", java_of("21"))
    program(bare.folder / "tools", "mvn", MAVEN)
    result = bare("start", NEO4J_PASSWORD=password)
    assert_error(result, 1, "NEO4J_PASSWORD", word)
    assert not (bare.home / "password").exists()


# --- a real server --------------------------------------------------------------------------------


def java_major(java: Path) -> int:
    """Return the release of a Java, 0 of something that is none."""
    try:
        result = subprocess.run(
            [str(java), "-XshowSettings:properties", "-version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    found = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", result.stderr)
    return int(found[1]) if found else 0


@pytest.fixture(params=[("5.26.30", 17), ("2026.08.1", 21)], ids=lambda param: param[0])
def real(request, tmp_path: Path) -> Iterator[Shell]:
    """Give the script with a small server on a home of its own; downloads are shared."""
    version, needed = request.param
    javas = [Path(java) for java in [shutil.which("java")] if java]
    if "JAVA_HOME" in os.environ:
        javas.append(Path(os.environ["JAVA_HOME"]) / "bin/java")
    javas += sorted(Path("/usr/lib/jvm").glob("*/bin/java"))
    if not any(java_major(java) >= needed for java in javas):
        pytest.skip(f"Neo4j {version} needs Java {needed} or newer, and none is installed")
    cache = os.environ.get("CIRCUITBASE_CACHE", str(ROOT / ".cache"))
    if not (Path(cache) / "neo4j" / version / "server").is_dir() and not shutil.which("mvn"):
        pytest.skip(f"Neo4j {version} is not downloaded, and Maven is not installed")
    shell = Shell(
        tmp_path,
        env={
            "CIRCUITBASE_CACHE": cache,
            "NEO4J_HOME": str(tmp_path / "a hömé"),
            "NEO4J_VERSION": version,
            "NEO4J_HEAP": "512m",
            "NEO4J_PAGECACHE": "64m",
            **{name: os.environ[name] for name in ("JAVA_HOME",) if name in os.environ},
        },
    )
    yield shell
    shell("stop", NEO4J_TIMEOUT="30")


def exports(text: str) -> dict[str, str]:
    """Evaluate a start's output as a POSIX shell does, not only bash."""
    assert all(line.startswith("export NEO4J_") for line in text.splitlines()), text
    result = subprocess.run(
        ["sh", "-c", f"{text}\nenv -0"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
    )
    pairs = (entry.split("=", 1) for entry in result.stdout.decode().split("\0") if entry)
    return {name: value for name, value in pairs if name.startswith("NEO4J_")}


def listening(pid: int) -> set[str]:
    """Return the addresses on which a process listens, TCP and UDP, as ``address:port``."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found = re.match(r"socket:\[(\d+)\]", str(link.readlink()))
            if found:
                inodes.add(found[1])
    addresses = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        file = Path(f"/proc/net/{table}")
        if not file.exists():
            continue
        for line in file.read_text().splitlines()[1:]:
            columns = line.split()
            if columns[9] in inodes and (columns[3] == "0A" or table.startswith("udp")):
                address, port = columns[1].split(":")
                # Words of an address are stored with their bytes reversed.
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                addresses.add(f"{'.'.join(map(str, words[-1]))}:{int(port, 16)}")
    return addresses


@pytest.mark.neo4j
@pytest.mark.slow
def test_start_connect_status_stop(real):
    first = real.begin("start", NEO4J_PASSWORD=PASSWORD)
    second = real.begin("start", NEO4J_PASSWORD=PASSWORD)
    output, messages = first.communicate(timeout=300)
    assert first.returncode == 0, messages
    beside, messages = second.communicate(timeout=300)
    assert second.returncode == 0, messages
    assert beside == output, "two starts at once disagree"

    values = exports(output)
    assert sorted(values) == ["NEO4J_PASSWORD", "NEO4J_URI", "NEO4J_USERNAME"]
    assert re.fullmatch(r"bolt://127\.0\.0\.1:\d+", values["NEO4J_URI"])
    assert values["NEO4J_PASSWORD"] == PASSWORD
    assert stat.S_IMODE((real.home / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE(real.home.stat().st_mode) == 0o700
    auth = (values["NEO4J_USERNAME"], values["NEO4J_PASSWORD"])

    # neo4j:// too: the server must advertise the address on which it listens.
    for scheme in ("bolt", "neo4j"):
        uri = values["NEO4J_URI"].replace("bolt", scheme)
        with neo4j.GraphDatabase.driver(uri, auth=auth) as driver:
            records, _, _ = driver.execute_query(
                "CALL dbms.components() YIELD name, versions, edition "
                "WHERE name = 'Neo4j Kernel' RETURN versions[0] AS version, edition"
            )
            assert [tuple(record) for record in records] == [
                (real.env["NEO4J_VERSION"], "community")
            ]
    with neo4j.GraphDatabase.driver(values["NEO4J_URI"], auth=auth) as driver:
        driver.execute_query("CREATE (:Kept {value: 42})")
        check_settings(driver)
    with (
        neo4j.GraphDatabase.driver(values["NEO4J_URI"], auth=("neo4j", "wrong one")) as driver,
        pytest.raises(AuthError),
    ):
        driver.verify_connectivity()

    pid = int((real.home / "run/neo4j.pid").read_text())
    command_line = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    assert PASSWORD not in command_line
    assert listening(pid) == {values["NEO4J_URI"].removeprefix("bolt://")}

    again = real("start")
    assert (again.returncode, again.stdout) == (0, output)
    status = real("status")
    assert status.returncode == 0
    assert status.stdout.startswith(f"running {values['NEO4J_URI']} ")

    stop = real("stop")
    assert (stop.returncode, stop.stdout) == (0, "")
    assert not Path(f"/proc/{pid}").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    assert real("status").returncode == 3

    # The data and the password stay; another password is not taken up without a word.
    restarted = real("start", NEO4J_PASSWORD="another password")
    assert restarted.returncode == 0, restarted.stderr
    assert "NEO4J_PASSWORD is ignored" in restarted.stderr
    values = exports(restarted.stdout)
    with neo4j.GraphDatabase.driver(values["NEO4J_URI"], auth=auth) as driver:
        records, _, _ = driver.execute_query("MATCH (n:Kept) RETURN n.value AS value")
        assert [record["value"] for record in records] == [42]

    # A server that was killed leaves its pid file behind.
    pid = int((real.home / "run/neo4j.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while real("status").returncode == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (real.home / "run/neo4j.pid").exists()
    assert real("status").stdout == "stopped\n"
    revived = real("start")
    assert revived.returncode == 0, revived.stderr
    assert exports(revived.stdout)["NEO4J_PASSWORD"] == PASSWORD
    assert real("stop").returncode == 0


def check_settings(driver: neo4j.Driver) -> None:
    """Assert that the server has what compose.yaml sets, and reports to nobody."""
    records, _, _ = driver.execute_query("SHOW SETTINGS YIELD name, value")
    settings = {record["name"]: record["value"] for record in records}
    for name, value in compose_settings().items():
        assert name in settings, f"compose.yaml sets {name}, which Neo4j does not know"
        if not name.startswith("server.memory."):
            assert same_value(settings[name], value), f"{name}: {settings[name]}, {value}"
    assert settings["server.memory.heap.max_size"] == "512.00MiB"
    assert settings["server.config.strict_validation.enabled"] == "true"
    for name, value in settings.items():
        if name.startswith(("dbms.fleet_manager.enabled", "server.fleet_discovery.enabled")):
            assert value == "false", f"{name} is {value}"


def same_value(shown: str, written: str) -> bool:
    """Compare a setting as Neo4j shows it (128.00MiB) with how it was written (128m)."""
    size = re.fullmatch(r"(\d+)([kmg])", written)
    return shown == (f"{size[1]}.00{size[2].upper()}iB" if size else written)


@pytest.mark.neo4j
@pytest.mark.slow
def test_import_before_the_first_start(real):
    (real.folder / "nodes.csv").write_text(":ID,name,:LABEL\n1,a,N\n2,b,N\n")
    (real.folder / "edges.csv").write_text(":START_ID,:END_ID,:TYPE,weight:double\n1,2,R,0.5\n")
    imported = real(
        "admin",
        *("database", "import", "full", "neo4j", "--overwrite-destination"),
        f"--nodes={real.folder / 'nodes.csv'}",
        f"--relationships={real.folder / 'edges.csv'}",
        f"--report-file={real.folder / 'import.report'}",
    )
    assert imported.returncode == 0, imported.stderr
    started = real("start")
    assert started.returncode == 0, started.stderr
    values = exports(started.stdout)
    assert re.fullmatch(r"[0-9a-f]{32}", values["NEO4J_PASSWORD"])
    auth = (values["NEO4J_USERNAME"], values["NEO4J_PASSWORD"])
    with neo4j.GraphDatabase.driver(values["NEO4J_URI"], auth=auth) as driver:
        records, _, _ = driver.execute_query(
            "MATCH (a)-[r:R]->(b) RETURN a.name AS source, r.weight AS weight, b.name AS target"
        )
        assert [tuple(record) for record in records] == [("a", 0.5, "b")]


# --- pom.xml --------------------------------------------------------------------------------------


def test_pom_is_pinned_and_names_no_registry():
    tree = ElementTree.parse(DOCKER / "pom.xml")
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    assert tree.findtext("m:properties/m:neo4j.version", namespaces=space) == "5.26.30"
    plugins = tree.findall(".//m:plugin", space)
    assert plugins
    for plugin in plugins:
        version = plugin.findtext("m:version", namespaces=space)
        assert version is not None
        assert re.fullmatch(r"\d+(\.\d+)+", version)
    assert not tree.findall(".//m:repositories", space)
    text = (DOCKER / "pom.xml").read_text(encoding="utf-8")
    assert re.findall(r"https?://[^\s\"<]+", text) == [space["m"]]


def test_one_release_everywhere():
    """The default of the script, of the pom and of the compose file are one release."""
    script = SCRIPT.read_text(encoding="utf-8")
    assert "${NEO4J_VERSION:-5.26.30}" in script
    assert compose()["services"]["neo4j"]["image"] == "neo4j:5.26.30-community"


# --- compose.yaml ---------------------------------------------------------------------------------


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))


def compose_settings() -> dict[str, str]:
    """Return Neo4j's settings in the compose file, by their own names."""
    environment = compose()["services"]["neo4j"]["environment"]
    return {
        # The image reads _ as a point and __ as _.
        re.sub(r"_+", lambda run: {1: ".", 2: "_"}[len(run[0])], name.removeprefix("NEO4J_")): value
        for name, value in environment.items()
        if name != "NEO4J_AUTH"
    }


def test_compose_image_is_pinned():
    assert re.fullmatch(r"neo4j:5\.26\.\d+-community", compose()["services"]["neo4j"]["image"])


def test_compose_publishes_on_loopback_only():
    ports = compose()["services"]["neo4j"]["ports"]
    assert {port.rsplit(":", 1)[1] for port in ports} == {"7687", "7474"}
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{NEO4J_\w+_PORT:-\d+\}:\d+", port)
    assert "network_mode" not in compose()["services"]["neo4j"]


def test_compose_asks_for_a_password():
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    auth = compose()["services"]["neo4j"]["environment"]["NEO4J_AUTH"]
    assert re.fullmatch(r"neo4j/\$\{NEO4J_PASSWORD:\?[^}]+\}", auth)
    assert text.count("NEO4J_AUTH") == 1


def test_compose_keeps_data_and_checks_health():
    file = compose()
    service = file["services"]["neo4j"]
    volumes = dict(volume.split(":") for volume in service["volumes"])
    assert "/data" in volumes.values()
    assert set(volumes) == set(file["volumes"]), "a volume that is not a named one"
    check = service["healthcheck"]
    assert check["test"][0] == "CMD"
    assert check["test"][-1] == "http://127.0.0.1:7474"
    assert {"interval", "timeout", "retries", "start_period"} <= set(check)


def test_compose_bounds_the_transaction_logs_as_the_script_does():
    settings = compose_settings()
    assert settings["db.tx_log.rotation.retention_policy"] == "1 files"
    script = SCRIPT.read_text(encoding="utf-8")
    for name, value in settings.items():
        assert isinstance(value, str), f"{name} must be quoted"
        if name.startswith("server.memory."):
            assert re.search(rf"^{re.escape(name)}=\$", script, re.MULTILINE)
        else:
            assert f"\n{name}={value}\n" in script


# --- Dockerfile -----------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, continued lines joined, comments dropped."""
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def test_image_bases_are_pinned_and_alike():
    bases = {value.split()[0] for name, value in instructions() if name == "FROM"}
    assert len(bases) == 1, "the interpreter of the environment must be the one that runs it"
    assert re.fullmatch(r"python:3\.11\.\d+-slim(-\w+)?", bases.pop())


def test_image_runs_the_command_line_as_a_user():
    last_stage = instructions()
    while any(name == "FROM" for name, _ in last_stage):
        last_stage = last_stage[1:]
    names = [name for name, _ in last_stage]
    values = dict(last_stage)
    assert values["USER"] not in ("root", "0")
    assert f"useradd --create-home --uid 1000 {values['USER']}" in values["RUN"]
    assert values["ENTRYPOINT"] == '["circuitbase"]'
    assert "RUN" not in names[names.index("USER") :]


def test_image_copies_what_exists_and_what_the_context_holds():
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*", "an image is built from what is named, not from what lies around"
    allowed = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set()
    for name, value in instructions():
        if name == "COPY" and not value.startswith("--from"):
            copied |= {source.rstrip("/") for source in value.split()[:-1]}
    assert copied == allowed
    missing = sorted(source for source in copied if not (ROOT / source).exists())
    assert missing == []
    # No rule after the exceptions takes anything away but what Python makes.
    later = [rule for rule in rules if not rule.startswith("!")][1:]
    assert later == ["**/__pycache__", "**/*.pyc"]


def test_readme_names_only_what_exists():
    text = (DOCKER / "README.md").read_text(encoding="utf-8")
    for file in re.findall(r"\bdocker/[\w.]+", text):
        assert (ROOT / file).exists(), file
    known = SCRIPT.read_text(encoding="utf-8") + (DOCKER / "compose.yaml").read_text(
        encoding="utf-8"
    )
    for name in re.findall(r"NEO4J_[A-Z_]+\b", text):
        assert name in known, f"{name} is documented, but nothing reads it"
