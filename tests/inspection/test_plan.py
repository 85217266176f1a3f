"""Plans of small configs, for this machine's CPU and for TPU slices that are not attached."""

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
from jaxtrain.config.files import load
from jaxtrain.costs import aot
from jaxtrain.costs.aot import Measured, measure, needed
from jaxtrain.costs.chips import CHIPS
from jaxtrain.costs.flops import Flops
from jaxtrain.errors import UserError
from jaxtrain.inspection import suggest, suggest_text
from jaxtrain.inspection.plan import Plan, Target, find_target, group_sizes, plan
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


def test_a_plan_for_this_cpu(pretrained):
    cfg = load(f'{TINY}:linear', [f'--config.init_from={pretrained}'])
    result = plan(cfg, find_target(price=3.0))
    head = 16 * 10 + 10
    assert result.groups['head']['parameters'] == head
    assert result.groups['head']['params'] == 4 * head
    assert result.groups['head']['optimizer'] == 2 * 4 * head  # Adam's moments.
    assert result.groups['frozen']['optimizer'] == 0
    held = sum(row['per_device'] for row in result.groups.values())
    batch = 32 * (8 * 8 + 4)
    assert result.compiled.memory['arguments'] == pytest.approx(held + batch, abs=64)
    assert result.compiled.peak_bytes >= held
    assert result.fits is None and not result.seconds and not result.outlook
    assert to_json(result)['chip'] is None
    assert 'MFU             -' in to_text(result)


def test_a_second_plan_compiles_nothing(request):
    before = plan(config(), find_target())
    request.getfixturevalue('no_compiler')
    assert plan(config(), find_target()) == before
    with pytest.raises(AssertionError, match='compiled'):
        plan(config(batch_size=16), find_target())


def test_plan_compiles_the_program_that_train_runs(jaxtrain, tmp_path, monkeypatch):
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
    plan(config(steps=2), find_target())
    assert planned == trained


def test_bytes_of_a_state_that_is_not_sharded():
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


def test_estimates_follow_from_the_figures():
    seconds = PLAN.seconds
    assert seconds['flops'] == pytest.approx(16e12 / 8 / 197e12)
    # The compiler counts half of the operations of a device, because of a loop, and so half of the
    # bytes.
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
    # The compiler counts operations per device; all other counts are over all devices.
    operations = to_json(PLAN)['flops']
    assert (operations['matmul'], operations['model']) == (16e12, 8e12)
    assert operations['compiler'] == 8 * 1e12


def test_recomputed_operations_are_not_operations_of_the_model(monkeypatch):
    monkeypatch.setattr('jaxtrain.inspection.plan.aot.measure', lambda *_: MEASURED)

    def planned(remat):
        vit = {'name': 'vit', 'patch': (4, 4), 'width': 8, 'depth': 1, 'heads': 1, 'mlp': 8}
        cfg = Config(get_config().to_dict() | {'model': {**vit, 'remat': remat}})
        return plan(cfg, find_target())

    plain, saving = planned('none'), planned('full')
    assert saving.flops.matmul > plain.flops.matmul
    assert saving.model_flops == plain.model_flops == plain.flops.matmul


def test_a_peak_above_the_memory_does_not_fit():
    def at(peak):
        return dataclasses.replace(
            PLAN, compiled=dataclasses.replace(MEASURED, peak_bytes=int(peak))
        )

    assert at(CHIP.hbm_bytes).fits
    assert not at(CHIP.hbm_bytes + 1).fits


def test_the_memory_that_the_compiler_needs():
    message = 'RESOURCE_EXHAUSTED: ... (33.54G) exceeds available HBM (15.75G).'
    assert needed(message) == int(33.54 * 2**30)


def test_quantities():
    assert [quantity(x) for x in (0, 999, 1234567, 2e12)] == ['0 ', '999 ', '1.235 M', '2 T']


# A program whose compilation kills the process, or reports that it has started and waits.
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
    """The program of `CRASHES` with an empty cache, which this process can compile."""
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


def test_two_processes_may_compile_the_same_program(program):
    other = compiling('wait')
    assert other.stdout.readline() == 'compiling\n'
    result = measured(program)
    other.kill()
    assert measured(program) == result  # cached, although the other process was killed


def test_an_exception_of_the_compiler_is_not_a_crash(program):
    def fail():
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            measured(SimpleNamespace(as_text=program.as_text, compile=fail))
    assert measured(program).memory


@needs_libtpu
def test_a_plan_for_a_slice_that_is_not_attached():
    cache = Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
    kept = set(cache.glob('*train_step*'))
    result = plan(config(mesh__fsdp=2), find_target('v5e:2x2', price=1.0))
    kernels = [leaf for leaf in jax.tree.leaves(make_job(config()).abstract.params)]
    assert result.chip == CHIP and result.fits
    assert result.mesh == {'data': 2, 'fsdp': 2, 'tensor': 1}
    sharded = sum(leaf.size * (1 if leaf.ndim == 1 else 0.5) for leaf in kernels)
    assert result.groups['all']['per_device'] == 3 * 4 * sharded
    assert result.flops == plan(config(), find_target()).flops
    assert result.compiled.cycles and result.compiled.collectives
    assert set(cache.glob('*train_step*')) == kept  # JAX could not load it again
    report = json.loads(json.dumps(to_json(result)))
    assert report['seconds']['step'] > report['seconds']['flops']
    assert report['cost'] == report['device_hours']


@needs_libtpu
def test_a_step_that_does_not_fit_is_reported_without_an_error():
    cfg = Config(get_config().to_dict()).updated(model={'hidden': (40_000, 40_000)})
    result = plan(cfg, find_target('v5e:2x2'))
    assert result.fits is False and not result.seconds
    assert result.compiled.peak_bytes > CHIP.hbm_bytes
    assert 'does not fit' in to_text(result)


@pytest.mark.parametrize(
    'options, text',
    [
        ({'slices': 2}, '--topology'),
        ({'price': -1.0}, 'negative'),
        ({'topology': 'v5e'}, 'GENERATION:SHAPE'),
    ],
)
def test_wrong_input(options, text):
    with pytest.raises(UserError, match=text):
        find_target(**options)


def test_a_key_that_nothing_reads_is_an_error():
    with pytest.raises(UserError, match='config.data.length=64 was set, but nothing'):
        plan(config(data__length=64), find_target())


def test_absent_data_is_planned_for_without_a_download(monkeypatch):
    def fetch(*_, **__):
        raise AssertionError('fetched')

    monkeypatch.setattr('requests.Session.request', fetch)
    result = plan(
        config(
            data__name='cifar10', data__val='', data__limit=0, data__crop=0.5, steps=0, epochs=2.0
        ),
        find_target(),
    )
    assert result.steps == math.ceil(2 * 50_000 / 32)
    assert result.compiled.memory['arguments'] > 32 * 32 * 32 * 3


def test_suggestions_require_figures_of_the_chip():
    with pytest.raises(UserError, match='no figures are known'):
        suggest.suggest(config(), find_target())


@dataclasses.dataclass
class FakeJob:
    """A job on 16 devices whose memory (as a share of a device's) and time are simple formulas."""

    fsdp: int
    remat: str
    accumulate: int
    batch: float  # in multiples of the config's batch
    state: float  # on one device; divided by fsdp
    activations: float  # of a whole batch without remat
    fixed: float  # part of a step's time that does not depend on the batch

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
def search(monkeypatch):
    """(state, activations, ...) -> (the suggestion, the trials that were compiled with the config's
    batch as (fsdp, remat, accumulate), those with others as (batch, steps, fsdp, remat,
    accumulate)).
    """

    def run(state: float, activations: float, fixed: float = 0.0, crashes=(), **changes):
        compiled, others, steps = [], [], {}

        def make(cfg, devices, **options):
            settings = cfg.mesh.fsdp, cfg.model.remat, cfg.accumulate, cfg.batch_size / 32
            steps[cfg.batch_size / 32] = cfg.steps
            return FakeJob(*settings, state, activations, fixed)

        def of_job(job, *_):
            settings = job.fsdp, job.remat, job.accumulate
            if job.batch == 1:
                compiled.append(settings)
            else:
                others.append((job.batch, steps[job.batch], *settings))
            if settings in crashes:
                raise UserError('crashed')
            return job.plan()

        monkeypatch.setattr(suggest, 'make_job', make)
        monkeypatch.setattr(suggest, 'prepare', make)
        monkeypatch.setattr(suggest, 'group_sizes', FakeJob.groups)
        monkeypatch.setattr(suggest, 'of_job', of_job)
        cfg = config(**changes)
        target = Target([SimpleNamespace(device_kind='TPU v5e')] * 16, 1, '16 x TPU v5e', 0.0)
        result = suggest.suggest(cfg.updated(model={'remat': 'none'}), target)
        return result, compiled, others

    return run


def test_suggest_selects_the_fastest_trial_that_fits(search):
    result, compiled, _ = search(state=1.6, activations=1.1)
    # On one device the state does not fit, which is known without compiling; divided by 4 it leaves
    # 0.6 of the memory, by 16 it leaves 0.9, enough for `dots`.
    assert {trial for trial in compiled if trial[0] == 1} == {(1, 'none', 1)}
    assert (4, 'none', 2) in compiled
    assert (16, 'dots', 1) in compiled and (16, 'full', 1) not in compiled
    fitting = [t for t in result.trials if t.fits and 'batch_size' not in t.changes]
    assert result.best.plan.seconds['step'] == min(t.plan.seconds['step'] for t in fitting)
    assert result.best.flags == '--config.mesh.fsdp=4 --config.accumulate=2'
    assert suggest_text.to_text(result).endswith(f'\nfastest with this batch: {result.best.flags}')
    assert suggest_text.to_json(result)['flags'] == result.best.flags


def test_suggest_continues_after_a_crash_of_the_compiler(search):
    result, compiled, _ = search(state=1.6, activations=1.1, crashes=[(4, 'none', 2)])
    assert (4, 'none', 2) in compiled and result.best.flags and result.best.plan.accumulate != 2
    assert {'crashed'} == {trial.reason for trial in result.trials if trial.reason[:5] == 'crash'}
    assert 'cannot be run' in suggest_text.to_text(result)


def test_suggest_skips_trials_that_cannot_fit(search):
    """Half of the activations would take twice the memory, so nothing is compiled for them."""
    _, compiled, _ = search(state=0.0, activations=4.0)
    assert (1, 'none', 2) not in compiled
    assert (1, 'none', 4) in compiled


def test_suggest_reports_that_the_config_is_the_best(search):
    result, compiled, others = search(state=0.1, activations=0.1)
    assert compiled == [(1, 'none', 1), (4, 'none', 1), (16, 'none', 1)]
    assert others == [(2, 10, 1, 'none', 1)]  # takes twice as long
    assert result.best.flags == '' and result.other is None
    assert suggest_text.to_text(result).endswith('fastest with this batch: the unchanged config')
    assert (
        suggest_text.to_json(result)['flags'] == ''
        and suggest_text.to_json(result)['batch_flags'] is None
    )


def test_suggest_tries_larger_batches_while_they_are_faster(search):
    result, _, others = search(state=0.1, activations=0.3, fixed=1.0)
    assert [trial[:2] for trial in others] == [(2, 10), (4, 5)]  # four times the batch does not fit
    assert result.best.flags == ''
    assert result.other.flags == '--config.batch_size=64 --config.steps=10'
    assert result.other.speed == pytest.approx(result.best.speed * 4 / 3)
    assert '1.333 times as many examples per second, with another batch: --config.b' in (
        suggest_text.to_text(result)
    )
    assert suggest_text.to_json(result)['batch_flags'] == result.other.flags


def test_suggest_does_not_change_epochs(search):
    result, _, _ = search(state=0.1, activations=0.1, fixed=1.0, steps=0, epochs=2.0)
    assert result.other.flags == '--config.batch_size=256'


def test_suggest_tries_a_smaller_batch_instead_of_saving_memory(search):
    result, _, others = search(state=0.1, activations=3.4)
    assert result.best.flags == '--config.accumulate=4'
    assert others == [(2, 10, 1, 'none', 4), (0.25, 80, 1, 'none', 1)]  # half the batch cannot fit
    assert result.other.flags == '--config.batch_size=8 --config.steps=80'


def test_suggest_finds_a_batch_that_fits_if_the_configs_does_not(search):
    result, _, others = search(state=0.5, activations=32.0)
    assert result.best is None and result.other.fits
    # With full remat an eighth of the batch would take 1.2 times the memory, besides the state.
    assert [(trial[0], *trial[3:]) for trial in others] == [(1 / 16, 'full', 1)]
    assert 'no trial fits with this batch\n' in suggest_text.to_text(result)
    assert suggest_text.to_json(result)['flags'] is None


def test_suggest_tries_no_batch_if_the_state_does_not_fit(search):
    result, compiled, others = search(state=20.0, activations=0.1)
    assert (compiled, others) == ([(1, 'none', 1)], [])
    assert 'no trial fits: use more devices' in suggest_text.to_text(result)


def test_suggest_reports_that_nothing_fits_after_a_limited_search(search, monkeypatch):
    monkeypatch.setattr(suggest, 'MARGIN', 1e9)
    result, compiled, others = search(state=0.9, activations=4000.0)
    assert result.best is None and result.other is None
    assert len(compiled) == len(set(compiled)) == suggest.COMPILES
    assert [trial[0] for trial in others] == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert {trial[0] for trial in compiled} == {1, 4, 16}
    assert 'no trial fits' in suggest_text.to_text(result)
