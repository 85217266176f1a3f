"""launch/slurm.sbatch with fakes of srun, scancel and scontrol, which record their calls."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.launch.test_local import LONG, PROGRAM, READY, WAITS
from tests.support.fakes import hear_signals

SCRIPT = ROOT / 'launch' / 'slurm.sbatch'

NOTE = f"""#!{sys.executable} -S
import json, os, signal, subprocess, sys, time
folder = os.environ['FAKE']
name = os.path.basename(sys.argv[0])
with open(folder + '/calls', 'a') as calls:
    calls.write(json.dumps([name, *sys.argv[1:]]) + '\\n')
"""

# Like the real srun it kills its tasks when it gets SIGTERM, and exits with their highest code.
# Each task is a process group; the file `step` has their ids, for scancel.
SRUN = (
    NOTE
    + """
if 'SRUN_ERROR' in os.environ:
    sys.exit(int(os.environ['SRUN_ERROR']))
count = int(os.environ['TASKS'])
words = sys.argv[1:]
while words[0].startswith('--'):
    words = words[1:]
tasks = []

def kill(*_):
    for task in tasks:
        os.killpg(task.pid, signal.SIGKILL)
signal.signal(signal.SIGTERM, kill)

time.sleep(float(os.environ.get('SETUP', '0')))
for number in range(count):
    env = dict(os.environ, SLURM_PROCID=str(number), SLURM_STEP_NUM_TASKS=str(count))
    tasks.append(subprocess.Popen(words, env=env, start_new_session=True))
with open(folder + '/step.new', 'w') as step:
    step.write(' '.join(str(task.pid) for task in tasks))
os.rename(folder + '/step.new', folder + '/step')
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
)
SCANCEL = (
    NOTE
    + """
if not os.path.exists(folder + '/step'):
    sys.exit('scancel: error: Invalid job step id specified')
(sent,) = [word.split('=')[1] for word in sys.argv if word.startswith('--signal=')]
for pid in open(folder + '/step').read().split():
    try:
        os.killpg(int(pid), getattr(signal, 'SIG' + sent))
    except ProcessLookupError:
        pass
"""
)
SCONTROL = (
    NOTE
    + """
if sys.argv[1:3] == ['show', 'hostnames']:
    assert sys.argv[3] == 'node[7-8]'
    print('node7\\nnode8')
elif sys.argv[1:3] == ['show', 'job']:
    print('JobId=' + sys.argv[3] + ' JobName=x')
    print('   JobState=' + os.environ['STATE'] + ' Reason=None')
elif sys.argv[1] == 'requeue':
    sys.exit(int(os.environ.get('REQUEUE_ERROR', '0')))
"""
)

WORDS = ('--config=c.py:full', '--workdir=a b', "--config.x=(('$HOME', 1),)")
SAVES = [['on_term', 42], READY, LONG]


class Job:
    def __init__(self, folder: Path):
        self.folder = folder
        programs = folder / 'bin'
        programs.mkdir()
        texts = {'srun': SRUN, 'scancel': SCANCEL, 'scontrol': SCONTROL, 'python': PROGRAM}
        for name, text in texts.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        foreign = ('SLURM', 'SRUN', 'PORT', 'MAX_RESTARTS', 'PYTHONUNBUFFERED')
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        self.env = inherited | {
            'PATH': f'{programs}:{os.environ["PATH"]}',
            'PYTHON': str(programs / 'python'),
            'FAKE': str(folder),
            'STATE': 'RUNNING',
            'SLURM_JOB_ID': '4711',
            'SLURM_JOB_NODELIST': 'node[7-8]',
        }

    def start(self, play: list, **env: str) -> subprocess.Popen:
        """Starts the script as sbatch would; `play` has the steps of each task's program."""
        return subprocess.Popen(
            ['bash', str(SCRIPT), *WORDS],
            env=self.env | {'PLAY': json.dumps(play), 'TASKS': str(len(play))} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            preexec_fn=hear_signals,
        )

    def finish(self, process) -> subprocess.CompletedProcess:
        out, err = process.communicate(timeout=WAITS)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def __call__(self, play: list, **env: str):
        return self.finish(self.start(play, **env))

    def calls(self, *start: str) -> list[list[str]]:
        """The calls that start with these words."""
        lines = (self.folder / 'calls').read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[: len(start)] == list(start)]

    @property
    def requeues(self) -> int:
        return len(self.calls('scontrol', 'requeue', '4711'))

    def wait_for(self, process, times: int) -> None:
        for _ in range(times):
            assert process.stdout.readline() == 'ready\n'


@pytest.fixture
def job(tmp_path):
    job = Job(tmp_path)
    yield job
    step = tmp_path / 'step'
    for pid in step.read_text().split() if step.exists() else ():  # left over by a test that failed
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


def options() -> set[str]:
    """The options for sbatch, which reads them up to the first command."""
    options = set()
    for line in SCRIPT.read_text().splitlines():
        if line.startswith('#SBATCH '):
            options.add(line.removeprefix('#SBATCH '))
        elif line and not line.startswith('#'):
            break
    return options


def test_options_for_sbatch():
    assert options() >= {
        '--requeue',
        '--open-mode=append',
        '--signal=B:TERM@120',
        '--ntasks-per-node=1',
    }


def test_finished(job):
    done = job([[], []])
    assert done.returncode == 0
    assert job.requeues == 0
    assert len(job.calls('srun')) == 1
    assert job.calls('scancel') == []


def test_each_task_gets_its_number(job):
    done = job([[['argv']]] * 3)
    arguments = sorted(json.loads(line) for line in done.stdout.splitlines())
    assert arguments == sorted(
        ['--coordinator=node7:24711', '--processes=3', f'--process={number}', *WORDS]
        for number in range(3)
    )


def test_one_task_needs_no_coordinator(job):
    assert json.loads(job([[['argv']]]).stdout) == list(WORDS)


def test_port(job):
    """Jobs with consecutive ids may share a host."""
    ports = set()
    for env in ({'SLURM_JOB_ID': '39999'}, {'SLURM_JOB_ID': '40000'}, {'PORT': '1234'}):
        ports |= set(re.findall(r'--coordinator=node7:(\d+)', job([[['argv']]] * 2, **env).stdout))
    assert ports == {'29999', '20000', '1234'}


def test_srun_does_not_end_the_other_tasks(job):
    """By the defaults of a site, one task's failure may kill the others at once."""
    job([[], []])
    (call,) = job.calls('srun')
    assert call[1:4] == ['--kill-on-bad-exit=0', '--wait=0', 'bash']


def test_cpus_per_task_reach_srun(job):
    done = job([[['env', 'SRUN_CPUS_PER_TASK']]], SLURM_CPUS_PER_TASK='16')
    assert done.stdout == '16\n'


def test_42_is_requeued(job):
    done = job([[['exit', 42]], [['exit', 42]]])
    assert done.returncode == 42
    assert job.requeues == 1


def test_42_of_some_is_requeued(job):
    done = job([[], [['exit', 42]]])
    assert done.returncode == 42
    assert job.requeues == 1


@pytest.mark.parametrize('code', [1, 2, 41, 43, 134])
@pytest.mark.parametrize('others', [[], [['exit', 42]]], ids=['alone', 'with 42'])
def test_crash_and_wrong_input_are_not_requeued(job, code, others):
    """Although 1 and 2 are less than 42, and srun returns the highest code."""
    done = job([others, [['exit', code]]])
    assert done.returncode == code
    assert job.requeues == 0


def test_killed_task_is_not_requeued(job):
    done = job([[['exit', 42]], [['kill', signal.SIGKILL]]])
    assert done.returncode == 137
    assert job.requeues == 0


def test_error_of_srun_is_not_requeued(job):
    done = job([[]], SRUN_ERROR='1')
    assert done.returncode == 1
    assert job.requeues == 0


def test_term_reaches_all_tasks(job):
    """Like the real one, the fake srun kills its tasks if it gets the signal itself."""
    process = job.start([SAVES] * 3)
    job.wait_for(process, 3)
    process.send_signal(signal.SIGTERM)
    done = job.finish(process)
    assert done.stdout.splitlines() == ['saved'] * 3
    assert done.returncode == 42
    assert job.calls('scancel') == [['scancel', '--signal=TERM', '4711.0']]
    assert job.requeues == 1


def test_more_signals_while_it_saves(job):
    """Slurm may send SIGTERM for the time limit, for a preemption, and when the job ends."""
    process = job.start([[['on_term', 42, 0.8], READY, LONG]] * 2)
    job.wait_for(process, 2)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    done = job.finish(process)
    assert done.returncode == 42
    assert len(job.calls('scancel')) == 1
    assert job.requeues == 1


def test_term_while_the_step_is_set_up(job):
    """scancel does not find the step yet."""
    process = job.start([SAVES, SAVES], SETUP='2')
    while not (job.folder / 'calls').exists() or not job.calls('srun'):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    done = job.finish(process)
    assert len(job.calls('scancel')) > 1
    assert done.returncode == 42
    assert job.requeues == 1


def test_term_before_a_task_can_save(job):
    process = job.start([[READY, LONG], SAVES])
    job.wait_for(process, 2)
    process.send_signal(signal.SIGTERM)
    assert job.finish(process).returncode == 42
    assert job.requeues == 1


def test_143_without_a_request_is_not_requeued(job):
    assert job([[['kill', signal.SIGTERM]]]).returncode == 143
    assert job.requeues == 0


def test_crash_while_stopping_is_not_requeued(job):
    process = job.start([SAVES, [['on_term', 1], READY, LONG]])
    job.wait_for(process, 2)
    process.send_signal(signal.SIGTERM)
    assert job.finish(process).returncode == 1
    assert job.requeues == 0


@pytest.mark.parametrize(
    'env, requeues',
    [
        ({'SLURM_RESTART_COUNT': '19'}, 1),
        ({'SLURM_RESTART_COUNT': '20'}, 0),
        ({'SLURM_RESTART_COUNT': '2', 'MAX_RESTARTS': '3'}, 1),
        ({'SLURM_RESTART_COUNT': '3', 'MAX_RESTARTS': '3'}, 0),
        ({'MAX_RESTARTS': '0'}, 0),
    ],
)
def test_restarts_are_bounded(job, env, requeues):
    done = job([[['exit', 42]]], **env)
    assert done.returncode == 42
    assert job.requeues == requeues
    assert ('MAX_RESTARTS' in done.stderr) == (not requeues)


@pytest.mark.parametrize('state', ['CANCELLED', 'COMPLETING', 'PREEMPTED'])
def test_cancelled_job_stays_cancelled(job, state):
    assert job([[['exit', 42]]], STATE=state).returncode == 42
    assert job.requeues == 0


def test_requeue_that_fails_is_reported(job):
    done = job([[['exit', 42]]], REQUEUE_ERROR='1')
    assert done.returncode == 42
    assert 'submit the same command again' in done.stderr


@pytest.mark.parametrize('words, missing', [((), ''), (WORDS, 'SLURM_JOB_ID')])
def test_wrong_use(job, words, missing):
    env = {k: v for k, v in job.env.items() if k != missing}
    done = subprocess.run(['bash', SCRIPT, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and 'usage: sbatch' in done.stderr
