"""Prefixes of keys, and state dicts within checkpoints, as trainers of PyTorch write them."""

import numpy as np
import pytest

from jaxtrain.weights.formats.archive import open_archive
from jaxtrain.weights.formats.wrappers import plain_names
from jaxtrain.weights.origins import timm, torchvision
from tests.support.pth_files import Call, Global, tensor, write_zip
from tests.support.spoiling import contents, fault

KEYS = ('blocks.0.attn.qkv.weight', 'head.bias')


@pytest.mark.parametrize(
    'prefix',
    ['module.', '_orig_mod.', 'model.', 'net.', 'module._orig_mod.', 'model.module._orig_mod.'],
)
def test_prefixes_are_removed_in_any_order(prefix):
    names, note = plain_names([prefix + key for key in KEYS])
    assert names == {key: prefix + key for key in KEYS}
    assert repr(prefix) in note


def test_wrappers_within_a_model():
    """Blocks that are compiled or sharded on their own have wrappers in the middle of a key."""
    keys = ['blocks.0._orig_mod.attn.qkv.weight', '_fsdp_wrapped_module.head.bias']
    names, note = plain_names(keys)
    assert list(names) == list(KEYS)
    assert '_orig_mod.' in note and '_fsdp_wrapped_module.' in note


def test_keys_that_differ_only_by_a_wrapper_are_kept():
    keys = ['head.bias', 'model.head.bias']
    assert plain_names(keys) == ({key: key for key in keys}, '')


@pytest.mark.parametrize(
    'keys', [KEYS, ('model',), ('encoder.module',), ('features.model.weight',)]
)
def test_other_keys_are_kept(keys):
    assert plain_names(keys) == ({key: key for key in keys}, '')


def states(**scales: float):
    return {name: {'module.a': tensor(np.full(2, x, 'f4'))} for name, x in scales.items()}


@pytest.mark.parametrize(
    'order, names, taken',
    [
        (timm.STATE_DICTS, ('state_dict', 'state_dict_ema'), 'state_dict_ema'),
        (timm.STATE_DICTS, ('model', 'model_ema', 'state_dict'), 'model_ema'),
        (timm.STATE_DICTS, ('model', 'state_dict'), 'state_dict'),
        (torchvision.STATE_DICTS, ('model_ema', 'model'), 'model'),
        ((), ('model_ema',), 'model_ema'),
    ],
)
def test_the_state_dict_that_the_origins_own_reader_takes(order, names, taken, tmp_path):
    numbers = {name: float(i) for i, name in enumerate(names)}
    path = write_zip(tmp_path / 'f.pth', {'epoch': 3, **states(**numbers)})
    with open_archive(path, order) as archive:
        (value,) = archive.read('a')
        assert value[0] == numbers[taken]
        start, _, rest = archive.notes[0].partition('are taken')
        assert repr(taken) in start
        assert all(repr(name) in rest for name in names if name != taken)
        assert archive.beside == {'epoch': 3}


def test_arguments_of_the_training_program_are_read_as_data(tmp_path):
    """argparse.Namespace is what trainers save, and is no code; each file has its own class."""
    place = Call(Global('argparse', 'Namespace'), ())
    path = write_zip(tmp_path / 'f.pth', {'args': place, **states(model=1.0)})
    assert list(contents(path)) == ['a']


def test_weights_under_unknown_names_are_listed(tmp_path):
    path = write_zip(tmp_path / 'f.pth', states(student=1.0, teacher=2.0))
    assert 'student, teacher' in fault(path)
