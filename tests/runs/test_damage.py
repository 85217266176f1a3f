"""A damaged checkpoint is noticed and another is used, or the damage is harmless: no bit is wrong.

Each file of the newest checkpoint, whatever its name, is truncated, removed, or has a bit flipped.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxtrain import storage
from jaxtrain.checkpoints import checkpoint, checkpoint_files, checkpoint_list, fingerprint
from jaxtrain.errors import UserError
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.runs.metrics_log import read_metrics
from tests.checkpoints.test_checkpoint import HOST, abstract, assert_same_bits, make_state, save
from tests.conftest import TINY, start
from tests.runs.test_kill_anywhere import finish, launch
from tests.runs.test_resume import CONFIG, STEPS, assert_same
from tests.runs.test_wrong_input import complaint, contents

# Unraisable exceptions in Orbax's readers, whose tracebacks a command would print.
pytestmark = pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')

SAVED = (10, 20, 30)
NEWEST = SAVED[-1]
# Places in a file at which a bit is flipped, as shares of its length.
PLACES = (0.0, 0.13, 0.71, 1.0)


def big_state(step: int):
    """A state with large arrays: Orbax stores short ones in its index, which has checksums."""
    state, rng = make_state(step, ema=True), np.random.default_rng(step)
    state.params['backbone']['big'] = jnp.asarray(rng.normal(size=(80, 40)), jnp.float32)
    state.params['head']['half'] = jnp.asarray(rng.normal(size=(900,)), jnp.bfloat16)
    return state


# Kinds of damage to a file.


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def removed(path: Path) -> None:
    path.unlink()


def flip(path: Path, place: float = 0.5, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[round(place * (len(data) - 1))] ^= 1 << bit
    path.write_bytes(data)


def flipped(place: float) -> Callable[[Path], None]:
    return lambda path: flip(path, place, bit=round(place * 100) % 8)


DAMAGES = {'half': half, 'empty': empty, 'removed': removed}
DAMAGES |= {f'bit at {place}': flipped(place) for place in PLACES}
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name != 'half')) for name in DAMAGES]


def flip_array(folder: Path, leaf: str) -> Path:
    """Flips a bit of an array, wherever Orbax stores it; returns the file."""
    tree = checkpoint_files.read_metadata(folder)
    wanted = on_mesh({key: tree[key] for key in ('params', 'ema')}, make_mesh())
    by_size = sorted(files_of(folder), key=lambda file: -(folder / file).stat().st_size)
    for file in by_size:
        for place in np.linspace(0.02, 0.98, 25).tolist() if file.parent.name == 'd' else ():
            flip(folder / file, place)
            try:
                checkpoint_files.read(folder, wanted)
            except UserError as error:
                if f'is damaged: {leaf} ' in str(error):
                    return folder / file
            flip(folder / file, place)
    raise AssertionError(f'no bit of {folder} is one of {leaf}')


def files_of(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob('*') if path.is_file())


def kind_of(file: Path) -> str:
    """A file's name without its random part."""
    return str(file.parent / '*' if file.parent.name == 'd' else file)


def copied(source: Path, target: Path, file: Path | None = None) -> Path:
    """A copy of a run that shares all files with it, except one."""
    shutil.copytree(source, target, copy_function=os.link)
    if file:
        data = (target / file).read_bytes()
        (target / file).unlink()
        (target / file).write_bytes(data)
    return target


@pytest.fixture(scope='module')
def saved(tmp_path_factory) -> Path:
    """A run directory with checkpoints of three states, the newest at step `NEWEST`."""
    workdir = tmp_path_factory.mktemp('saved') / 'run'
    with checkpoint.open_manager(workdir, 3) as manager:
        for step in SAVED:
            save(manager, step, big_state(step))
        manager.wait_until_finished()
    return workdir


def resume(workdir: Path) -> checkpoint.Resumed:
    with checkpoint.open_manager(workdir, 3) as manager:
        steps = sorted(manager.all_steps(), reverse=True)
        resumed = checkpoint.resume(manager, abstract(big_state(0)), steps)
        assert not {*resumed.damaged} & {*manager.all_steps()}
    return resumed


def each(saved: Path, tmp_path: Path, damage: Callable):
    """(file, a run in which it is damaged) for each file of the newest checkpoint."""
    newest = Path('checkpoints') / str(NEWEST)
    for number, file in enumerate(files_of(saved / newest)):
        workdir = copied(saved, tmp_path / str(number), newest / file)
        damage(workdir / newest / file)
        yield file, workdir


@pytest.mark.parametrize('name', EACH)
def test_any_file(name, saved, tmp_path, capfd):
    """The state that is resumed is as it was saved; a damaged checkpoint is set aside and kept."""
    outcomes = {}
    for file, workdir in each(saved, tmp_path, DAMAGES[name]):
        there = contents(workdir / 'checkpoints' / str(NEWEST))
        resumed = resume(workdir)
        assert_same_bits(resumed.state, big_state(resumed.step))
        assert {key: resumed.host[key] for key in HOST} == HOST
        aside = workdir / 'damaged'
        if resumed.step == NEWEST:
            assert not resumed.damaged and not aside.exists()
            # Other readers can read it later, too.
            folder = workdir / 'checkpoints' / str(NEWEST)
            checkpoint_files.read_metadata(folder)
            assert_same_bits(checkpoint_files.read(folder, wanted()), parts_of(big_state(NEWEST)))
        else:
            assert resumed.step == SAVED[-2] and [*resumed.damaged] == [NEWEST]
            assert resumed.damaged[NEWEST] and '\n' not in resumed.damaged[NEWEST]
            assert contents(aside / str(NEWEST)) == there
            # The run reaches that step again.
            with checkpoint.open_manager(workdir, 3) as manager:
                save(manager, NEWEST, big_state(NEWEST), wait=True)
            assert resume(workdir).step == NEWEST
        outcomes.setdefault(kind_of(file), set()).add(resumed.step == NEWEST)
    for kind in ('host/metadata', 'state/manifest.ocdbt', 'state/d/*'):
        assert outcomes[kind] == {False}, kind
    # Readers print many tracebacks, if any.
    assert 'Traceback' not in capfd.readouterr().err


def test_only_our_checksums_notice_a_bit_of_an_array(saved, tmp_path, monkeypatch):
    """Otherwise the tests above would only test Orbax's own checksums."""
    workdir = tmp_path / 'run'
    shutil.copytree(saved, workdir)
    flip_array(workdir / 'checkpoints' / str(NEWEST), 'params/backbone/big')
    shutil.copytree(workdir, tmp_path / 'again')
    why = '1 arrays are not as they were saved, such as params/backbone/big'
    assert resume(workdir).damaged == {NEWEST: why}
    monkeypatch.setattr(fingerprint, 'damaged', lambda tree, expected: [])
    resumed = resume(tmp_path / 'again')
    assert resumed.step == NEWEST and not resumed.damaged
    with pytest.raises(AssertionError, match='big'):
        assert_same_bits(resumed.state, big_state(NEWEST))


@pytest.mark.slow
def test_any_byte_of_the_arrays(saved, tmp_path):
    folder = saved / 'checkpoints' / str(NEWEST)
    rng, noticed = np.random.default_rng(0), 0
    for file in [file for file in files_of(folder) if file.parent.name == 'd']:
        for _ in range(12):
            shared = (folder / file).relative_to(saved)
            workdir = copied(saved, tmp_path / 'run', shared)
            flip(workdir / shared, rng.random(), int(rng.integers(8)))
            resumed = resume(workdir)
            assert_same_bits(resumed.state, big_state(resumed.step))
            noticed += resumed.step != NEWEST
            shutil.rmtree(workdir)
    assert noticed > 12


def edit_host(folder: Path, change: Callable[[dict], None]) -> None:
    """Changes the values that are stored beside the arrays, with a valid checksum."""
    file = folder / 'host' / 'metadata'
    host = json.loads(file.read_text())
    host.pop('crc')
    change(host)
    host['crc'] = checkpoint_files.crc(host)
    file.write_text(json.dumps(host))


def test_every_leaf_is_checked(saved, tmp_path):
    """Every reader looks up every checksum under the name that it was saved under."""
    newest = Path('checkpoints') / str(NEWEST)
    host = newest / 'host' / 'metadata'
    paths = [*json.loads((saved / host).read_text())['fingerprints']]
    leaves = jax.tree.leaves(checkpoint._parts(big_state(0)))
    assert len(paths) == len(leaves)
    for number, path in enumerate(paths):
        workdir = copied(saved, tmp_path / str(number), host)

        def change(host, path=path):
            host['fingerprints'][path][1] ^= 1

        edit_host(workdir / newest, change)
        if path.split('/')[0] in ('params', 'ema', 'model_state'):
            with pytest.raises(UserError, match=f'is damaged: {path} is not as it was saved'):
                checkpoint_files.read(workdir / newest, wanted())
        assert resume(workdir).damaged == {
            NEWEST: f'1 arrays are not as they were saved, such as {path}'
        }


def parts_of(state) -> dict:
    """The parts of a state that `init_from` and `evaluate` read."""
    return {'params': state.params, 'ema': state.ema, 'model_state': state.model_state}


def wanted() -> dict:
    return on_mesh(jax.eval_shape(lambda: parts_of(big_state(0))), make_mesh())


def test_a_checkpoint_without_checksums_still_loads(saved, tmp_path):
    host = Path('checkpoints') / str(NEWEST) / 'host' / 'metadata'
    workdir = copied(saved, tmp_path / 'run', host)
    values = json.loads((workdir / host).read_text())
    assert {'fingerprints', 'crc'} <= {*values}
    (workdir / host).write_text(json.dumps(HOST))  # the format before there were checksums
    resumed = resume(workdir)
    assert (resumed.step, resumed.damaged, resumed.host) == (NEWEST, {}, HOST)
    assert_same_bits(resumed.state, big_state(NEWEST))
    values = checkpoint_files.read(workdir / 'checkpoints' / str(NEWEST), wanted())
    assert_same_bits(values['params'], big_state(NEWEST).params)


def test_several_damaged_checkpoints(saved, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(saved, workdir)
    for step in SAVED[1:]:
        half(workdir / 'checkpoints' / str(step) / 'state' / 'manifest.ocdbt')
    resumed = resume(workdir)
    assert resumed.step == SAVED[0] and [*resumed.damaged] == [30, 20]
    assert_same_bits(resumed.state, big_state(SAVED[0]))
    assert {p.name for p in (workdir / 'damaged').iterdir()} == {'20', '30'}
    assert {p.name for p in (workdir / 'checkpoints').iterdir()} == {'10'}


def test_a_step_set_aside_twice_is_kept_once(saved, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(saved, workdir)
    file = workdir / 'checkpoints' / str(NEWEST) / 'host' / 'metadata'
    for content in (b'first', b'second'):
        file.write_bytes(content)
        assert resume(workdir).step == SAVED[-2]
        assert (workdir / 'damaged' / str(NEWEST) / 'host' / 'metadata').read_bytes() == content
        with checkpoint.open_manager(workdir, 3) as manager:
            save(manager, NEWEST, big_state(NEWEST), wait=True)


def test_if_all_are_damaged_nothing_is_changed(saved, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(saved, workdir)
    for step in SAVED:
        flip(workdir / 'checkpoints' / str(step) / 'state' / 'manifest.ocdbt')
    before = contents(workdir)
    with pytest.raises(UserError) as caught:
        resume(workdir)
    message = str(caught.value)
    assert f'every checkpoint in {workdir}/checkpoints is damaged' in message
    assert all(f'step {step}: ' in message for step in SAVED)
    assert contents(workdir) == before


# Readers of a given checkpoint, which use no other.


@pytest.mark.parametrize('name', EACH)
def test_a_reader_returns_what_was_saved_or_fails(name, saved, tmp_path, capfd):
    outcomes = {}
    for file, workdir in each(saved, tmp_path, DAMAGES[name]):
        before, folder = contents(workdir), workdir / 'checkpoints' / str(NEWEST)
        try:
            assert checkpoint_list.saved_steps(workdir)[-1] == NEWEST
            metadata = checkpoint_files.read_metadata(folder)
            assert metadata['params'] == jax.eval_shape(lambda: big_state(0)).params
            assert_same_bits(checkpoint_files.read(folder, wanted()), parts_of(big_state(NEWEST)))
            outcomes.setdefault(kind_of(file), set()).add(True)
        except UserError as error:
            assert str(folder) in str(error) and 'choose another checkpoint' in str(error)
            outcomes.setdefault(kind_of(file), set()).add(False)
        assert contents(workdir) == before
    for kind in ('host/metadata', 'state/manifest.ocdbt', 'state/d/*'):
        assert outcomes[kind] == {False}, kind
    assert 'Traceback' not in capfd.readouterr().err


# Whole runs.


def test_log_has_every_line_once(straight):
    lines = [(x['split'], x['step']) for x in read_metrics(straight)]
    expected = [('train', s) for s in range(5, STEPS + 1, 5)] + [('val', s) for s in (20, 40, 60)]
    best = json.loads((straight / 'result.json').read_text())['best_step']
    assert sorted(lines) == sorted([*expected, ('test', best)])


def stopped(straight: Path, workdir: Path, last: int | None = None) -> Path:
    """A copy of the run as if it was killed early, with `last` as the newest checkpoint."""
    shutil.copytree(straight, workdir)
    for name in ('result.json', 'test.npz', 'curves.png'):
        (workdir / name).unlink()
    for folder in (workdir / 'checkpoints').iterdir():
        if last and int(folder.name) > last:
            shutil.rmtree(folder)
    return workdir


def steps_of(workdir: Path) -> list[int]:
    return checkpoint_list.saved_steps(workdir)


def events_of(workdir: Path, name: str) -> list[dict]:
    return [e for e in storage.read_lines(workdir / 'events.jsonl') if e['event'] == name]


CASES = {
    'a bit of an array': lambda folder: flip_array(folder, 'ema/backbone/conv_1/kernel'),
    'no host values': lambda folder: removed(folder / 'host' / 'metadata'),
    'half an index': lambda folder: half(folder / 'state' / '_METADATA'),
}


@pytest.mark.parametrize('case', CASES)
def test_a_run_resumes_from_the_checkpoint_before(case, straight, jaxtrain, tmp_path):
    workdir = stopped(straight, tmp_path / 'run')
    *_, before, newest = steps_of(workdir)
    CASES[case](workdir / 'checkpoints' / str(newest))
    outcome = jaxtrain('train', *CONFIG, f'--workdir={workdir}')
    assert outcome.code == 0 and not outcome.err, outcome
    (line,) = [line for line in outcome.out.splitlines() if 'damaged' in line]
    assert line.startswith(f'the checkpoint of step {newest} is damaged (')
    assert line.endswith(f'was put aside in damaged/{newest}; that of step {before} is used')
    assert f'resumes after step {before}' in outcome.out
    (event,) = events_of(workdir, 'damaged')
    assert event['step'] == newest and event['why'] in line
    assert (workdir / 'damaged' / str(newest)).is_dir()
    assert_same(workdir, straight)
    assert steps_of(workdir) == steps_of(straight)


def test_a_run_without_a_sound_checkpoint_fails(straight, jaxtrain, tmp_path):
    workdir = stopped(straight, tmp_path / 'run')
    for step, damage in zip(steps_of(workdir), DAMAGES.values(), strict=False):
        damage(workdir / 'checkpoints' / str(step) / 'state' / 'manifest.ocdbt')
    before = contents(workdir)
    line = complaint(jaxtrain('train', *CONFIG, f'--workdir={workdir}'))
    assert 'every checkpoint in' in line and 'restore a copy of one' in line
    after = contents(workdir)
    assert after.pop(Path('events.jsonl')).startswith(before.pop(Path('events.jsonl')))
    assert after == before
    (event,) = events_of(workdir, 'exit')[1:]
    assert event['code'] == 2 and event['why'] in line


def test_a_damaged_best_is_replaced_by_the_next_best(straight, jaxtrain, tmp_path):
    """The log is changed so that two earlier checkpoints look better on val than the last one."""
    workdir = stopped(straight, tmp_path / 'run')
    *_, next_best, best, last = steps_of(workdir)
    with (workdir / 'metrics.jsonl').open('a') as file:
        for step, accuracy in {best: 0.99, next_best: 0.98}.items():
            line = {'step': step, 'split': 'val', 'accuracy': accuracy, 'loss': 0.5}
            file.write(json.dumps(line) + '\n')
    sound = copied(workdir, tmp_path / 'sound', Path('metrics.jsonl'))
    for name in ('events.jsonl', 'config.json'):  # a run appends to these files or replaces them
        shutil.copy(workdir / name, tmp_path / name)
        (sound / name).unlink()
        shutil.copy(tmp_path / name, sound / name)
    flip_array(workdir / 'checkpoints' / str(best), 'params/backbone/conv_1/kernel')
    outcome = jaxtrain('train', *CONFIG, f'--workdir={workdir}')
    assert outcome.code == 0, outcome
    assert f'the checkpoint of step {best} is damaged (' in outcome.out
    assert f'that of step {next_best} is used' in outcome.out
    (event,) = events_of(workdir, 'damaged')
    assert event['step'] == best and (workdir / 'damaged' / str(best)).is_dir()
    result = json.loads((workdir / 'result.json').read_text())
    assert result['best_step'] == next_best and result['steps'] == STEPS
    assert result['metrics']['val']['accuracy'] == 0.98
    # The test metrics are those of the checkpoint that result.json names.
    words = ['--split=test', f'--checkpoint={next_best}']
    evaluated = jaxtrain('evaluate', f'--workdir={sound}', *words)
    test = result['metrics']['test']
    assert f'accuracy={test["accuracy"]:.4g}' in evaluated.out
    assert f'loss={test["loss"]:.4g}' in evaluated.out
    assert (last, best) == (STEPS, steps_of(sound)[-2])


READERS = [
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'evaluate'))
    for name in ('evaluate', 'predict', 'init_from', 'inspect')
]


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize('case', CASES)
def test_commands_that_read_a_damaged_checkpoint(case, reader, straight, jaxtrain, tmp_path):
    workdir, image = tmp_path / 'run', tmp_path / 'a.png'
    shutil.copytree(straight, workdir)
    CASES[case](workdir / 'checkpoints' / str(STEPS))
    (workdir / 'checkpoints' / '70.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
    before = contents(workdir)
    begin = [f'--config={TINY}:linear', f'--config.init_from={workdir}']
    begin += ['--config.init_checkpoint=last']
    words = {
        'evaluate': ['evaluate', f'--workdir={workdir}', '--checkpoint=last'],
        'predict': ['predict', f'--workdir={workdir}', '--checkpoint=last', image],
        'init_from': ['train', *begin, f'--workdir={tmp_path / "next"}'],
        'inspect': ['inspect', *begin],
    }[reader]
    import cv2

    cv2.imwrite(str(image), np.zeros((8, 8), np.uint8))
    outcome = jaxtrain(*words)
    if reader == 'inspect' and case != 'half an index':
        assert outcome.code == 0  # it reads only the index
    else:
        line = complaint(outcome)
        assert f'{workdir}/checkpoints/{STEPS}' in line and 'choose another checkpoint' in line
    assert contents(workdir) == before
    assert (workdir / 'checkpoints' / '70.orbax-checkpoint-tmp' / 'state').exists()
    if reader == 'evaluate':  # as the message advises
        other = f'--checkpoint={steps_of(workdir)[-2]}'
        assert jaxtrain('evaluate', f'--workdir={workdir}', other).code == 0


@pytest.mark.slow
@pytest.mark.parametrize('name', ['state/manifest.ocdbt', 'state/_sharding', 'state/_METADATA'])
def test_the_output_of_a_process_about_a_damaged_checkpoint(name, straight, tmp_path):
    """The output includes what libraries print."""
    workdir = tmp_path / 'run'
    shutil.copytree(straight, workdir)
    half(workdir / 'checkpoints' / str(STEPS) / name)
    child = start('evaluate', f'--workdir={workdir}', '--checkpoint=last')
    out, _ = child.communicate(timeout=120)
    (line,) = out.splitlines()
    assert child.returncode == 2 and f'checkpoints/{STEPS} cannot be read (' in line


def test_only_the_next_start_removes_an_unfinished_checkpoint(straight, jaxtrain, tmp_path):
    workdir = stopped(straight, tmp_path / 'run', last=56)
    newest = workdir / 'checkpoints' / '56'
    leftover = workdir / 'checkpoints' / f'{STEPS}.orbax-checkpoint-tmp'
    shutil.copytree(newest, leftover)
    (leftover / 'commit_success.txt').unlink()
    before = contents(leftover)
    outcome = jaxtrain('evaluate', f'--workdir={workdir}', '--checkpoint=last')
    assert outcome.code == 0 and 'step=56' in outcome.out
    assert contents(leftover) == before
    outcome = jaxtrain('train', *CONFIG, f'--workdir={workdir}')
    assert outcome.code == 0 and 'resumes after step 56' in outcome.out
    assert not leftover.exists() and not events_of(workdir, 'damaged')
    assert_same(workdir, straight)


@pytest.mark.slow
def test_any_file_of_a_whole_run(straight, jaxtrain, tmp_path):
    newest = straight / 'checkpoints' / str(STEPS)
    damages = {'half': half, 'bit': flip}
    sizes = {file: (newest / file).stat().st_size for file in files_of(newest)}
    # The largest file of each kind, because most of the others are not read.
    largest = {kind_of(file): file for file in sorted(sizes, key=sizes.get)}
    outcomes = {}
    for file in largest.values():
        for name, damage in damages.items():
            workdir = stopped(straight, tmp_path / 'run')
            damage(workdir / 'checkpoints' / str(STEPS) / file)
            outcome = jaxtrain('train', *CONFIG, f'--workdir={workdir}')
            assert outcome.code == 0 and 'Traceback' not in outcome.err, outcome
            assert_same(workdir, straight)
            events = events_of(workdir, 'damaged')
            assert bool(events) == (workdir / 'damaged').exists() == ('is damaged' in outcome.out)
            outcomes[kind_of(file), name] = 'noticed' if events else 'harmless'
            shutil.rmtree(workdir)
    print(*(f'{kind:35} {name:8} {what}' for (kind, name), what in outcomes.items()), sep='\n')
    assert {*outcomes.values()} == {'noticed', 'harmless'}


@pytest.mark.slow
def test_two_processes_resume_from_the_checkpoint_before(tmp_path):
    first, second = tmp_path / 'straight', tmp_path / 'run'
    assert finish(launch(first, 1)) == [0]
    stopped(first, second)
    *_, before, newest = steps_of(second)
    flip_array(second / 'checkpoints' / str(newest), 'params/backbone/conv_1/kernel')
    processes = launch(second, 2)
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert f'that of step {before} is used' in outputs[0]
    assert [event['step'] for event in events_of(second, 'damaged')] == [newest]
    assert_same(second, first)
