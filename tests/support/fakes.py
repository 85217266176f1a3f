"""A fake gcloud, which follows a scenario.

It runs the remote commands on this machine, in one folder per worker, with fakes of python3, pip
and jaxtrain.
"""

import contextlib
import json
import os
import signal
import sys
import time

# Slow imports are made where they are needed, because gcloud is called some hundred times.

# The other programs that the remote commands use; a worker's PATH has only these and the fakes.
TOOLS = [
    'bash',
    'cat',
    'cut',
    'env',
    'flock',
    'grep',
    'ln',
    'mkdir',
    'mv',
    'nohup',
    'rm',
    'seq',
    'setsid',
    'sha256sum',
    'sleep',
    'tail',
    'tar',
    'tr',
]

GCLOUD = """#!{python} -S
import sys
sys.path.insert(0, {root!r})
from tests.support.fakes import main
main({folder!r}, sys.argv[1:])
"""

PYTHON = """#!/bin/bash
echo "python3 $*" >> "$HOME/calls"
for last; do :; done
case "$*" in
  -c*)
    now='import sys; sys.modules["ensurepip"] = sys'
    [ -e "$HOME/plan/old-python" ] && now="$now; sys.version_info = (3, 10, 12)"
    '{python}' -S -c "$now
$2" ;;
  '-m pip install --user uv') ;;
  '-m venv '*|'-m uv venv '*)
    mkdir -p "$last/bin" && cp "$HOME/../fake-pip" "$last/bin/pip" ;;
  *) exit 9 ;;
esac
"""

PIP = """#!/bin/bash
echo "pip $* in $(cd -P . && pwd)" >> "$HOME/calls"
if [ -e "$HOME/plan/pip-fails" ]; then echo 'ERROR: no matching distribution' >&2; exit 1; fi
echo 'Successfully installed'
cp "$HOME/../fake-jaxtrain" "$(dirname "$0")/jaxtrain"
"""

# Ends after plan/steps, or once plan/end exists, with the code plan/exit; or at once with 42 on
# SIGTERM.
JAXTRAIN = """#!/bin/bash
echo start >> "$HOME/starts"
printf '%s\\n' "$@" > "$HOME/args"
env > "$HOME/env"
pwd > "$HOME/cwd"
trap 'echo saved; exit 42' TERM
echo "step 1 of $HOSTNAME_"
echo 'to stderr' >&2
for i in $(seq "$(cat "$HOME/plan/steps")"); do [ -e "$HOME/plan/end" ] || sleep 0.05; done
echo 'last line'
exit "$(cat "$HOME/plan/exit")"
"""


def hear_signals() -> None:
    """Resets SIGINT and SIGHUP in a process that is about to start.

    They are ignored under nohup and in the background of a shell, and a shell cannot trap a signal
    that was ignored when it started.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class FakeGcloud:
    """A folder with a gcloud in `bin`, its state, and the home folders of the workers.

    Args:
      scenario: any of
        workers: the number of workers of each node; 2 by default.
        states: for each slice created in turn, its state at each query; the last one remains.
        exits: for each slice created in turn, the exit codes of jaxtrain by worker.
        steps: for each slice created in turn, how long jaxtrain takes, in steps of 0.05 s.
        errors: by verb, for each call in turn, the error of gcloud on stderr; null: no error.
        sleeps: by verb, seconds that gcloud waits before it does anything.
        unreachable: for each ssh in turn, the workers that it does not reach.
        damaged: for each scp in turn, the workers that receive other bytes.
        preempt: the number, from 0, of the ssh before which the slice is preempted.
        vanish: whether a preempted slice no longer exists.
    """

    def __init__(self, folder, **scenario):
        import shutil

        self.folder = folder
        (folder / 'bin').mkdir(parents=True)
        _write(folder, 'scenario', scenario)
        _write(folder, 'state', {'counts': {}, 'made': 0, 'slices': {}})
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        text = GCLOUD.format(python=sys.executable, root=root, folder=str(folder))
        _script(folder / 'bin' / 'gcloud', text)
        homes, tools = folder / 'homes', folder / 'tools'
        homes.mkdir()
        tools.mkdir()
        for tool in (*TOOLS, 'cp', 'dirname'):
            (tools / tool).symlink_to(shutil.which(tool))
        _script(tools / 'python3', PYTHON.replace('{python}', sys.executable))
        _script(tools / 'hostname', '#!/bin/bash\necho "$HOSTNAME_"\n')
        _script(homes / 'fake-pip', PIP)
        _script(homes / 'fake-jaxtrain', JAXTRAIN)

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of every call so far."""
        log = self.folder / 'log.jsonl'
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    @property
    def verbs(self) -> list[str]:
        """The verb of each call: `create`, `describe`, `node` (describing a node), `ssh`, ..."""
        return [_verb(call) for call in self.calls]

    @property
    def slices(self) -> dict:
        return _read(self.folder, 'state')['slices']

    def home(self, worker: int = 0, node: str = 'r1', made: int = 1):
        """The home folder of a worker; `made` is the number of the created slice, from 1."""
        return self.folder / 'homes' / f'{made}-{node}-w-{worker}'

    def make(self, name: str = 'r1', slices: int = 1) -> None:
        """Creates a slice without a call."""
        state = _read(self.folder, 'state')
        _make(self.folder, _read(self.folder, 'scenario'), state, name, slices)
        _write(self.folder, 'state', state)

    def change(self, **scenario) -> None:
        _write(self.folder, 'scenario', _read(self.folder, 'scenario') | scenario)

    def finish(self) -> None:
        """Makes jaxtrain end by itself on every worker, now and in later starts."""
        for plan in self.folder.glob('homes/*/plan'):
            (plan / 'end').touch()

    def end(self) -> None:
        """Ends all processes that still run on the workers."""
        _kill(self.folder)


def _script(path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _read(folder, name: str) -> dict:
    with open(f'{folder}/{name}.json') as file:
        return json.load(file)


def _write(folder, name: str, value: dict) -> None:
    new = f'{folder}/{name}.{os.getpid()}'
    with open(new, 'w') as file:
        json.dump(value, file)
    os.replace(new, f'{folder}/{name}.json')


def _verb(call: list[str]) -> str:
    return 'node' if call[2:4] == ['tpu-vm', 'describe'] else call[3]


def _at(items: list, index: int, default):
    """The item with this index, or the last one."""
    return items[min(index, len(items) - 1)] if items else default


def _make(folder, scenario: dict, state: dict, name: str, slices: int) -> None:
    number = state['made']
    state['made'] += 1
    nodes = [name] if slices == 1 else [f'{name}-{i}' for i in range(slices)]
    states = _at(scenario.get('states', []), number, ['ACTIVE'])
    state['slices'][name] = {'number': number, 'nodes': nodes, 'states': list(states)}
    for node in nodes:
        for worker in range(scenario.get('workers', 2)):
            plan = f'{folder}/homes/{number + 1}-{node}-w-{worker}/plan'
            os.makedirs(plan)
            exits = _at(scenario.get('exits', []), number, [0])
            files = {
                'exit': _at(exits, worker, 0),
                'steps': _at(scenario.get('steps', []), number, 1),
            }
            for file, value in (files | dict.fromkeys(scenario.get('plan', []), '')).items():
                with open(f'{plan}/{file}', 'w') as out:
                    out.write(str(value))


def _kill(folder) -> None:
    import glob

    for path in glob.glob(f'{folder}/homes/*/jaxtrain-runs/*/pid'):
        if not os.path.exists(f'{os.path.dirname(path)}/exit'):
            with contextlib.suppress(ProcessLookupError, ValueError), open(path) as pid:
                os.killpg(int(pid.read()), signal.SIGKILL)


def _fail(text: str) -> None:
    sys.stderr.write(f'some other line\nERROR: (gcloud.compute.tpus) {text}\n  detail: more\n')
    sys.exit(1)


def main(folder: str, argv: list[str]) -> None:
    """Does what gcloud does."""
    with open(f'{folder}/log.jsonl', 'a') as log:
        log.write(json.dumps(argv) + '\n')
    scenario, state = _read(folder, 'scenario'), _read(folder, 'state')
    verb = _verb(argv)
    count = state['counts'].get(verb, 0)
    state['counts'][verb] = count + 1
    if verb == 'ssh' and scenario.get('preempt') == count:
        _kill(folder)
        for one in state['slices'].values():
            one['states'] = ['SUSPENDED']
        if scenario.get('vanish'):
            state['slices'] = {}
    error = dict(enumerate(scenario.get('errors', {}).get(verb, []))).get(count)
    time.sleep(scenario.get('sleeps', {}).get(verb, 0))
    flags = dict(word[2:].split('=', 1) for word in argv if word.startswith('--') and '=' in word)
    try:
        if error:
            _fail(error)
        _act(folder, scenario, state, verb, argv, flags, count)
    finally:
        _write(folder, 'state', state)


def _act(folder, scenario, state, verb, argv, flags, count) -> None:
    slices = state['slices']
    name = (argv[5] if verb == 'scp' else argv[4]).split(':')[0]
    if verb == 'create':
        if name in slices:
            _fail('ALREADY_EXISTS: Resource already exists')
        _make(folder, scenario, state, name, int(flags.get('node-count', 1)))
        return
    if verb in ('describe', 'delete'):
        if name not in slices:
            _fail(f"NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/{name}' not found")
        if verb == 'delete':
            assert '--force' in argv
            _kill(folder)
            del slices[name]
            return
        one = slices[name]
        now = one['states'].pop(0) if len(one['states']) > 1 else one['states'][0]
        spec = {'nodeId': name}
        if len(one['nodes']) > 1:
            spec = {'multisliceParams': {'nodeCount': len(one['nodes']), 'nodeIdPrefix': name}}
        answer = {'state': {'state': now}, 'tpu': {'nodeSpec': [spec]}}
        if now == 'FAILED':
            answer['state']['failedData'] = {'error': {'message': 'no such topology'}}
        print(json.dumps(answer))
        return
    one = next((one for one in slices.values() if name in one['nodes']), None)
    gone = one is None or one['states'][0] in ('SUSPENDED', 'FAILED')
    workers = range(scenario.get('workers', 2))
    homes = [f'{folder}/homes/{one["number"] + 1}-{name}-w-{i}' for i in workers] if one else []
    if verb == 'node':
        if one is None:
            _fail(f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{name}' was not found")
        answer = {'state': 'PREEMPTED' if gone else 'READY', 'networkEndpoints': [{}] * len(homes)}
        print(json.dumps(answer))
        return
    if gone:
        _fail('This TPU has terminal state "PREEMPTED", so it cannot be used anymore.')
    if flags['worker'] != 'all':
        homes = [homes[int(flags['worker'])]]
    failed = dict(enumerate(scenario.get('unreachable' if verb == 'ssh' else 'damaged', [])))
    failed = failed.get(count, [])
    if verb == 'scp':
        with open(argv[4], 'rb') as source:
            data = source.read()
        for i, home in enumerate(homes):
            with open(f'{home}/{argv[5].split(":")[1]}', 'wb') as target:
                target.write(b'other' if i in failed else data)
        return
    import subprocess

    running = []
    for i, home in enumerate(homes):
        if i not in failed:
            host = os.path.basename(home)[2:]
            env = {'HOME': home, 'PATH': f'{folder}/tools', 'HOSTNAME_': host}
            command = [f'{folder}/tools/bash', '-c', flags['command']]
            pipe = subprocess.PIPE
            running.append(subprocess.Popen(command, env=env, cwd='/', stdout=pipe, stderr=pipe))
    print('Using ssh batch size of 1.', file=sys.stderr)
    codes = [255] * bool(failed)
    for process in running:
        out, err = process.communicate()
        sys.stdout.write(out.decode())
        sys.stderr.write(err.decode())
        codes.append(process.returncode)
    if any(codes):
        sys.stderr.write('ssh: connect to host 10.0.0.2 port 22: Connection refused\n')
        sys.exit(max(codes))
