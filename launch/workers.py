"""The workers of a slice: their list, and scripts that run on all of them.

Part of tpu.py; uses only the standard library.
"""

import json
import re
import shlex
from typing import NamedTuple

from gcloud import FATAL, WRONG, Cloud, Failure, Lost, Reply, say

ENDED = ('FAILED', 'SUSPENDED')
LEAVING = (*ENDED, 'SUSPENDING', 'DELETING')
USELESS = ('gone', 'PREEMPTED', 'TERMINATED', 'STOPPING', 'STOPPED', 'DELETING')  # states of a node
ROUNDS = 8  # how often workers are asked before those without an answer count as lost


# These scripts run on the workers. Each gives its result as one line, written at once, because the
# lines of many workers share one stream; each ends with code 0, as gcloud returns only one code.
PRELUDE = """
answer() { printf 'jaxtrain-answer %s %s\\n' "$(hostname)" "$*"; exit 0; }
cd "$HOME" || answer failed no home
"""
CHECK = """
got=$(sha256sum < "$archive" | cut -c 1-64)
[ "$got" = "$sha" ] && answer same "$got"
rm -f "$archive"
answer other "$got"
"""
# The images with Ubuntu 22.04 contain Python 3.10, which is too old: uv installs a newer one.
INSTALL = """
log=$HOME/jaxtrain-install.log
fail() { answer failed "$(grep -v '^ *$' "$log" | tail -n 1 | cut -c 1-200)"; }
[ "$(cat jaxtrain-venv/installed 2>/dev/null)" = "$sha" ] && rm -f "$archive" && answer already
for lock in jaxtrain-runs/*/lock; do
  [ ! -e "$lock" ] || (flock -n 9) 9>>"$lock" || answer failed "a run holds $lock: stop it first"
done
exec 2>"$log"
new=jaxtrain-versions/$sha
rm -f jaxtrain-venv/installed
[ -d "$new" ] || {
  rm -rf "$new.part" && mkdir -p "$new.part" && tar -xf "$archive" -C "$new.part" &&
    mv -T "$new.part" "$new"
} || fail
ln -sfn "$new" jaxtrain.new && mv -T jaxtrain.new jaxtrain || fail
venv() {
  for python in python3 python3.13 python3.12 python3.11; do
    "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' &&
      "$python" -m venv jaxtrain-venv && return
  done
  export PIP_BREAK_SYSTEM_PACKAGES=1
  python3 -m pip install --user uv && python3 -m uv venv --seed --python 3.12 jaxtrain-venv
}
[ -x jaxtrain-venv/bin/pip ] || { rm -rf jaxtrain-venv && venv >&2; } || fail
(cd jaxtrain && "$HOME/jaxtrain-venv/bin/pip" install -e '.[tpu]') >&2 || fail
echo "$sha" > jaxtrain-venv/installed
rm -f "$archive"
answer installed
"""
# A run holds the lock of its folder as long as it is alive. Unlike a process id, the lock is valid
# after a reboot too, and it prevents two runs at once.
STATE = """
cd "jaxtrain-runs/$name" 2>/dev/null || answer none -
last=$(tail -c 4000 log 2>/dev/null | tr '\\r' '\\n' | grep -v '^ *$' | tail -n 1 | cut -c 1-200)
exec 9>>lock
flock -n 9 || answer alive - "$last"
[ -e exit ] && answer exit "$(cat exit)" "$last"
[ -e token ] && answer dead - "$last"
answer none -
"""
START = """
[ -x jaxtrain-venv/bin/jaxtrain ] || answer missing
mkdir -p "jaxtrain-runs/$name" && cd "jaxtrain-runs/$name" || answer failed no folder
exec 9>>lock
flock -w 5 9 || answer alive
[ "$(cat token 2>/dev/null)" = "$token" ] && answer started
[ "$join" = yes ] && [ -e exit ] && answer ended
rm -f exit pid
echo "$token" > token
setsid nohup bash -c "$job" </dev/null >>log 2>&1 &
answer started
"""
# SIGTERM is sent to the group: this shell ignores it, to write the exit code to a file.
JOB = """
trap : TERM
echo $$ > pid
(cd "$HOME/jaxtrain" && exec env %s "$HOME/jaxtrain-venv/bin/jaxtrain" train %s) 9>&-
echo $? > exit.new && mv exit.new exit
"""
STOP = """
cd "jaxtrain-runs/$name" 2>/dev/null || answer none
exec 9>>lock
flock -n 9 && answer none
kill -TERM -- "-$(cat pid)" && answer stopping
answer failed
"""


class Slice(NamedTuple):
    state: str
    nodes: list[str]
    why: str


def describe(cloud: Cloud, name: str, slices: int | None = 1) -> Slice | None:
    """The queued resource with this name; None if it does not exist.

    Args:
      slices: the number that a dry run assumes to exist; None: it assumes that none exists.
    """
    spec = {'multisliceParams': {'nodeCount': slices}} if (slices or 1) > 1 else {'nodeId': name}
    assumed = slices and json.dumps({'state': {'state': 'ACTIVE'}, 'tpu': {'nodeSpec': [spec]}})
    answer = look(cloud, 'queued-resources', name, assumed)
    if answer is None:
        return None
    nodes = []
    for spec in answer.get('tpu', {}).get('nodeSpec', []):
        many = spec.get('multisliceParams', {})
        prefix = many.get('nodeIdPrefix') or name
        nodes += [f'{prefix}-{i}' for i in range(many.get('nodeCount', 0))] or [spec['nodeId']]
    state = answer.get('state', {})
    why = state.get('failedData', {}).get('error', {}).get('message', '')
    return Slice(state.get('state', 'UNKNOWN'), nodes, why)


def look(cloud: Cloud, kind: str, name: str, assumed: str | None) -> dict | None:
    reply = cloud.call(kind, 'describe', name, '--format=json', assumed=assumed)
    if reply.code and not reply.missing:
        raise Failure(WRONG, reply.reason)
    return None if reply.missing else json.loads(reply.out)


def fleet(cloud: Cloud, name: str, was_there: bool = False) -> dict[str, int]:
    """The nodes of an active slice, with the number of workers of each node.

    Raises:
      Lost: the slice was preempted, entirely or in part, or is no longer active.
      Failure: the slice does not exist, or not yet.
    """
    queued = describe(cloud, name)
    state = queued.state if queued else 'missing'
    if state in LEAVING or (was_there and state != 'ACTIVE'):
        raise Lost(f'{name} is {state}')
    if state != 'ACTIVE':
        raise Failure(WRONG, f'{name} is {state}: run create, which waits until it is ACTIVE')
    assumed = json.dumps({'state': 'READY', 'networkEndpoints': [{}]})
    workers = {}
    for node in queued.nodes:
        answer = look(cloud, 'tpu-vm', node, assumed) or {'state': 'gone'}
        if answer['state'] in USELESS:
            raise Lost(f'{node} is {answer["state"]}')
        # A worker has an endpoint in each of its networks.
        networks = max(1, len(answer.get('networkConfigs', [])))
        workers[node] = max(1, len(answer.get('networkEndpoints', [])) // networks)
    return workers


def ssh(cloud: Cloud, node: str, script: str, worker: str = 'all', /, **values: str) -> list[str]:
    lines = [f'{key}={shlex.quote(value)}\n' for key, value in values.items()]
    command = f'bash -c {shlex.quote(PRELUDE + "".join(lines) + script)}'
    flags = '--ssh-flag=-oConnectTimeout=20 -oServerAliveInterval=15'
    words = ['tpu-vm', 'ssh', node, *cloud.reach, f'--worker={worker}', flags]
    return [*words, f'--command={command}']


def answers(node: str, reply: Reply) -> dict[tuple[str, str], list[str]]:
    """The answers in the output of `ssh`, by node and host."""
    lines = [line.split() for line in reply.out.splitlines()]
    return {(node, line[1]): line[2:] for line in lines if line[:1] == ['jaxtrain-answer']}


def ask(
    cloud: Cloud, name: str, workers: dict[str, int], script: str, assumed: str, /, **values: str
):
    """Runs a script, which must be repeatable, on all workers until each has answered.

    Raises:
      Lost: the slice is gone, or some workers cannot be reached for a long time.
    """
    got, total = {}, sum(workers.values())
    calls = [ssh(cloud, node, script, **values) for node in workers]
    for attempt in range(ROUNDS):
        replies = cloud.together(calls, f'jaxtrain-answer worker {assumed}', timeout=1800)
        for node, reply in zip(workers, replies, strict=True):
            got |= answers(node, reply)
        if len(got) >= total:
            return in_order(got)
        reason = next((reply.reason for reply in replies if reply.code), 'no answer')
        if FATAL.search(reason):
            raise Failure(WRONG, reason)
        say(f'{len(got)} of {total} workers of {name} answered: {reason}')
        fleet(cloud, name, was_there=True)  # raises Lost if that is the reason
        cloud.backoff(attempt)
    raise Lost(f'{name}: some workers cannot be reached: {reason}')


def in_order(got: dict) -> dict:
    def numbers(item) -> list:
        parts = re.split(r'(\d+)', ' '.join(item[0]))
        return [int(part) if part.isdecimal() else part for part in parts]

    return dict(sorted(got.items(), key=numbers))
