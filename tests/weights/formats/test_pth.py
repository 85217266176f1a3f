"""PyTorch's files: tensors are read as torch.save writes them, and no code runs."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxtrain.weights.formats import blocks
from tests.golden.make_pth import HERE as GOLDEN
from tests.golden.make_pth import arrays
from tests.support.pth_files import (
    SYSTEM,
    WRITERS,
    Call,
    Global,
    Storage,
    Tensor,
    tensor,
    write_stream,
    write_zip,
)
from tests.support.spoiling import contents, fault, same, survives

FORMS = list(WRITERS)
REBUILD = Global('torch._utils', '_rebuild_tensor_v2')


def some() -> dict[str, np.ndarray]:
    return {
        'kernel': np.arange(6, dtype='f4').reshape(2, 3),
        'half': np.arange(4).astype('f2'),
        'brain': np.arange(4).astype(ml_dtypes.bfloat16),
        'count': np.array(7, 'i8'),
        'empty': np.zeros((0, 3), 'f4'),
    }


def tensors() -> dict[str, Tensor]:
    return {key: tensor(array) for key, array in some().items()}


def golden() -> dict[str, np.ndarray]:
    content = arrays()
    return {**content, 'bf16': content['bf16'].astype(ml_dtypes.bfloat16)}


@pytest.fixture(params=FORMS)
def write(request, tmp_path):
    """Return a function that writes a file in one of the two formats."""
    return lambda content, **more: WRITERS[request.param](tmp_path / 'f.pth', content, **more)


@pytest.mark.parametrize('kind', ['', '_wrapped'])
@pytest.mark.parametrize('form', FORMS)
def test_files_written_by_torch(form, kind):
    """The files hold every dtype, views of one storage and a Parameter, bare or in a checkpoint."""
    same(contents(GOLDEN / f'pth_{form}{kind}.pth'), golden())


def test_files_written_without_torch(write):
    """The files that the tests below damage are valid before."""
    same(contents(write(tensors())), some())


@pytest.mark.parametrize('name', ['state_dict', 'model', 'model_state_dict', 'module'])
def test_weights_within_a_checkpoint(name, write):
    content = {'epoch': 3, 'optimizer': {'state': {0: tensor(np.ones(2))}}, name: tensors()}
    same(contents(write(content)), some())
    same(contents(write({'model': {'state_dict': OrderedDict(tensors())}})), some())


def test_large_arrays_are_read_in_pieces(write, monkeypatch):
    monkeypatch.setattr(blocks, 'BYTES', 1000)
    array = np.random.RandomState(0).standard_normal((37, 5, 9)).astype('f4')
    storage = Storage(array.reshape(-1))
    content = {
        'a': tensor(array),
        'transposed': Tensor(storage, (9, 5, 37), (1, 9, 45)),
        'rows': Tensor(storage, (30, 5, 9), (45, 9, 1), 90),
    }
    same(contents(write(content)), {'a': array, 'transposed': array.T, 'rows': array[2:32]})


# Code.


@pytest.mark.parametrize(
    'function, arguments',
    [
        (('os', 'system'), ('touch {}',)),
        (('posix', 'system'), ('touch {}',)),
        (('builtins', 'eval'), ("open('{}', 'w')",)),
        (('builtins', 'open'), ('{}', 'w')),
        (('subprocess', 'getoutput'), ('touch {}',)),
        (('numpy', 'save'), ('{}', 3)),
        (('torch', 'load'), ('{}',)),
        (('torch.storage', '_load_from_bytes'), (b'{}',)),
        (('torch._utils', '_rebuild_device_tensor_from_numpy'), (3,)),
        (('collections', 'namedtuple'), ('a', 'b')),
        # Dotted names reach attributes.
        (('collections', 'OrderedDict.__init__.__globals__'), ()),
        (('torch', 'Size.__reduce__'), ()),
    ],
)
@pytest.mark.parametrize('place', ['alone', 'within', 'deep', 'as_key'])
def test_pickle_with_other_calls(place, function, arguments, write, tmp_path):
    target = tmp_path / 'trapped'
    filled = tuple(a.format(target) if isinstance(a, str) else a for a in arguments)
    call = Call(Global(*function), filled)
    content = {
        'alone': call,
        'within': {**tensors(), 'x': call},
        'deep': {'state_dict': tensors(), 'optimizer': [{'hooks': (call,)}]},
        'as_key': {call: tensor(np.ones(2, 'f4')), **tensors()},
    }[place]
    message = fault(write(content))
    assert f'would run {".".join(function)}; weights need no code' in message
    assert not target.exists()


def test_the_trap_above_works(tmp_path):
    """Plain unpickling creates the file."""
    target = tmp_path / 'trapped'
    call = Call(Global('os', 'system'), (f'touch {target}',))
    with zipfile.ZipFile(write_zip(tmp_path / 'f.pth', call)) as archive:
        pickle.loads(archive.read('archive/data.pkl'))
    assert target.exists()


def test_pickled_module(tmp_path):
    message = fault(GOLDEN / 'pth_zip_module.pth')
    assert 'would run torch.nn.modules.linear.Linear; ' in message
    assert 'save model.state_dict() alone' in message


@pytest.mark.parametrize(
    'opcodes',
    [
        b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.',  # STACK_GLOBAL
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",  # INST
        b'\x80\x02\x82\x01.',  # EXT1: a code registered elsewhere
        b'\x80\x05\x97.',  # NEXT_BUFFER
        b'\x80\x02]\x94h\x05.',  # a missing memo entry
        b'\x80\x02N',  # no end
        b'',
    ],
)
def test_other_opcodes_that_look_up_names(opcodes, tmp_path):
    path = tmp_path / 'f.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', opcodes)
    message = fault(path)
    assert 'would run os.system' in message or 'is not a complete file of torch.save' in message
    path.write_bytes(opcodes)
    fault(path)


def test_a_file_cannot_change_the_reader(tmp_path):
    """BUILD sets attributes of objects on the stack, including functions of this reader."""
    path = tmp_path / 'f.pth'
    build = (
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n'
        b'N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b.'
    )
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', build)
    fault(path)
    same(contents(write_zip(tmp_path / 'g.pth', tensors())), some())


# Invalid tensors.


@pytest.mark.parametrize(
    'shape, stride, offset',
    [
        ((3,), (1,), 4),
        ((2, 4), (4, 1), 0),
        ((2, 3), (4, 1), 0),
        ((2,), (2**62,), 0),
        ((7,), (1,), 0),
    ],
)
def test_tensor_beyond_its_storage(shape, stride, offset, write):
    storage = Storage(np.arange(6, dtype='f4'))
    message = fault(
        write({'fine': tensor(np.ones(2)), 'a': Tensor(storage, shape, stride, offset)})
    )
    assert ': a extends beyond its storage, so the file is damaged' in message


@pytest.mark.parametrize(
    'shape, stride, offset',
    [
        ((2,), (-1,), 3),
        ((2,), (1,), -1),
        ((-1,), (1,), 0),
        ((-2, -3), (3, 1), 0),
        ((2, 3), (1,), 0),
        ((2.0,), (1,), 0),
        ((2,), (1,), '0'),
        ((True,), (1,), 0),
        (('2',), (1,), 0),
    ],
)
def test_invalid_shape_stride_or_offset(shape, stride, offset, write):
    content = {'a': Tensor(Storage(np.arange(6, dtype='f4')), shape, stride, offset)}
    assert 'is not a complete file of torch.save (a tensor of shape ' in fault(write(content))


def test_storage_with_two_dtypes(write):
    """Its length would be that of the smaller dtype for both."""
    narrow, wide = Storage(np.arange(4, dtype='f2'), 'k'), Storage(np.arange(4, dtype='f8'), 'k')
    path = write({'a': Tensor(narrow, (4,), (1,)), 'b': Tensor(wide, (4,), (1,))})
    assert 'is not a complete file of torch.save (storage k has two dtypes)' in fault(path)


def test_storage_view_before_torch_0_4(tmp_path):
    """Reading it without the view would lose the offset."""
    part = Storage(np.arange(4, dtype='f4'), view=('0', 2, 2))
    path = write_stream(tmp_path / 'f.pth', {'a': Tensor(part, (2,), (1,))})
    assert 'holds views in the format of PyTorch before 0.4; load and save it again' in fault(path)


def test_missing_storage(tmp_path):
    path = write_zip(tmp_path / 'f.pth', tensors())
    short = tmp_path / 'short.pth'
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(short, 'w') as new:
        for name in old.namelist():
            if name != 'archive/data/0':
                new.writestr(name, old.read(name))
    assert ': kernel extends beyond its storage' in fault(short)


def test_unsupported_dtypes(write, monkeypatch):
    from tests.support import pth_files

    monkeypatch.setitem(pth_files._NAMES, np.dtype('c8'), 'ComplexFloatStorage')
    message = fault(write({'a': tensor(np.zeros(2, 'c8'))}))
    assert 'holds a ComplexFloatStorage, which is not supported; save it as one of' in message


# Other files.


@pytest.mark.parametrize('content', [{}, {'epoch': 3}, [1], 3, None, {'state_dict': {}}])
def test_file_without_weights(content, write):
    assert 'holds no weights by name; save model.state_dict()' in fault(write(content))


def test_bare_tensor(write):
    assert 'holds no weights by name' in fault(write(tensor(np.ones(3))))


def test_recursive_checkpoint(write):
    content = {}
    content['model'] = content
    assert 'is not a complete file of torch.save (' in fault(write(content))


def test_big_endian_file(tmp_path):
    path = write_zip(tmp_path / 'f.pth', tensors(), byteorder='big')
    assert 'was written on a big-endian machine' in fault(path)
    path = write_stream(tmp_path / 'g.pth', tensors(), {**SYSTEM, 'little_endian': False})
    assert 'was written on a big-endian machine' in fault(path)


def test_compressed_storages(tmp_path):
    path = write_zip(tmp_path / 'f.pth', tensors())
    packed = tmp_path / 'packed.pth'
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert 'holds compressed storages; save it with torch.save' in fault(packed)


def test_unrelated_pickle(tmp_path):
    path = tmp_path / 'f.pth'
    path.write_bytes(pickle.dumps({'a': [1, 2]}))
    assert 'is not a file of torch.save; give the weights file' in fault(path)


def test_two_pickles_in_one_archive(tmp_path):
    path = write_zip(tmp_path / 'f.pth', tensors())
    with zipfile.ZipFile(path, 'a') as archive:
        archive.writestr('other/data.pkl', b'N.')
    assert 'is not a complete file of torch.save' in fault(path)


def test_truncated_file(write):
    path = write(tensors())
    data = path.read_bytes()
    for size in (0, 1, 5, 60, len(data) // 2, len(data) - 30, len(data) - 1):
        path.write_bytes(data[:size])
        assert 'save or download it again' in fault(path), size


def test_truncated_last_storage(tmp_path):
    """Nothing follows it, so only the length of the file reveals the truncation."""
    path = write_stream(tmp_path / 'f.pth', {'a': tensor(np.ones(8, 'f4'))})
    path.write_bytes(path.read_bytes()[:-1])
    assert 'is truncated; save or download it again' in fault(path)


@pytest.mark.parametrize('file', ['pth_zip', 'pth_stream_wrapped'])
def test_damaged_file(file, tmp_path):
    path: Path = tmp_path / 'f.pth'
    path.write_bytes((GOLDEN / f'{file}.pth').read_bytes())
    survives(path)
