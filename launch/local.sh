#!/usr/bin/env bash
# Trains with N processes on this machine, as N hosts would, with collectives on CPU:
#
#   launch/local.sh N CONFIG [arguments of jaxtrain train ...]
#   launch/local.sh 2 configs/alphabets.py:full --workdir=runs/two --config.steps=100
#
# Every line of process I's output is preceded by [I]. The first process that fails stops all: the
# others get SIGTERM, and SIGKILL after GRACE seconds. On Ctrl-C, or SIGTERM to this script, all
# processes do. (Only SIGKILL to this script leaves the processes running, as it cannot be handled.)
#
# Exit code: 0 all finished; 42 stopped with the state saved, start the same command again; 2 wrong
# input, here or in jaxtrain; otherwise the code of the first process that crashed.
#
# Environment:
#   PYTHON   the interpreter (.venv/bin/python beside launch/ if it exists, else python3)
#   DEVICES  simulated devices of each process (1, or as in XLA_FLAGS)
#   PORT     the port where process 0 listens for the others (a free one)
#   GRACE    seconds between SIGTERM and SIGKILL (60)
#   JAX_PLATFORMS  cpu, unless set
set -euo pipefail

say() { printf 'local.sh: %s\n' "$*" >&2; }

refuse() {
    say "$*"
    exit 2
}

# Refuses all but integers from 1; takes the meaning of the number, and the number.
check_number() {
    [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || refuse "$1 must be an integer from 1, not '$2'"
}

# Writes each line of output as soon as it is complete. It ignores Ctrl-C, which the terminal sends
# to it too, and ends when no process can write to it any more.
prefix() {
    trap '' INT TERM HUP
    local line
    while IFS= read -r line || [[ -n $line ]]; do
        printf '[%s] %s\n' "$1" "$line"
    done
}

# A port on which no program listens. It is below 32768, where Linux starts to assign ports to
# outgoing connections, so that no connection takes it before process 0 does.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 10000))
        if ! (exec 9<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    say 'no free port was found; set PORT'
    return 1
}

((BASH_VERSINFO[0] >= 5)) || refuse "bash 5 or newer is required, this is $BASH_VERSION"
usage='usage: launch/local.sh N CONFIG [arguments of jaxtrain train ...]'
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
command -v "$python" >/dev/null || refuse "the interpreter '$python' does not exist; set PYTHON"

export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONUNBUFFERED=1
if [[ -n ${DEVICES:-} || -z ${XLA_FLAGS:-} ]]; then
    check_number DEVICES "${DEVICES:=1}"
    # If a flag is given twice, XLA uses the last one.
    export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES"
fi
if ((count > 1)); then
    port=${PORT:-$(free_port)}
    check_number PORT "$port"
fi

pids=()      # of the processes that run, by their number
prefixers=() # pids of the processes that put [I] before lines
asked=''     # the signal that asked this script to stop
stopping=''  # set once SIGTERM has been sent
killed=''    # set once SIGKILL has been sent
# The first exit codes of each kind: of a crash or wrong input, of a stop with the state saved, and
# of a death by a signal from this script, which means nothing about the program.
fatal='' saved='' forced=''

start() {
    local number=$1 out
    shift
    exec {out}> >(prefix "$number")
    prefixers+=("$!")
    # Job control puts each process and its children into a group of its own. Ctrl-C does not reach
    # it, so that it gets only one signal, SIGTERM; and children that are left over can be found.
    set -m
    "$@" </dev/null >&"$out" 2>&1 &
    set +m
    pids[number]=$!
    exec {out}>&-
}

signal_all() {
    local pid
    for pid in "${pids[@]}"; do
        # SIGTERM is sent only to the program, SIGKILL to its children too.
        if [[ $1 == KILL ]]; then pid=-$pid; fi
        kill -s "$1" -- "$pid" 2>/dev/null || true
    done
}

# Records how a process ended.
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
        kill -s KILL -- "-$pid" 2>/dev/null || true # children that are left over
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
        deadline=$((SECONDS + grace + 1)) # SECONDS is rounded down
        ((${#pids[@]} == 0)) || say "${asked:+$asked: }stopping ${#pids[@]} of $count processes"
        signal_all TERM
    elif [[ $stopping && ! $killed ]] && ((SECONDS >= deadline)); then
        killed=1
        say "${#pids[@]} of $count processes did not stop within $grace s, killing"
        signal_all KILL
    fi
    # Not `wait -n`: before bash 5.3 it misses a process that a signal has ended meanwhile.
    ((${#pids[@]} == 0)) || sleep 0.1 || true
done

# Waits for the last lines. Only a child that has left its process group could keep a prefixer from
# ending, and jaxtrain has no such child.
for _ in {1..30}; do
    kill -0 "${prefixers[@]}" 2>/dev/null || break
    sleep 0.1 || true
done

exit "${fatal:-${saved:-${forced:-0}}}"
