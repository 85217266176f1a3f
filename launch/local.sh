#!/usr/bin/env bash
# Trains with N processes on this machine, as N hosts would, with collectives over CPU:
#
#   launch/local.sh N CONFIG [words for jaxtrain train ...]
#   launch/local.sh 2 configs/alphabets.py:full --workdir=runs/two --config.steps=100
#
# Every line of process I's output is preceded by [I]. The first process that fails stops all: the
# others get SIGTERM, and SIGKILL after GRACE seconds; all do on Ctrl-C or SIGTERM to this script.
# (Only SIGKILL to this script itself leaves the processes running: nothing can answer it.)
#
# Exit code: 0 all finished; 42 stopped with the state saved, start the same command again; 2 wrong
# input, here or in jaxtrain; otherwise that of the first process that crashed.
#
# Environment:
#   PYTHON   the interpreter (.venv/bin/python beside launch/ if there, else python3)
#   DEVICES  simulated devices of each process (1, or what XLA_FLAGS says)
#   PORT     where process 0 listens for the others (one that is free)
#   GRACE    seconds between SIGTERM and SIGKILL (60)
#   JAX_PLATFORMS  cpu, unless set
set -euo pipefail

say() { printf 'local.sh: %s\n' "$*" >&2; }

refuse() {
    say "$*"
    exit 2
}

# Refuses all but whole numbers from 1; takes what the number is, and the number.
check_number() {
    [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || refuse "$1 must be a whole number from 1, not '$2'"
}

# Output through this is never held back: a line is written when it is complete. It outlives a
# Ctrl-C, which the terminal sends to it too, and ends when nobody can write to it any more.
prefix() {
    trap '' INT TERM HUP
    local line
    while IFS= read -r line || [[ -n $line ]]; do
        printf '[%s] %s\n' "$1" "$line"
    done
}

# A port that nobody listens on. Below 32768, where Linux gives out ports for outgoing connections,
# so that none of those takes it before process 0 does.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 10000))
        if ! (exec 9<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    say 'found no free port; set PORT'
    return 1
}

((BASH_VERSINFO[0] >= 5)) || refuse "needs bash 5 or newer, this is $BASH_VERSION"
usage='usage: launch/local.sh N CONFIG [words for jaxtrain train ...]'
(($# >= 2)) || refuse "$usage"
check_number 'N, the number of processes,' "$1"
count=$1 config=$2
shift 2

grace=${GRACE:-60}
check_number GRACE "$grace"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if [[ -z ${PYTHON:-} && -x $here/../.venv/bin/python ]]; then
    python=$here/../.venv/bin/python
fi
command -v "$python" >/dev/null || refuse "there is no interpreter '$python'; set PYTHON"

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONUNBUFFERED=1
if [[ -n ${DEVICES:-} || -z ${XLA_FLAGS:-} ]]; then
    check_number DEVICES "${DEVICES:=1}"
    # XLA takes the last word where a flag is given twice.
    export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES"
fi
if ((count > 1)); then
    port=${PORT:-$(free_port)}
    check_number PORT "$port"
fi

pids=()      # of those that run, by their number
prefixers=() # of those that precede lines by [I]
asked=''     # the signal that asked this script to stop
stopping=''  # set once SIGTERM has been sent
killed=''    # set once SIGKILL has been sent
# The first exit codes of their kind: a crash or wrong input, a stop with the state saved, and the
# death by a signal from here, which says nothing about the program.
fatal='' saved='' forced=''

start() {
    local number=$1 out
    shift
    exec {out}> >(prefix "$number")
    prefixers+=("$!")
    # Job control puts each process and its children in a group of their own: Ctrl-C does not reach
    # them, so that they get one signal, SIGTERM; and whatever they leave behind can be found.
    set -m
    "$@" </dev/null >&"$out" 2>&1 &
    set +m
    pids[number]=$!
    exec {out}>&-
}

signal_all() {
    local pid
    for pid in "${pids[@]}"; do
        # SIGTERM goes to the program alone, SIGKILL to its children too.
        if [[ $1 == KILL ]]; then pid=-$pid; fi
        kill -s "$1" -- "$pid" 2>/dev/null || true
    done
}

# Takes note of how a process ended.
ended() {
    local number=$1 code=$2
    if ((code == 0)); then
        return
    elif [[ ($stopping && $code == 143) || ($killed && $code == 137) ]]; then
        : "${forced:=$code}"
    elif ((code == 42)); then
        saved=42
    else
        : "${fatal:=$code}"
    fi
    say "process $number ended with code $code"
}

collect() {
    local number pid code
    for number in "${!pids[@]}"; do
        pid=${pids[number]}
        if kill -0 "$pid" 2>/dev/null; then continue; fi
        code=0
        wait "$pid" || code=$?
        unset "pids[$number]"
        kill -s KILL -- "-$pid" 2>/dev/null || true # children that it has left
        ended "$number" "$code"
    done
}

# shellcheck disable=SC2329  # the trap below calls it
leave() {
    signal_all KILL
    ((${#prefixers[@]} == 0)) || kill -s KILL "${prefixers[@]}" 2>/dev/null || true
}

trap leave EXIT
trap 'asked=SIGINT' INT
trap 'asked=SIGTERM' TERM
trap 'asked=SIGHUP' HUP

words=(-m jaxtrain train "--config=$config")
for ((i = 0; i < count; i++)); do
    if [[ $asked ]]; then break; fi
    where=()
    if ((count > 1)); then
        where=("--coordinator=127.0.0.1:$port" "--processes=$count" "--process=$i")
    fi
    start "$i" "$python" "${words[@]}" "${where[@]}" "$@"
done

deadline=0
while ((${#pids[@]})); do
    collect
    if [[ ! $stopping && ($asked || $fatal || $saved) ]]; then
        stopping=1
        deadline=$((SECONDS + grace + 1)) # SECONDS drops the fraction
        ((${#pids[@]} == 0)) || say "${asked:+$asked: }stopping ${#pids[@]} of $count processes"
        signal_all TERM
    elif [[ $stopping && ! $killed ]] && ((SECONDS >= deadline)); then
        killed=1
        say "${#pids[@]} of $count processes did not stop within $grace s, killing"
        signal_all KILL
    fi
    # Not `wait -n`: before bash 5.3 it misses a process that a signal ended meanwhile.
    ((${#pids[@]} == 0)) || sleep 0.1 || true
done

# The last lines. Only what left its process group, as nothing of jaxtrain does, could keep
# a prefixer from ending.
for _ in {1..30}; do
    kill -0 "${prefixers[@]}" 2>/dev/null || break
    sleep 0.1 || true
done

exit "${fatal:-${saved:-${forced:-0}}}"
