"""The fake of Google Cloud Storage serves every client that jaxtrain uses, without a network.

Each client runs in a separate process with `FakeGcs.environment`, because some variables are read
when a package is imported. That process has Google credentials in its home, and must not use them.
"""

import http.client
import json
import os

import pytest

from tests.conftest import python
from tests.support.gcs import FakeGcs

ADC = '{"type": "authorized_user", "client_id": "x", "client_secret": "x", "refresh_token": "x"}'


@pytest.fixture
def gcs():
    with FakeGcs() as server:
        yield server


@pytest.fixture
def client(gcs, tmp_path):
    """Calls a function of this module in a process that has the environment: `client(function)`."""
    credentials = tmp_path / '.config' / 'gcloud' / 'application_default_credentials.json'
    credentials.parent.mkdir(parents=True)
    credentials.write_text(ADC)
    home = {'HOME': str(tmp_path), 'GOOGLE_APPLICATION_CREDENTIALS': str(credentials)}
    home |= {'http_proxy': 'http://127.0.0.1:9', 'HTTP_PROXY': 'http://127.0.0.1:9'}

    def call(function, *args):
        code = 'from tests.support import test_gcs as t; import json; '
        code += f'print(json.dumps(t.{function.__name__}(*{args!r})))'
        done = python('-c', code, **home | gcs.environment)
        assert done.code == 0, done.err
        return json.loads(done.out)

    return call


class Asks:
    """Requests over one connection: `asks('GET', path) -> (status, headers, body)`."""

    def __init__(self, gcs):
        self.connection = http.client.HTTPConnection(gcs.url.removeprefix('http://'), timeout=5)

    def __call__(self, method, path, body=None, **headers):
        headers = {name.replace('_', '-'): value for name, value in headers.items()}
        self.connection.request(method, path, body, headers)
        response = self.connection.getresponse()
        return response.status, response.headers, response.read()

    def listed(self, query=''):
        page = json.loads(self('GET', f'/storage/v1/b/bucket/o?{query}')[2])
        names = [item['name'] for item in page['items']]
        return names, page['prefixes'], page.get('nextPageToken')


@pytest.fixture
def asks(gcs):
    return Asks(gcs)


# The server.


def test_a_listing_groups_names_by_delimiter_and_has_pages(gcs, asks):
    for name in ('a-', 'a/1', 'a/2', 'a/b/3', 'a0', 'b'):
        gcs.objects['bucket', name] = b'x'
    assert asks.listed() == (['a-', 'a/1', 'a/2', 'a/b/3', 'a0', 'b'], [], None)
    assert asks.listed('delimiter=/') == (['a-', 'a0', 'b'], ['a/'], None)
    assert asks.listed('delimiter=/&prefix=a/') == (['a/1', 'a/2'], ['a/b/'], None)
    assert asks.listed('prefix=c') == ([], [], None)
    assert asks.listed('startOffset=a/2&endOffset=b') == (['a/2', 'a/b/3', 'a0'], [], None)
    for size in range(1, 7):
        entries, token = [], ''
        while token is not None:
            query = f'delimiter=/&maxResults={size}' + (token and f'&pageToken={token}')
            names, prefixes, token = asks.listed(query)
            assert 0 < len(names) + len(prefixes) <= size
            entries += names + prefixes
        assert sorted(entries) == ['a-', 'a/', 'a0', 'b'], size


def test_preconditions_on_the_generation_are_checked(gcs, asks):
    insert = '/upload/storage/v1/b/bucket/o?uploadType=media&name=x&ifGenerationMatch='
    one = json.loads(asks('POST', insert + '0', b'one')[2])
    assert asks('POST', insert + '0', b'two')[0] == 412
    two = json.loads(asks('POST', insert + one['generation'], b'two')[2])
    assert int(two['generation']) > int(one['generation'])
    assert asks('POST', insert + one['generation'], b'three')[0] == 412
    assert gcs.objects['bucket', 'x'] == b'two'
    x = '/storage/v1/b/bucket/o/x'
    assert asks('GET', f'{x}?ifGenerationNotMatch={two["generation"]}')[0] == 304
    assert asks('GET', f'{x}?ifMetagenerationMatch=2')[0] == 412
    assert asks('GET', f'{x}?generation={one["generation"]}')[0] == 404
    assert asks('DELETE', f'{x}?ifGenerationMatch={one["generation"]}')[0] == 412
    assert asks('DELETE', f'{x}?ifGenerationMatch={two["generation"]}')[0] == 204
    assert asks('DELETE', x)[0] == 404
    assert gcs.objects == {}


@pytest.mark.parametrize(
    ('span', 'status', 'data'),
    [
        ('bytes=0-0', 206, b'0'),
        ('bytes=3-', 206, b'3456789'),
        ('bytes=-2', 206, b'89'),
        ('bytes=8-99', 206, b'89'),
        ('bytes=10-', 416, None),
    ],
)
def test_a_part_of_an_object_is_read(gcs, asks, span, status, data):
    gcs.objects['bucket', 'a/x'] = b'0123456789'
    got, headers, body = asks('GET', '/storage/v1/b/bucket/o/a%2Fx?alt=media', Range=span)
    assert got == status
    if data is not None:
        assert body == data
        assert headers['X-Goog-Generation'] == str(gcs.objects['bucket', 'a/x'].generation)


def test_an_object_uploaded_in_chunks_appears_once_it_is_complete(gcs, asks):
    chunk = bytes(2**18)
    begin = '/upload/storage/v1/b/bucket/o?uploadType=resumable&ifGenerationMatch=0'
    where = asks('POST', begin, b'{"name": "a/x"}')[1]['Location'].removeprefix(gcs.url)
    assert asks('PUT', where, b'short', Content_Range='bytes 0-4/*')[0] == 400
    status, headers, _ = asks('PUT', where, chunk, Content_Range=f'bytes 0-{2**18 - 1}/*')
    assert (status, headers['Range']) == (308, f'bytes=0-{2**18 - 1}')
    assert asks('PUT', where, b'', Content_Range='bytes */*')[0] == 308  # How much has arrived?
    assert gcs.objects == {}
    last = f'bytes {2**18}-{2**18 + 2}/{2**18 + 3}'
    assert asks('PUT', where, b'end', Content_Range=last)[0] == 200
    assert gcs.objects['bucket', 'a/x'] == chunk + b'end'
    assert asks('PUT', where, b'end', Content_Range=last)[0] == 404
    given_up = asks('POST', begin, b'{"name": "a/y"}')[1]['Location'].removeprefix(gcs.url)
    assert asks('DELETE', given_up)[0] == 499
    assert list(gcs.objects) == [('bucket', 'a/x')]


def test_requests_are_recorded_and_fail_on_request(gcs, asks):
    gcs.objects['bucket', 'a/x'] = b'x'
    gcs.fail('DELETE .*/o/a/x', times=2)
    gcs.fail('DELETE .*/o/a/x', times=1, status=429)
    x = '/storage/v1/b/bucket/o/a%2Fx'
    assert asks('GET', x)[0] == 200
    assert [asks('DELETE', x)[0] for _ in range(5)] == [503, 503, 429, 204, 404]
    assert gcs.requests[:2] == [(m, '/storage/v1/b/bucket/o/a/x') for m in ('GET', 'DELETE')]
    assert len(gcs.requests) == 6
    assert asks('GET', '/storage/v1/b/another/o')[0] == 404
    assert asks('GET', '/storage/v1/b/bucket', Authorization='Bearer x')[0] == 401


# The clients.


def in_gcsfs():
    import fsspec

    fs = fsspec.filesystem('gs')
    fs.pipe('gs://bucket/run/é #1?.txt', b'one\r\n--==0==\n\n')
    with fs.open('gs://bucket/run/big', 'wb', block_size=2**18) as file:
        for _ in range(3):
            file.write(b'x' * (2**18 + 1))
    fs.pipe('gs://bucket/run/empty', b'')
    fs.copy('gs://bucket/run/big', 'gs://bucket/run/copies/big')
    fs.mv('gs://bucket/run/empty', 'gs://bucket/run/moved')
    fs.pipe('gs://bucket/run/gone', b'')
    fs.rm('gs://bucket/run/gone')
    try:
        fs.pipe('gs://bucket/run/big', b'', mode='create')
    except FileExistsError:
        fs.pipe('gs://bucket/run/created', b'', mode='create')
    return {
        'part': fs.cat_file('gs://bucket/run/big', 2**18, 2**18 + 5).decode(),
        'ls': sorted(fs.ls('gs://bucket/run', detail=False)),
        'size': fs.info('gs://bucket/run/big')['size'],
        'dir': [fs.isdir(f'gs://bucket/{name}') for name in ('run', 'run/copies', 'run/big')],
    }


def test_gcsfs(gcs, client):
    gcs.fail('POST .*name=run/big&upload_id=', times=1)
    assert client(in_gcsfs) == {
        'part': 'xxxxx',
        'ls': [f'bucket/run/{name}' for name in ('big', 'copies', 'created', 'moved', 'é #1?.txt')],
        'size': 3 * (2**18 + 1),
        'dir': [True, True, False],
    }
    big = b'x' * 3 * (2**18 + 1)
    assert gcs.objects == {
        ('bucket', 'run/é #1?.txt'): b'one\r\n--==0==\n\n',
        ('bucket', 'run/big'): big,
        ('bucket', 'run/copies/big'): big,
        ('bucket', 'run/moved'): b'',
        ('bucket', 'run/created'): b'',
    }
    sent = [path for _, path in gcs.requests if 'name=run/big&upload_id=' in path]
    assert len(sent) == 5  # Four chunks, one of them sent twice.


def in_epath():
    from etils import epath

    root = epath.Path('gs://bucket/run')
    root.mkdir(parents=True, exist_ok=True)
    seen = {'made': root.exists()}
    (root / 'a.txt').write_text('é')
    (root / 'b').write_bytes(b'\0b')
    (root / 'sub' / 'c').write_text('c')
    (root / 'sub' / 'deep' / 'd').write_text('d')
    seen['exists'] = [(root / name).exists() for name in ('', 'a.txt', 'sub', 'nothing')]
    seen['is_dir'] = [(root / name).is_dir() for name in ('', 'a.txt', 'sub', 'nothing')]
    seen['read'] = [(root / 'a.txt').read_text(), (root / 'b').read_bytes().hex()]
    seen['iterdir'] = sorted(path.name for path in root.iterdir())
    seen['glob'] = sorted(str(path) for path in root.glob('*/*'))
    seen['length'] = (root / 'a.txt').stat().length
    (root / 'a.txt').copy(root / 'copied')
    (root / 'b').rename(root / 'renamed')
    (root / 'renamed').replace(root / 'copied')
    (root / 'sub').rename(root / 'moved')
    seen['errors'] = {}
    for name, call in {
        'rename onto a file': lambda: (root / 'a.txt').rename(root / 'copied'),
        'rename into no folder': lambda: (root / 'a.txt').rename(root / 'new' / 'a.txt'),
        'unlink nothing': (root / 'nothing').unlink,
        'read nothing': (root / 'nothing').read_text,
        'list nothing': lambda: list((root / 'nothing').iterdir()),
    }.items():
        try:
            call()
        except OSError as e:
            seen['errors'][name] = type(e).__name__
    (root / 'gone').write_text('')
    (root / 'gone').unlink()
    (root / 'gone').unlink(missing_ok=True)
    (root / 'moved' / 'deep').rmtree()
    return seen


def test_epath(gcs, client):
    assert client(in_epath) == {
        'made': False,  # Folders do not exist.
        'exists': [True, True, True, False],
        'is_dir': [True, False, True, False],
        'read': ['é', '0062'],
        'iterdir': ['a.txt', 'b', 'sub'],
        'glob': ['gs://bucket/run/sub/c', 'gs://bucket/run/sub/deep'],
        'length': 2,
        'errors': {
            'rename onto a file': 'FileExistsError',
            'rename into no folder': 'FileNotFoundError',
            'unlink nothing': 'FileNotFoundError',
            'read nothing': 'FileNotFoundError',
            'list nothing': 'FileNotFoundError',
        },
    }
    assert gcs.objects == {
        ('bucket', 'run/a.txt'): 'é'.encode(),
        ('bucket', 'run/copied'): b'\0b',
        ('bucket', 'run/moved/c'): b'c',
    }
    # A folder is not renamed in one step, but object by object.
    assert sum('/moveTo/o/run/moved/' in path for _, path in gcs.requests) >= 2


def in_tensorstore():
    import tensorstore as ts

    kv = ts.KvStore.open('gs://bucket/run/').result()
    kv['a'] = b'one'
    kv['b/c d'] = bytes(3 * 2**20)
    first = kv.read('a').result().stamp.generation
    second = kv.write('a', b'two', if_equal=first).result().generation
    stale = kv.write('a', b'three', if_equal=first).result().generation
    array = ts.open(
        {'driver': 'zarr3', 'kvstore': 'gs://bucket/array/'},
        create=True,
        dtype=ts.int32,
        shape=[4],
    ).result()
    array[1:3] = 7
    seen = {
        'stale': stale.hex(),
        'a': kv['a'].decode(),
        'unchanged': kv.read('a', if_not_equal=second).result().state,
        'none': kv.read('none').result().state,
        'list': [name.decode() for name in kv.list().result()],
        'array': array.read().result().tolist(),
    }
    del kv['a']
    ts.KvStore.open('gs://bucket/array/').result().delete_range(ts.KvStore.KeyRange()).result()
    return seen


def test_tensorstore(gcs, client):
    gcs.fail('POST .*name=run/a', times=1)
    gcs.fail('GET .*/o/run/a', times=1, status=429)
    assert client(in_tensorstore) == {
        'stale': '',
        'a': 'two',
        'unchanged': 'unspecified',
        'none': 'missing',
        'list': ['a', 'b/c d'],
        'array': [0, 7, 7, 0],
    }
    assert gcs.objects == {('bucket', 'run/b/c d'): bytes(3 * 2**20)}


# Orbax, which uses all three.

RUN = 'gs://bucket/run/checkpoints'


def manager(**options):
    """A manager with the options of `jaxtrain.checkpoints.checkpoint.open_manager`."""
    import orbax.checkpoint as ocp
    from etils import epath
    from orbax.checkpoint import checkpoint_managers as policies

    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics['loss'],
        reverse=True,
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    return ocp.CheckpointManager(
        epath.Path(RUN),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
            best_fn=lambda metrics: metrics['loss'],
            best_mode='min',
            enable_async_checkpointing=True,
            **options,
        ),
    )


def arrays(step):
    import jax.numpy as jnp

    return {'w': jnp.arange(12.0).reshape(3, 4) / step, 'big': jnp.full(300_000, step, jnp.int32)}


def save_four():
    """Saves steps 1 to 4; the last is never committed."""
    import jax
    import orbax.checkpoint as ocp

    with manager(cleanup_tmp_directories=True) as kept:
        for step, loss in {1: 0.5, 2: 0.1, 3: 0.4}.items():
            pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=2**20), arrays(step))
            state = ocp.args.PyTreeSave(
                arrays(step), save_args=pieces, ocdbt_target_data_file_size=2**20
            )
            args = ocp.args.Composite(state=state, host=ocp.args.JsonSave({'step': step}))
            kept.save(step, args=args, metrics={'loss': loss}, force=True)
        kept.wait_until_finished()
        steps = kept.all_steps(), kept.best_step()
        state = ocp.args.PyTreeSave(arrays(4))
        kept.save(4, args=ocp.args.Composite(state=state), metrics={'loss': 0.3}, force=True)
        try:
            kept.wait_until_finished()
        except OSError as e:
            os.write(1, json.dumps([*steps, str(e).splitlines()[-1]]).encode())
            os._exit(0)  # Like a process that is killed, without any cleanup.


def resume(step):
    """What a reader sees beside the unfinished save, and what a resumed run sees and keeps."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from etils import epath

    with manager(read_only=True, cleanup_tmp_directories=False) as reader:
        seen = [reader.all_steps(), sorted(path.name for path in epath.Path(RUN).iterdir())]
    with manager(cleanup_tmp_directories=True) as kept:
        restore_args = ocp.checkpoint_utils.construct_restore_args(arrays(step))
        state = ocp.args.PyTreeRestore(arrays(step), restore_args=restore_args)
        restored = kept.restore(
            step, args=ocp.args.Composite(state=state, host=ocp.args.JsonRestore())
        )
        same = jax.tree.map(np.array_equal, restored['state'], arrays(step))
        seen += [kept.all_steps(), kept.latest_step(), kept.best_step(), restored['host'], same]
    return seen


def folders(gcs):
    """The steps that have objects, and those of them that are committed."""
    names = [name.split('/') for _, name in gcs.objects]
    committed = {parts[2] for parts in names if parts[3:] == ['commit_success.txt']}
    return sorted({parts[2] for parts in names}), sorted(committed)


def test_orbax_saves_keeps_resumes_and_cleans_up(gcs, client):
    gcs.fail(f'POST .*name={RUN.removeprefix("gs://bucket/")}/4/commit_success', 1, status=403)
    assert client(save_four) == [[2, 3], 2, 'this request is set to fail']
    assert folders(gcs) == (['2', '3', '4'], ['2', '3'])
    same = {'w': True, 'big': True}
    assert client(resume, 3) == [[2, 3], ['2', '3', '4'], [2, 3], 3, 2, {'step': 3}, same]
    assert folders(gcs) == (['2', '3'], ['2', '3'])
    # An unfinished checkpoint has its final name from the start; only the commit file marks it.
    assert not any('tmp' in path for _, path in gcs.requests)
