"""Plans of small configs, on this machine's CPU and for TPU slices that are not there."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxtrain.config import Config
from jaxtrain.costs import aot
from jaxtrain.costs.aot import Measured, measure, needed
from jaxtrain.costs.chips import CHIPS
from jaxtrain.costs.flops import Flops
from jaxtrain.errors import UserError
from jaxtrain.inspection import suggest, suggest_text
from jaxtrain.inspection.plan import Plan, group_sizes, plan
from jaxtrain.inspection.plan_text import quantity, to_json, to_text
from jaxtrain.loop.job import make_job
from jaxtrain.parallel.compile import trace_step
from tests.configs.tiny import get_config
from tests.conftest import ROOT, TINY, needs_libtpu

CHIP = CHIPS['TPU v5e']


def config(**changes) -> Config:
    return Config(get_config().to_dict()).replace(**changes)


@pytest.fixture
def no_compiler(monkeypatch):
    def compile(*_):
        raise AssertionError('compiled')

    monkeypatch.setattr(jax.stages.Lowered, 'compile', compile)


def test_here_on_cpu():
    cfg = config(groups=(('backbone/.*', 'frozen'), ('head/.*', 'head')))
    found = plan(cfg, price=3.0)
    head = 16 * 10 + 10
    assert found.groups['head']['parameters'] == head
    assert found.groups['head']['params'] == 4 * head
    assert found.groups['head']['optimizer'] == 2 * 4 * head  # Adam's moments.
    assert found.groups['frozen']['optimizer'] == 0
    held = sum(row['per_device'] for row in found.groups.values())
    batch = 32 * (8 * 8 + 4)
    assert found.compiled.memory['arguments'] == pytest.approx(held + batch, abs=64)
    assert found.compiled.peak_bytes >= held
    assert found.fits is None and not found.seconds and not found.outlook
    assert to_json(found)['chip'] is None
    assert 'MFU             -' in to_text(found)


def test_a_second_plan_compiles_nothing(request):
    before = plan(config())
    request.getfixturevalue('no_compiler')
    assert plan(config()) == before
    with pytest.raises(AssertionError, match='compiled'):
        plan(config(batch_size=16))


def test_it_compiles_the_program_that_train_runs(jaxtrain, tmp_path, monkeypatch):
    trained = []

    def spy(*args):
        traced = trace_step(*args)
        trained.append(traced.lower().as_text())
        return traced

    monkeypatch.setattr('jaxtrain.parallel.compile.trace_step', spy)
    jaxtrain('train', f'--config={TINY}', '--config.steps=2', f'--workdir={tmp_path}')
    planned = []
    monkeypatch.setattr(
        'jaxtrain.inspection.plan.aot.measure',
        lambda lowered, *_: planned.append(lowered.as_text()),
    )
    plan(config(steps=2))
    assert planned == trained


def test_bytes_of_a_state_that_is_not_cut_up():
    job = make_job(config(ema=0.9))
    whole = group_sizes(job)['all']
    assert whole['per_device'] == whole['params'] + whole['optimizer'] + whole['ema']
    assert whole['ema'] == whole['params']


MEASURED = Measured(
    digest='', seconds=1.0, peak_bytes=2**30, memory={}, overflow='', flops=1e12,
    bytes_accessed=1e9,
    collectives={
        'all-reduce': {'count': 1, 'bytes': int(1e9)},
        'between slices': {'count': 1, 'bytes': int(1e8)},
    },
    cycles=int(15e6), unknown_loops=0,
)  # fmt: skip
PLAN = Plan(
    devices='', chip=CHIP, mesh={'data': 4, 'fsdp': 2, 'tensor': 1}, batch_size=100, accumulate=1,
    remat='none', steps=3600, tokens=10, groups={}, flops=Flops(matmul=16e12), model_flops=8e12,
    compiled=MEASURED, price=2.0,
)  # fmt: skip


def test_estimates_are_what_the_figures_give():
    seconds = PLAN.seconds
    assert seconds['flops'] == pytest.approx(16e12 / 8 / 197e12)
    # The compiler saw half of the operations of a device, in a loop, and so half of the bytes.
    assert seconds['memory'] == pytest.approx(2 * 1e9 / 819e9)
    assert seconds['messages'] == pytest.approx(2 * 1e9 / 200e9 + 1e8 / 3.125e9)
    assert seconds['roofline'] == pytest.approx(16e12 / 8 / 197e12 + seconds['messages'])
    assert seconds['cycles'] == pytest.approx(15e6 / 1.5e9 + seconds['messages'])
    outlook, step = PLAN.outlook, seconds['cycles']
    assert outlook['mfu'] == pytest.approx(8e12 / step / (8 * 197e12))
    assert outlook['tokens_per_second'] == pytest.approx(1000 / step)
    assert outlook['hours'] == pytest.approx(step)
    assert outlook['cost'] == pytest.approx(step * 8 * 2.0)
    assert PLAN.intensity == pytest.approx(1e3)
    # The compiler counts one device; all other counts are over all devices.
    operations = to_json(PLAN)['flops']
    assert (operations['matmul'], operations['model']) == (16e12, 8e12)
    assert operations['compiler'] == 8 * 1e12


def test_what_is_computed_anew_is_no_work_of_the_model(monkeypatch):
    monkeypatch.setattr('jaxtrain.inspection.plan.aot.measure', lambda *_: MEASURED)

    def planned(remat):
        vit = {'name': 'vit', 'patch': (4, 4), 'width': 8, 'depth': 1, 'heads': 1, 'mlp': 8}
        return plan(Config(get_config().to_dict() | {'model': {**vit, 'remat': remat}}))

    plain, saving = planned('none'), planned('full')
    assert saving.flops.matmul > plain.flops.matmul
    assert saving.model_flops == plain.model_flops == plain.flops.matmul


def test_more_than_the_memory_does_not_fit():
    def at(peak):
        return dataclasses.replace(
            PLAN, compiled=dataclasses.replace(MEASURED, peak_bytes=int(peak))
        )

    assert at(CHIP.hbm_bytes).fits
    assert not at(CHIP.hbm_bytes + 1).fits


def test_what_the_compiler_says_is_needed():
    words = 'RESOURCE_EXHAUSTED: ... (33.54G) exceeds available HBM (15.75G).'
    assert needed(words) == int(33.54 * 2**30)


def test_quantities():
    assert [quantity(x) for x in (0, 999, 1234567, 2e12)] == ['0 ', '999 ', '1.235 M', '2 T']


# A program that ends the process that compiles it, or says when it does so and waits.
CRASHES = """
import os, signal, sys, types
from jaxtrain.costs import aot
def compile():
    if sys.argv[1] == 'crash':
        os.kill(os.getpid(), signal.SIGSEGV)
    print('compiling', flush=True)
    input()
lowered = types.SimpleNamespace(as_text=lambda: 'a program', compile=compile)
aot.measure(lowered, 'devices', True, lambda text: None)
"""


def compiling(how: str) -> subprocess.Popen:
    words = [sys.executable, '-c', CRASHES, how]
    return subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def program(tmp_path, monkeypatch):
    """What `CRASHES` compiles, with nothing remembered; to be compiled here too."""
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'xla'))
    real = jax.jit(lambda x: x + 1).lower(1.0)
    return SimpleNamespace(as_text=lambda: 'a program', compile=real.compile)


def measured(program) -> Measured:
    return measure(program, 'devices', True, lambda text: None)


def test_a_program_that_crashes_the_compiler_is_not_compiled_again(program):
    assert compiling('crash').wait() == -signal.SIGSEGV
    for _ in range(2):
        with pytest.raises(UserError, match='crashed, or was killed.*to try the same again') as e:
            measured(program)
    Path(str(e.value).split()[-1]).unlink()
    assert measured(program).memory
    assert [path.suffix for path in aot.folder().iterdir()] == ['.json']


def test_two_may_compile_the_same(program):
    other = compiling('wait')
    assert other.stdout.readline() == 'compiling\n'
    found = measured(program)
    other.kill()
    assert measured(program) == found  # which is not compiled again, whatever became of the other


def test_an_error_of_the_compiler_is_no_crash(program):
    def fail():
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measured(SimpleNamespace(as_text=program.as_text, compile=fail))
    assert measured(program).memory


@needs_libtpu
def test_for_a_slice_that_is_not_there():
    cache = Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
    kept = set(cache.glob('*train_step*'))
    found = plan(config(mesh__fsdp=2), 'v5e:2x2', price=1.0)
    kernels = [leaf for leaf in jax.tree.leaves(make_job(config()).abstract.params)]
    assert found.chip == CHIP and found.fits
    assert found.mesh == {'data': 2, 'fsdp': 2, 'tensor': 1}
    cut = sum(leaf.size * (1 if leaf.ndim == 1 else 0.5) for leaf in kernels)
    assert found.groups['all']['per_device'] == 3 * 4 * cut
    assert found.flops == plan(config()).flops
    assert found.compiled.cycles and found.compiled.collectives
    assert set(cache.glob('*train_step*')) == kept  # JAX could not load it again.
    report = json.loads(json.dumps(to_json(found)))
    assert report['seconds']['step'] > report['seconds']['flops']
    assert report['cost'] == report['device_hours']


@needs_libtpu
def test_a_step_that_does_not_fit_is_told_and_not_an_error():
    cfg = Config(get_config().to_dict()).updated(model={'hidden': (40_000, 40_000)})
    found = plan(cfg, 'v5e:2x2')
    assert found.fits is False and not found.seconds
    assert found.compiled.peak_bytes > CHIP.hbm_bytes
    assert 'does not fit' in to_text(found)


@pytest.mark.parametrize(
    'options, words',
    [
        ({'slices': 2}, '--topology'),
        ({'price': -1.0}, 'negative'),
        ({'topology': 'v5e'}, 'GENERATION:SHAPE'),
    ],
)
def test_wrong_input(options, words):
    with pytest.raises(UserError, match=words):
        plan(config(), **options)


def test_a_key_that_nothing_reads_is_an_error():
    with pytest.raises(UserError, match='config.data.length=64 was set, but nothing'):
        plan(config(data__length=64))


def test_data_that_is_not_here_is_planned_for_and_not_fetched(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError('fetched')

    monkeypatch.setattr('requests.Session.request', fetch)
    found = plan(
        config(
            data__name='cifar10', data__val='', data__limit=0, data__crop=0.5, steps=0, epochs=2.0
        )
    )
    assert found.steps == math.ceil(2 * 50_000 / 32)
    assert found.compiled.memory['arguments'] > 32 * 32 * 32 * 3


def test_suggestions_need_figures():
    with pytest.raises(UserError, match='no figures are known'):
        suggest.suggest(config())


@dataclasses.dataclass
class Pretended:
    """A job on 16 devices: bytes and seconds follow from how it is run, in shares of the memory."""

    fsdp: int
    remat: str
    accumulate: int
    batch: float  # In batches of the config's.
    state: float  # On one device; fsdp cuts it up.
    activations: float  # Of a whole batch without remat.
    fixed: float  # Seconds that a step takes whatever its batch, in those of the config's.

    def groups(self) -> dict:
        return {'all': {'per_device': self.state / self.fsdp * CHIP.hbm_bytes}}

    def plan(self) -> Plan:
        kept = {'none': 1.0, 'dots': 0.6, 'full': 0.3}[self.remat] * self.batch / self.accumulate
        slower = {'none': 1.0, 'dots': 1.1, 'full': 1.3}[self.remat]
        peak = self.state / self.fsdp + self.activations * kept
        cycles = 1e7 * slower * (1 + 0.02 * self.fsdp) * (1 + 0.01 * self.accumulate)
        cycles *= self.fixed + self.batch
        compiled = dataclasses.replace(
            MEASURED, peak_bytes=int(peak * CHIP.hbm_bytes), cycles=int(cycles), collectives={}
        )
        return dataclasses.replace(
            PLAN, remat=self.remat, accumulate=self.accumulate, groups=self.groups(),
            compiled=compiled, batch_size=int(32 * self.batch),
        )  # fmt: skip


@pytest.fixture
def pretend(monkeypatch):
    """(state, activations, ...) -> (the suggestion, what was compiled with the config's batch as
    (fsdp, remat, accumulate), and what with others as (batch, steps, fsdp, remat, accumulate)).
    """

    def run(state: float, activations: float, fixed: float = 0.0, crashes=(), **changes):
        compiled, others, steps = [], [], {}

        def make(cfg, devices, **options):
            own = cfg.mesh.fsdp, cfg.model.remat, cfg.accumulate, cfg.batch_size / 32
            steps[cfg.batch_size / 32] = cfg.steps
            return Pretended(*own, state, activations, fixed)

        def of_job(job, *_):
            own = job.fsdp, job.remat, job.accumulate
            if job.batch == 1:
                compiled.append(own)
            else:
                others.append((job.batch, steps[job.batch], *own))
            if own in crashes:
                raise UserError('crashed')
            return job.plan()

        monkeypatch.setattr(suggest, 'find_devices', lambda *_: [jax.devices()[0]] * 16)
        monkeypatch.setattr(suggest, 'make_job', make)
        monkeypatch.setattr(suggest, 'prepare', make)
        monkeypatch.setattr(suggest, 'group_sizes', Pretended.groups)
        monkeypatch.setattr(suggest, 'of_job', of_job)
        cfg = config(**changes)
        return suggest.suggest(cfg.updated(model={'remat': 'none'})), compiled, others

    return run


def test_suggest_takes_the_fastest_that_fits(pretend):
    found, compiled, _ = pretend(state=1.6, activations=1.1)
    # Alone on a device the state does not fit, which takes no compiling; cut in 4 it leaves 0.6 of
    # the memory, in 16 it leaves 0.9, enough for `dots`.
    assert {own for own in compiled if own[0] == 1} == {(1, 'none', 1)}
    assert (4, 'none', 2) in compiled
    assert (16, 'dots', 1) in compiled and (16, 'full', 1) not in compiled
    fitting = [t for t in found.trials if t.fits and 'batch_size' not in t.changes]
    assert found.best.plan.seconds['step'] == min(t.plan.seconds['step'] for t in fitting)
    assert found.best.flags == '--config.mesh.fsdp=4 --config.accumulate=2'
    assert suggest_text.to_text(found).endswith(f'\nfastest with this batch: {found.best.flags}')
    assert suggest_text.to_json(found)['flags'] == found.best.flags


def test_suggest_goes_on_after_what_crashes_the_compiler(pretend):
    found, compiled, _ = pretend(state=1.6, activations=1.1, crashes=[(4, 'none', 2)])
    assert (4, 'none', 2) in compiled and found.best.flags and found.best.plan.accumulate != 2
    assert {'crashed'} == {trial.reason for trial in found.trials if trial.reason[:5] == 'crash'}
    assert 'cannot be run' in suggest_text.to_text(found)


def test_suggest_leaves_out_what_cannot_fit(pretend):
    """Half of the activations would take twice the memory, so the compiler is not asked."""
    _, compiled, _ = pretend(state=0.0, activations=4.0)
    assert (1, 'none', 2) not in compiled
    assert (1, 'none', 4) in compiled


def test_suggest_says_so_if_the_config_is_the_best(pretend):
    found, compiled, others = pretend(state=0.1, activations=0.1)
    assert compiled == [(1, 'none', 1), (4, 'none', 1), (16, 'none', 1)]
    assert others == [(2, 10, 1, 'none', 1)]  # Takes twice as long.
    assert found.best.flags == '' and found.other is None
    assert suggest_text.to_text(found).endswith('fastest with this batch: the config as it is')
    assert (
        suggest_text.to_json(found)['flags'] == ''
        and suggest_text.to_json(found)['batch_flags'] is None
    )


def test_suggest_tries_larger_batches_as_long_as_they_are_faster(pretend):
    found, _, others = pretend(state=0.1, activations=0.3, fixed=1.0)
    assert [own[:2] for own in others] == [(2, 10), (4, 5)]  # Four do not fit.
    assert found.best.flags == ''
    assert found.other.flags == '--config.batch_size=64 --config.steps=10'
    assert found.other.speed == pytest.approx(found.best.speed * 4 / 3)
    assert '1.333 times as many examples per second, with another batch: --config.b' in (
        suggest_text.to_text(found)
    )
    assert suggest_text.to_json(found)['batch_flags'] == found.other.flags


def test_suggest_leaves_epochs_as_they_are(pretend):
    found, _, _ = pretend(state=0.1, activations=0.1, fixed=1.0, steps=0, epochs=2.0)
    assert found.other.flags == '--config.batch_size=256'


def test_suggest_tries_a_smaller_batch_that_saves_what_costs_time(pretend):
    found, _, others = pretend(state=0.1, activations=3.4)
    assert found.best.flags == '--config.accumulate=4'
    assert others == [(2, 10, 1, 'none', 4), (0.25, 80, 1, 'none', 1)]  # Half of it cannot fit.
    assert found.other.flags == '--config.batch_size=8 --config.steps=80'


def test_suggest_finds_a_batch_that_fits_where_the_own_one_does_not(pretend):
    found, _, others = pretend(state=0.5, activations=32.0)
    assert found.best is None and found.other.fits
    # With full remat an eighth would take 1.2 times the memory, and the state some more.
    assert [(own[0], *own[3:]) for own in others] == [(1 / 16, 'full', 1)]
    assert 'none fits with this batch\n' in suggest_text.to_text(found)
    assert suggest_text.to_json(found)['flags'] is None


def test_suggest_knows_that_no_batch_helps_a_state_that_does_not_fit(pretend):
    found, compiled, others = pretend(state=20.0, activations=0.1)
    assert (compiled, others) == ([(1, 'none', 1)], [])
    assert 'none of them fits: take more devices' in suggest_text.to_text(found)


def test_suggest_says_so_if_nothing_fits_and_does_not_try_for_ever(pretend, monkeypatch):
    monkeypatch.setattr(suggest, 'MARGIN', 1e9)
    found, compiled, others = pretend(state=0.9, activations=4000.0)
    assert found.best is None and found.other is None
    assert len(compiled) == len(set(compiled)) == suggest.COMPILES
    assert [own[0] for own in others] == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert {own[0] for own in compiled} == {1, 4, 16}
    assert 'none of them fits' in suggest_text.to_text(found)
