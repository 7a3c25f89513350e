#!/usr/bin/env bash
# Neo4j Community without Docker: its jars from Maven, one server on loopback, one home folder.

set -euo pipefail
# Java reads file names and arguments in this encoding, whatever the user's language is.
{ export LC_ALL=C.UTF-8; } 2>/dev/null

usage() {
    cat <<'EOF'
Neo4j Community without Docker, on loopback, with a home folder of its own.

usage: docker/neo4j.sh start | stop | status | admin ARGUMENT... | --help

  start    start the server (if it is not running), wait until it answers, and print
           its address and password as shell lines:
               eval "$(docker/neo4j.sh start)"
  stop     stop it cleanly
  status   "running bolt://..." (exit status 0), "starting" or "stopped" (3)
  admin    neo4j-admin on the same home folder (stop the server first):
               docker/neo4j.sh admin database import full neo4j --nodes=...

Only the lines to evaluate go to standard output, everything else to standard error.
Exit status: 0 done, 1 a known error, 2 wrong usage, 3 (status) not running.

The first start of a version downloads it with Maven. A start writes conf/neo4j.conf anew
and takes a free port: evaluate its output again.

environment:
  NEO4J_VERSION    release to run: 5.26.x (default 5.26.30) needs Java 17,
                   calendar releases such as 2026.08.1 need Java 21
  NEO4J_HOME       home folder: data, logs, password (default: under the cache)
  NEO4J_PASSWORD   password to set at the first start (default: a random one)
  NEO4J_HEAP       memory of the server (default 1g)
  NEO4J_PAGECACHE  memory for the store's pages (default 512m)
  NEO4J_TIMEOUT    seconds to wait for a start or a stop (default 120)
  JAVA_HOME        Java to use; else java in PATH, else one under /usr/lib/jvm
  HEAP_SIZE, JAVA_OPTS
                   memory and Java options of admin
  CIRCUITBASE_CACHE
                   where servers are kept (default: .cache in the repository)
  CIRCUITBASE_JVM_DIR
                   where other Javas lie (default /usr/lib/jvm)
EOF
}

note() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
misuse() { printf 'error: %s\n' "$*" >&2; exit 2; }

# Run by EXIT, so that no way out leaves half a download or half a server behind.
launched=
scratch=
clean_up() {
    if [[ -n $launched ]]; then end "$launched" 10 && forget; fi
    if [[ -n $scratch ]]; then rm -rf -- "$scratch"; fi
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

readonly marker=circuitbase-neo4j
readonly entry_point=META-INF/services/org.neo4j.server.startup.EntryPoint

main() {
    local command=${1-}
    case $command in
        start | stop | status | admin) shift ;;
        -h | --help | help) usage; return ;;
        '') misuse "no command. Give start, stop, status or admin; --help explains them" ;;
        *) misuse "unknown command '$command'. Give start, stop, status or admin; --help explains them" ;;
    esac
    if [[ $command != admin && $# -gt 0 ]]; then
        case $1 in -h | --help) usage; return ;; esac
        misuse "$command takes no argument, got '$1'. --help lists what can be set"
    fi
    read_settings
    case $command in
        start) start ;;
        stop) stop ;;
        status) status ;;
        admin) admin "$@" ;;
    esac
}

start() {
    local pid
    adopt_home
    lock_home
    if pid=$(running_pid); then
        # This lock is held while a server starts, so that one is not just starting.
        bolt_answers "$(bolt_port)" || await "$pid" "$(bolt_port)" ||
            die "Neo4j (process $pid) runs but does not answer. Run '$0 stop', then start again; logs: $home/logs"
        [[ $(recorded_version) == "$version" ]] ||
            note "note: Neo4j $(recorded_version) is running here; stop it to start $version"
    else
        check_upgrade
        find_java
        fetch_server
        umask 077
        set_password
        echo "$version" >"$home/$marker"
        launch
        note "Neo4j $version is running (process $(<"$home/run/neo4j.pid")); home: $home"
    fi
    print_exports
}

stop() {
    local pid
    [[ -f $home/$marker ]] || { note "stopped (there was nothing to stop)"; return; }
    lock_home
    if ! pid=$(running_pid); then
        forget
        note "stopped (it was not running)"
        return
    fi
    end "$pid" "$timeout" ||
        die "process $pid cannot be ended. Look at it, and end it by hand: kill -KILL $pid"
    forget
    note "stopped"
}

status() {
    local pid
    if ! pid=$(running_pid); then
        echo stopped
        exit 3
    fi
    if ! bolt_answers "$(bolt_port)"; then
        echo "starting (process $pid does not answer yet)"
        exit 3
    fi
    echo "running bolt://127.0.0.1:$(bolt_port) (Neo4j $(recorded_version), process $pid)"
}

admin() {
    local java_options=()
    (($# > 0)) || set -- --help
    if [[ $1 == server ]]; then
        case ${2-} in
            start | stop | restart | status | console | validate-config)
                misuse "'server $2' is not for admin. Use '$0 start', 'stop' or 'status'"
                ;;
        esac
    fi
    adopt_home
    # Kept by the tool, so that a start waits for an import to end.
    lock_home
    find_java
    fetch_server
    umask 077
    # The settings of a running server are its own.
    running_pid >/dev/null || write_conf 0
    [[ -d $home/data ]] || echo "$version" >"$home/$marker"
    read -ra java_options <<<"${JAVA_OPTS:-${HEAP_SIZE:+-Xmx$HEAP_SIZE}}"
    NEO4J_HOME=$home NEO4J_CONF=$home/conf exec "$java" "${java_flags[@]}" \
        ${java_options[@]+"${java_options[@]}"} \
        -cp "$server/lib/*" org.neo4j.cli.AdminTool "$@"
}

# --- settings and home folder ---------------------------------------------------------------------

read_settings() {
    version=${NEO4J_VERSION:-5.26.30}
    if [[ $version =~ ^5\.26\.[0-9]+$ ]]; then
        java_needed=17
    elif [[ $version =~ ^20[2-9][0-9]\.(0[1-9]|1[0-2])\.[0-9]+$ ]]; then
        java_needed=21
    else
        die "NEO4J_VERSION is '$version', which this script cannot run." \
            "Set it to 5.26.x or to a calendar release such as 2026.08.1"
    fi
    heap=${NEO4J_HEAP:-1g}
    page_cache=${NEO4J_PAGECACHE:-512m}
    timeout=${NEO4J_TIMEOUT:-120}
    [[ $heap =~ ^[1-9][0-9]*[kKmMgG]$ ]] ||
        die "NEO4J_HEAP is '$heap', not a size. Give a number and k, m or g, as in 2g"
    [[ $page_cache =~ ^[1-9][0-9]*[kKmMgG]$ ]] ||
        die "NEO4J_PAGECACHE is '$page_cache', not a size. Give a number and k, m or g, as in 512m"
    [[ $timeout =~ ^[1-9][0-9]*$ ]] ||
        die "NEO4J_TIMEOUT is '$timeout', not a number of seconds. Give a whole number, as in 120"

    here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
    root=$(absolute "${CIRCUITBASE_CACHE:-$here/../.cache}")/neo4j
    server=$root/$version/server
    home=$(absolute "${NEO4J_HOME:-$root/$version/home}")
    # Java separates class path entries by colons and has no way to escape one.
    [[ $server != *:* ]] ||
        die "the cache folder $root has a colon in its path. Set CIRCUITBASE_CACHE to another folder"
}

# The path itself, also of a folder that does not exist yet: the process is recognised by it.
absolute() {
    local path=$1 tail='' folder
    [[ $path == /* ]] || path=$PWD/$path
    while [[ $path == /*/ ]]; do path=${path%/}; done
    while [[ ! -d $path && $path == /?* ]]; do
        tail=/${path##*/}$tail
        path=${path%/*}
    done
    folder=$(CDPATH='' cd -- "${path:-/}" 2>/dev/null && pwd -P) ||
        die "cannot enter the folder ${path:-/}. Choose another, or change its permissions"
    printf '%s%s\n' "${folder%/}" "$tail"
}

# Takes the home folder as ours, never one that somebody else filled (a real Neo4j's, say).
adopt_home() {
    local entries=
    [[ ! -e $home || -d $home ]] ||
        die "$home is not a folder. Set NEO4J_HOME to a folder, or to one that does not exist yet"
    # First the entries, then the marker, which is written before anything else but the lock:
    # a start beside this one cannot be mistaken for somebody else.
    if [[ -d $home ]]; then entries=$(find "$home" -mindepth 1 -maxdepth 1 ! -name .lock); fi
    [[ -z $entries || -f $home/$marker ]] ||
        die "$home holds files that this script did not make. Set NEO4J_HOME to a new or empty folder"
    { mkdir -p -- "${home%/*}" && (umask 077 && mkdir -p -- "$home"); } 2>/dev/null ||
        die "cannot make the home folder $home. Set NEO4J_HOME to a folder that you can write to"
    home=$(absolute "$home")
}

lock_home() {
    local tool
    for tool in flock setsid; do
        command -v "$tool" >/dev/null || die "$tool is not in PATH. Install util-linux"
    done
    { exec 9>>"$home/.lock"; } 2>/dev/null ||
        die "cannot write to $home. Set NEO4J_HOME to a folder that you can write to"
    if ! flock -n 9; then
        note "another neo4j.sh is at work on $home; waiting for it"
        flock 9
    fi
    [[ -f $home/$marker ]] || echo "$version" >"$home/$marker"
    mkdir -p -- "$home/conf" "$home/logs" "$home/run"
}

recorded_version() { cat -- "$home/$marker"; }

# A newer Neo4j opens older data, never the reverse; patch releases share their format.
check_upgrade() {
    local old
    [[ -d $home/data ]] || return 0
    old=$(recorded_version)
    if [[ ${old%.*} != "${version%.*}" ]]; then
        [[ $(printf '%s\n' "$old" "$version" | sort -V | tail -n 1) == "$version" ]] ||
            die "$home holds data of Neo4j $old, which $version cannot open." \
                "Set NEO4J_VERSION=$old, or NEO4J_HOME to another folder"
        note "note: $home held data of Neo4j $old; it cannot go back from $version"
    fi
}

write_conf() {
    local port=$1
    {
        cat <<EOF
# Written by docker/neo4j.sh at every start: changes made here are lost.
server.config.strict_validation.enabled=true

# Bolt on loopback and nothing else.
server.default_listen_address=127.0.0.1
server.default_advertised_address=127.0.0.1
server.bolt.enabled=true
server.bolt.listen_address=127.0.0.1:$port
server.bolt.advertised_address=127.0.0.1:$port
server.http.enabled=false
server.https.enabled=false
# Data is safe before Bolt closes; by default it then idles for ten seconds.
internal.dbms.bolt.netty_server_shutdown_quiet_period=0

# Nothing is reported or announced to anybody.
dbms.usage_report.enabled=false
client.allow_telemetry=false
EOF
        # Settings of newer releases, unknown to older ones: present where their classes are
        # (the names in a jar are readable without unpacking it).
        if grep -qsF org/neo4j/bolt/discovery/DiscoveryConnector.class "$server"/lib/*neo4j-bolt-"$version".jar; then
            echo server.fleet_discovery.enabled=false
        fi
        if grep -qsF org/neo4j/fleetmanagement/FleetManagementSettings.class "$server"/lib/*fleet-management*.jar; then
            echo dbms.fleet_manager.enabled=false
        fi
        cat <<EOF

server.memory.heap.max_size=$heap
server.memory.pagecache.size=$page_cache

# Logs are only dropped at a checkpoint, by default every 15 minutes: under bulk writing they
# reach gigabytes. A checkpoint by volume bounds them.
db.checkpoint=VOLUME
db.checkpoint.interval.volume=128m
db.tx_log.rotation.size=32m
db.tx_log.rotation.retention_policy=1 files
EOF
    } >"$home/conf/neo4j.conf.new"
    mv -f -- "$home/conf/neo4j.conf.new" "$home/conf/neo4j.conf"
}

# --- Java and the server's jars -------------------------------------------------------------------

# Sets java, java_home and java_flags. Among Javas nobody chose, the oldest that is new enough:
# nearest to what the release was tested with.
find_java() {
    local candidate found major folder seen='' others='' best=
    [[ -z ${JAVA_HOME:-} || -x $JAVA_HOME/bin/java ]] ||
        note "note: JAVA_HOME is $JAVA_HOME, which has no bin/java; looking elsewhere"
    for candidate in "${JAVA_HOME:+$JAVA_HOME/bin/java}" "$(type -P java || true)"; do
        [[ -n $candidate ]] || continue
        found=$(inspect_java "$candidate") || continue
        major=${found%% *}
        if ((major >= java_needed)); then
            best=$major java=$candidate java_home=${found#* }
            break
        fi
        seen+="${seen:+, }$major ($candidate)"
    done
    if [[ -z $best ]]; then
        for folder in "${CIRCUITBASE_JVM_DIR:-/usr/lib/jvm}"/*; do
            candidate=$folder/bin/java
            found=$(inspect_java "$candidate") || continue
            major=${found%% *}
            if ((major < java_needed)); then
                others+="${others:+, }$major ($candidate)"
            elif [[ -z $best || $major -lt $best ]]; then
                best=$major java=$candidate java_home=${found#* }
            fi
        done
        # Worth a word only where somebody's choice is passed over.
        [[ -z $best || -z $seen || -z ${JAVA_HOME:-} ]] ||
            note "note: Java $seen is too old for Neo4j $version; using $java"
    fi
    if [[ -z $best ]]; then
        seen=${seen:-$others}
        [[ -n $seen ]] ||
            die "no Java found. Neo4j $version needs Java $java_needed or newer: install one or set JAVA_HOME"
        die "Neo4j $version needs Java $java_needed or newer, found $seen." \
            "Install a newer one or set JAVA_HOME"
    fi
    # Neo4j reaches into the JDK for direct memory and file channels.
    java_flags=(
        --add-opens=java.base/java.nio=ALL-UNNAMED
        --add-opens=java.base/java.io=ALL-UNNAMED
        --add-opens=java.base/java.lang=ALL-UNNAMED
        --add-opens=java.base/sun.nio.ch=ALL-UNNAMED
        --enable-native-access=ALL-UNNAMED
    )
    if ((best >= 24)); then
        # Else every run prints four lines of warnings about the libraries inside.
        java_flags+=(--sun-misc-unsafe-memory-access=allow)
    fi
}

# Prints "MAJOR HOME" of a Java, or fails.
inspect_java() {
    local properties major folder
    [[ -x $1 ]] || return 1
    properties=$("$1" -XshowSettings:properties -version 2>&1) || return 1
    major=$(sed -n 's/^ *java\.specification\.version = \(1\.\)\{0,1\}\([0-9]*\).*/\2/p' <<<"$properties")
    folder=$(sed -n 's/^ *java\.home = //p' <<<"$properties")
    [[ -n $major ]] || return 1
    printf '%s %s\n' "$major" "$folder"
}

# One download a version: made aside, then put in place by one rename, under a lock.
fetch_server() {
    [[ ! -s $server/$entry_point ]] || return 0
    command -v mvn >/dev/null ||
        die "mvn is not in PATH, and Neo4j $version is not downloaded yet." \
            "Install Maven (apt install maven), or copy $server from elsewhere"
    mkdir -p -- "$root/$version" 2>/dev/null ||
        die "cannot make the cache folder $root. Set CIRCUITBASE_CACHE to a folder that you can write to"
    exec 8>>"$root/$version/.lock"
    if ! flock -n 8; then
        note "another neo4j.sh is downloading Neo4j $version; waiting for it"
        flock 8
    fi
    if [[ ! -s $server/$entry_point ]]; then
        note "downloading Neo4j $version with Maven (once, about 150 MB)"
        # Under the lock nobody else's: leavings of an interrupted download.
        rm -rf -- "$server" "$root/$version"/partial.*
        scratch=$(mktemp -d "$root/$version/partial.XXXXXX")
        chmod 755 "$scratch"
        # Maven chooses its own Java where it finds one: an old Maven warns about a new Java.
        if [[ -n ${JAVA_HOME:-} && ! -x $JAVA_HOME/bin/java ]] ||
            [[ -z ${JAVA_HOME:-} && -z $(type -P java) ]]; then
            export JAVA_HOME=$java_home
        fi
        mvn -q -B -ntp -Dstyle.color=never -f "$here/pom.xml" \
            "-Dneo4j.version=$version" "-Dserver.directory=$scratch" package >&2 8>&- 9>&- ||
            die "Maven could not resolve Neo4j $version. Check the version and the network; Maven's messages are above"
        [[ -s $scratch/$entry_point ]] ||
            die "the jars of Neo4j $version name no main class. Set NEO4J_VERSION to another release"
        mv -- "$scratch" "$server"
        scratch=
    fi
    exec 8>&-
}

# --- password -------------------------------------------------------------------------------------

# The password is set before the first start; from then on the file remembers it.
set_password() {
    local password argument
    if [[ -s $home/password ]]; then
        [[ -z ${NEO4J_PASSWORD:-} || $NEO4J_PASSWORD == "$(<"$home/password")" ]] ||
            note "note: NEO4J_PASSWORD is ignored: this server keeps the password of its first start"
        return
    fi
    if [[ -d $home/data/databases/system ]]; then
        [[ -n ${NEO4J_PASSWORD:-} ]] ||
            die "$home has data but its password file is gone. Set NEO4J_PASSWORD to the password, or remove $home"
        printf '%s\n' "$NEO4J_PASSWORD" >"$home/password"
        return
    fi
    password=${NEO4J_PASSWORD:-$(od -An -v -N16 -tx1 /dev/urandom | tr -d ' \n')}
    ((${#password} >= 8)) || die "NEO4J_PASSWORD is too short. Neo4j asks for 8 characters or more"
    [[ $password != *[[:cntrl:]]* ]] ||
        die "NEO4J_PASSWORD holds a control character. Choose another password"
    # In an arguments file, so that the password is in no list of processes. There, quotes and
    # backslashes are escaped, and a leading @ would name another such file.
    argument=$(sed 's/[\\"]/\\&/g; s/^@/@@/' <<<"$password")
    write_conf 0
    printf '%s\n' dbms set-initial-password -- "\"$argument\"" >"$home/run/arguments"
    scratch=$home/run/arguments
    if ! NEO4J_HOME=$home NEO4J_CONF=$home/conf "$java" "${java_flags[@]}" -Xmx256m \
        -Dfile.encoding=UTF-8 -cp "$server/lib/*" \
        org.neo4j.cli.AdminTool "@$home/run/arguments" \
        >"$home/logs/password.log" 2>&1; then
        cat -- "$home/logs/password.log" >&2
        die "neo4j-admin could not set the password; its messages are above. Set another NEO4J_PASSWORD if they are about it"
    fi
    rm -f -- "$home/run/arguments" "$home/logs/password.log"
    scratch=
    printf '%s\n' "$password" >"$home/password"
}

print_exports() {
    printf 'export NEO4J_URI=%s\n' "bolt://127.0.0.1:$(bolt_port)"
    printf 'export NEO4J_USERNAME=neo4j\n'
    printf 'export NEO4J_PASSWORD=%s\n' "$(quoted "$(<"$home/password")")"
}

# For any POSIX shell, which bash's own printf %q is not.
quoted() {
    if [[ $1 != *[^A-Za-z0-9_./:@%+=,-]* ]]; then
        printf '%s\n' "$1"
    else
        # shellcheck disable=SC2001 # releases of bash differ on \ and & in ${text//a/b}
        printf "'%s'\n" "$(sed "s/'/'\\\\''/g" <<<"$1")"
    fi
}

# --- the process ----------------------------------------------------------------------------------

# Starts the server and waits until Bolt answers; another program may take the port meanwhile.
launch() {
    local attempt port log=$home/logs/console.log
    for attempt in 1 2 3; do
        port=$(free_port)
        write_conf "$port"
        user_log_offset=$(file_size "$home/logs/neo4j.log")
        (
            cd -- "$home"
            # Locks are held by whoever has the file open: the server must not.
            exec 8>&- 9>&-
            exec setsid "$java" "${java_flags[@]}" "-Xmx$heap" \
                -XX:+UseG1GC -XX:-OmitStackTraceInFastThrow -XX:+ExitOnOutOfMemoryError \
                -Dio.netty.tryReflectionSetAccessible=true -Dlog4j2.disable.jmx=true \
                -cp "$server/lib/*" "$(main_class)" \
                "--home-dir=$home" "--config-dir=$home/conf"
        ) </dev/null >"$log" 2>&1 &
        launched=$!
        printf '%s\n' "$launched" >"$home/run/neo4j.pid"
        printf '%s\n' "$port" >"$home/run/bolt.port"
        if await "$launched" "$port"; then
            launched=
            return
        fi
        if kill -0 "$launched" 2>/dev/null; then
            # clean_up ends it.
            die "Neo4j did not answer in $timeout seconds. See $home/logs, or give it longer with NEO4J_TIMEOUT"
        fi
        launched=
        forget
        [[ $(recent_log) == *'Address already in use'* && $attempt -lt 3 ]] || break
        note "note: port $port was taken meanwhile; trying another"
    done
    { recent_log | grep -E ' ERROR |^Caused by' || true; } >&2
    tail -n 20 -- "$log" >&2
    die "Neo4j ended while starting. Its messages are above, more of them in $home/logs"
}

main_class() { sed -n '/^[^#]/{s/[[:space:]]*$//;p;q;}' "$server/$entry_point"; }

# Below the range from which systems take ports for outgoing connections.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    die "no free port found between 20000 and 32000. Stop what listens there, then start again"
}

# True once the server says that it started and a client would agree; false if it ends before.
await() {
    local pid=$1 port=$2
    local deadline=$((SECONDS + timeout))
    while ((SECONDS < deadline)); do
        kill -0 "$pid" 2>/dev/null || return 1
        if [[ $(recent_log) == *' Started.'* ]] && bolt_answers "$port"; then return 0; fi
        sleep 0.2
    done
    return 1
}

# Ends a server: asks first, and forces it when the seconds are over.
end() {
    local pid=$1 seconds=$2
    kill -TERM "$pid" 2>/dev/null || true
    if await_end "$pid" "$seconds"; then return 0; fi
    note "note: Neo4j did not stop in $seconds seconds; killing it (the next start recovers its data)"
    kill -KILL "$pid" 2>/dev/null || true
    await_end "$pid" 10
}

await_end() {
    local pid=$1 deadline=$((SECONDS + $2))
    while is_server "$pid"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# A Bolt handshake: the magic number, four offers of a version; any four bytes are an answer.
bolt_answers() {
    [[ $1 =~ ^[0-9]+$ ]] || return 1
    (
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf '\x60\x60\xb0\x17\0\x08\x08\x05\0\0\x04\x04\0\0\0\0\0\0\0\0' >&3
        # Bytes, not the characters of the user's language.
        LC_ALL=C
        for _ in 1 2 3 4; do IFS= read -r -d '' -n 1 -t 5 -u 3 _ || exit 1; done
    ) 2>/dev/null
}

# Prints the process of this home folder's server, or fails. A pid file may outlive its process,
# and its number may be another program's by now.
running_pid() {
    local pid
    [[ -s $home/run/neo4j.pid ]] || return 1
    pid=$(<"$home/run/neo4j.pid")
    [[ $pid =~ ^[0-9]+$ ]] && is_server "$pid" || return 1
    echo "$pid"
}

is_server() {
    local argument
    if [[ -d /proc/self ]]; then
        while IFS= read -r -d '' argument; do
            [[ $argument != "--home-dir=$home" ]] || return 0
        done 2>/dev/null <"/proc/$1/cmdline" || true
        return 1
    fi
    [[ "$(ps -ww -o args= -p "$1" 2>/dev/null) " == *" --home-dir=$home "* ]]
}

bolt_port() { cat -- "$home/run/bolt.port" 2>/dev/null || true; }

forget() { rm -f -- "$home/run/neo4j.pid" "$home/run/bolt.port"; }

file_size() { if [[ -f $1 ]]; then wc -c <"$1"; else echo 0; fi; }

# What the server has logged for its users since it was launched.
recent_log() {
    local log=$home/logs/neo4j.log offset=${user_log_offset:-0}
    [[ -f $log ]] || return 0
    # Neo4j begins a new file now and then.
    (($(file_size "$log") >= offset)) || offset=0
    tail -c "+$((offset + 1))" -- "$log"
}

main "$@"
