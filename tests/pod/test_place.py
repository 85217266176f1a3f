"""Which process of a run this is, from flags, SLURM and TPUs."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from jaxtrain.errors import UserError
from jaxtrain.pod import place
from jaxtrain.pod.place import PORT, Place, find_place, read_metadata, tpu_metadata

SLURM = {
    'SLURM_STEP_NUM_TASKS': '8',
    'SLURM_PROCID': '5',
    'SLURM_STEP_NODELIST': 'node[001-004]',
    'SLURM_JOB_ID': '1234567',
}
GKE = {'TPU_WORKER_HOSTNAMES': 'job-0.svc,job-1.svc,job-2.svc,job-3.svc', 'TPU_WORKER_ID': '3'}
SLICES = {
    'MEGASCALE_NUM_SLICES': '2',
    'MEGASCALE_SLICE_ID': '1',
    'MEGASCALE_COORDINATOR_ADDRESS': 'slice0-0.svc:8080',
}
# The metadata of a TPU VM of a v4-16, in the old and in the new format.
OLD = '1234:8470:10.0.0.2,1235:8470:10.0.0.3'
NEW = 't1v-n-5ea-w-0,t1v-n-5ea-w-1'
TPU_ENV = """ACCELERATOR_TYPE: 'v4-16'
MEGASCALE_NUM_SLICES: '2'
MEGASCALE_SLICE_ID: '1'
MEGASCALE_COORDINATOR_ADDRESS: '10.9.9.9:8080'
TPU_CHIPS_PER_HOST_BOUNDS: '2,2,1'
"""


def find(environ=(), metadata=None, coordinator='', processes=0, process=0, port=0) -> Place:
    return find_place(Place(processes, process, coordinator), port, dict(environ), metadata)


def reads(**values: str):
    """Replaces a TPU VM's metadata."""
    return lambda key: values.get(key.replace('-', '_'), '')


# Flags.


def test_flags():
    assert find(coordinator='host:1234', processes=4, process=3) == Place(4, 3, 'host:1234')


@pytest.mark.parametrize(
    'coordinator, address',
    [
        ('host:1234', ('host', 1234)),
        ('10.0.0.1:80', ('10.0.0.1', 80)),
        ('[fe80::1]:8476', ('fe80::1', 8476)),
    ],
)
def test_address(coordinator, address):
    assert Place(2, 0, coordinator).address == address


@pytest.mark.parametrize('coordinator', ['', 'host:1'])
def test_a_single_process_is_alone_in_any_environment(coordinator):
    result = find(SLURM | GKE, reads(), coordinator=coordinator, processes=1)
    assert (result.processes, result.process, result.coordinator) == (1, 0, '')


@pytest.mark.parametrize(
    'flags, named, fix',
    [
        ({'processes': 4}, '--processes=4', '--coordinator=HOST:PORT'),
        ({'process': 1}, '--process=1', '--coordinator=HOST:PORT'),
        ({'processes': 4, 'process': 1}, '--processes=4', '--coordinator=HOST:PORT'),
        ({'processes': -1}, '--processes=-1', 'the number of'),
        ({'coordinator': 'host:1'}, '--coordinator', '--processes'),
        ({'coordinator': 'host:1', 'processes': -2}, '--processes=-2', 'the number of'),
        ({'coordinator': 'host:1', 'process': 1}, '--coordinator', '--processes'),
        (
            {'coordinator': 'host:1', 'processes': 4, 'process': 4},
            '--process=4',
            'below --processes=4',
        ),
        (
            {'coordinator': 'host:1', 'processes': 4, 'process': -1},
            '--process=-1',
            'below --processes=4',
        ),
        ({'processes': 1, 'process': 1}, '--process=1', '--coordinator=HOST:PORT'),
        ({'coordinator': 'host', 'processes': 2}, '--coordinator=host ', 'HOST:PORT'),
        ({'coordinator': 'host:', 'processes': 2}, '--coordinator=host: ', 'HOST:PORT'),
        ({'coordinator': ':1234', 'processes': 2}, '--coordinator=:1234', 'HOST:PORT'),
        ({'coordinator': 'host:abc', 'processes': 2}, '--coordinator=host:abc', 'HOST:PORT'),
        ({'coordinator': 'host:0', 'processes': 2}, '--coordinator=host:0', 'HOST:PORT'),
        ({'coordinator': 'host:65536', 'processes': 2}, '--coordinator=host:65536', 'HOST:PORT'),
        ({'coordinator': 'http://h:80', 'processes': 2}, '--coordinator=http://h:80', 'HOST:PORT'),
        ({'coordinator': 'h:1', 'processes': 2, 'port': 9999}, '--port=9999', '--coordinator'),
        ({'port': 65536}, '--port=65536', 'from 1024 to 65535'),
        ({'port': -1}, '--port=-1', 'from 1024 to 65535'),
    ],
)
def test_flags_that_do_not_fit(flags, named, fix):
    with pytest.raises(UserError) as raised:
        find(**flags)
    assert named in str(raised.value) and fix in str(raised.value)


def test_flags_come_before_the_environment():
    result = find(SLURM | GKE, coordinator='host:1234', processes=2, process=1)
    assert result == Place(2, 1, 'host:1234', 'flags')


def test_no_flags_and_no_environment():
    assert find() == Place(source='nothing else')


# SLURM.


def test_slurm():
    result = find(SLURM)
    assert (result.processes, result.process, result.source) == (8, 5, 'SLURM')
    assert result.address[0] == 'node001'


@pytest.mark.parametrize(
    'nodes, first',
    [
        ('node07', 'node07'),
        ('node07,node08', 'node07'),
        ('node[001-004]', 'node001'),
        ('node[4,7-9]', 'node4'),
        ('a[07-09,12]-ib,other', 'a07-ib'),
        ('other,a[07-09,12]-ib', 'other'),
        ('rack[2-3]n[05-08],x[1-2]', 'rack2n05'),
        ('gpu-1.cluster.org', 'gpu-1.cluster.org'),
    ],
)
def test_first_node(nodes, first):
    assert find(SLURM | {'SLURM_STEP_NODELIST': nodes}).address[0] == first


@pytest.mark.parametrize('name', ['SLURM_PROCID', 'SLURM_STEP_NODELIST', 'SLURM_JOB_ID'])
def test_slurm_with_a_missing_variable(name):
    with pytest.raises(UserError, match=f'{name}.*srun.*--coordinator'):
        find({key: value for key, value in SLURM.items() if key != name})


@pytest.mark.parametrize(
    'name, value',
    [('SLURM_STEP_NUM_TASKS', '8(x2)'), ('SLURM_PROCID', ''), ('SLURM_STEP_NODELIST', '[')],
)
def test_slurm_with_a_malformed_variable(name, value):
    with pytest.raises(UserError, match='SLURM_.*--coordinator'):
        find(SLURM | {name: value})


def test_the_batch_script_itself_is_alone():
    """It has the variables of the job, but not those of a step."""
    job = {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '8', 'SLURM_PROCID': '0', 'SLURM_NODEID': '0'}
    assert find(job).processes == 1


def test_one_task_is_alone():
    assert find(SLURM | {'SLURM_STEP_NUM_TASKS': '1', 'SLURM_PROCID': '0'}).coordinator == ''


def test_slurm_ports():
    """They depend on the job, not on the task, and the system does not assign them by itself."""
    ports = {job: find(SLURM | {'SLURM_JOB_ID': str(job)}).address[1] for job in (1, 2, 4097, 9999)}
    assert ports[1] != ports[2] and all(61440 <= port < 65536 for port in ports.values())
    assert find(SLURM).address == find(SLURM | {'SLURM_PROCID': '0'}).address
    assert find(SLURM, port=7777).address == ('node001', 7777)


# TPUs.


def test_gke():
    result = find(GKE)
    assert result == Place(4, 3, f'job-0.svc:{PORT}', 'the TPU')
    assert find(GKE, port=7777).address[1] == 7777


def test_gke_with_addresses_of_processes():
    """TPU_PROCESS_ADDRESSES has precedence, and may contain ports."""
    result = find(GKE | {'TPU_PROCESS_ADDRESSES': 'a:8471,b:8471', 'TPU_WORKER_ID': '1'})
    assert result == Place(2, 1, f'a:{PORT}', 'the TPU')


def test_gke_slices():
    """Processes are numbered through all slices, and connect to the first host of the first."""
    assert find(GKE | SLICES) == Place(8, 7, f'slice0-0.svc:{PORT}', 'the TPU')
    first = find(GKE | SLICES | {'MEGASCALE_SLICE_ID': '0', 'TPU_WORKER_ID': '0'})
    assert first == Place(8, 0, f'slice0-0.svc:{PORT}', 'the TPU')


@pytest.mark.parametrize('name', ['MEGASCALE_SLICE_ID', 'MEGASCALE_COORDINATOR_ADDRESS'])
def test_slices_with_a_missing_variable(name):
    """Each slice would otherwise take itself for the first, or connect only to itself."""
    environ = {key: value for key, value in (GKE | SLICES).items() if key != name}
    with pytest.raises(UserError, match=f'{name}.*--coordinator'):
        find(environ)


@pytest.mark.parametrize('number', [None, '', 'x'])
def test_gke_without_a_number(number):
    environ = {'TPU_WORKER_HOSTNAMES': 'a,b'} | (
        {} if number is None else {'TPU_WORKER_ID': number}
    )
    with pytest.raises(UserError, match='TPU_WORKER_ID.*--coordinator'):
        find(environ)


@pytest.mark.parametrize('number', [{}, {'TPU_WORKER_ID': '0'}])
def test_a_tpu_of_one_host_is_alone(number):
    assert find({'TPU_WORKER_HOSTNAMES': 'localhost'} | number).processes == 1


@pytest.mark.parametrize('endpoints, first', [(OLD, '10.0.0.2'), (NEW, 't1v-n-5ea-w-0')])
def test_tpu_vm(endpoints, first):
    result = find({}, reads(worker_network_endpoints=endpoints, agent_worker_number='1'))
    assert result == Place(2, 1, f'{first}:{PORT}', 'the TPU')


def test_tpu_vm_slices():
    metadata = reads(worker_network_endpoints=OLD, agent_worker_number='1', tpu_env=TPU_ENV)
    assert find({}, metadata) == Place(4, 3, f'10.9.9.9:{PORT}', 'the TPU')
    # The environment has precedence.
    assert find({'MEGASCALE_SLICE_ID': '0'}, metadata).process == 1


def test_tpu_vm_without_a_number():
    with pytest.raises(UserError, match='10.0.0.2.*--coordinator'):
        find({}, reads(worker_network_endpoints=OLD))


def test_gke_needs_no_metadata():
    def asked(key):
        raise AssertionError(key)

    assert find(GKE, asked).processes == 4


def test_slurm_comes_before_the_tpu():
    assert find(SLURM | GKE).source == 'SLURM'


# The metadata server.


@contextlib.contextmanager
def metadata_server(values: dict[str, str], refuse: int = 0):
    """Serves on 127.0.0.1 after `refuse` answers with 503; yields (host, the paths requested)."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            before, _, key = self.path.rpartition('/')
            good = before == '/computeMetadata/v1/instance/attributes'
            good = good and self.headers.get('Metadata-Flavor') == 'Google'
            code = 503 if len(asked) <= refuse else 200 if good and key in values else 404
            self.send_response(code)
            self.end_headers()
            self.wfile.write(values[key].encode() if code == 200 else b'<html>no</html>')

        def log_message(self, *_):
            pass

    with HTTPServer(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f'127.0.0.1:{server.server_port}', asked
        server.shutdown()


@pytest.fixture
def chips(monkeypatch):
    """Makes this machine appear to have no TPU chips but those added: `chips('/dev/accel0')`."""
    devices: list[str] = []
    monkeypatch.setattr(
        place.glob, 'glob', lambda pattern: [p for p in devices if p[:6] in pattern]
    )
    return devices.append


@pytest.fixture
def quick(monkeypatch):
    """Removes the pause between two attempts."""
    monkeypatch.setattr(place, 'BACKOFF', 0.01)


def asks(host: str):
    return tpu_metadata({'GCE_METADATA_IP': host})


def test_metadata(chips):
    chips('/dev/accel0')
    values = {'worker-network-endpoints': OLD, 'agent-worker-number': '1', 'tpu-env': TPU_ENV}
    with metadata_server(values) as (host, asked):
        assert find({}, asks(host)) == Place(4, 3, f'10.9.9.9:{PORT}', 'the TPU')
    assert len(asked) == 3


def test_metadata_server_that_is_busy(quick):
    with metadata_server({'agent-worker-number': '1'}, refuse=2) as (host, asked):
        assert read_metadata(host, 'agent-worker-number') == '1'
    assert len(asked) == 3


def test_metadata_server_that_stays_busy(quick):
    """An error, as each host of a pod would otherwise train alone, as process 0."""
    with metadata_server({}, refuse=99) as (host, _), pytest.raises(UserError) as raised:
        read_metadata(host, 'agent-worker-number')
    assert host in str(raised.value) and '--coordinator' in str(raised.value)


def test_metadata_without_a_key():
    with metadata_server({}) as (host, asked):
        assert read_metadata(host, 'agent-worker-number') == ''
    assert len(asked) == 1


def test_a_proxy_is_not_asked(monkeypatch):
    """The metadata server belongs to this machine."""
    monkeypatch.setenv('HTTP_PROXY', 'http://127.0.0.1:9')
    monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
    monkeypatch.delenv('NO_PROXY', raising=False)
    monkeypatch.delenv('no_proxy', raising=False)
    with metadata_server({'agent-worker-number': '1'}) as (host, _):
        assert read_metadata(host, 'agent-worker-number') == '1'


def test_no_metadata_server(chips, quick):
    chips('/dev/vfio/0')
    with metadata_server({}) as (host, _):
        pass  # nothing listens there now
    assert find({}, asks(host)) == Place(source='nothing else')


def test_no_metadata_without_a_tpu(chips):
    assert tpu_metadata({}) is None


@pytest.mark.parametrize('environ', [{'JAX_PLATFORMS': 'cpu'}, {'TPU_SKIP_MDS_QUERY': '1'}])
def test_no_metadata_where_it_must_not_be_read(chips, environ):
    chips('/dev/accel0')
    assert tpu_metadata({}) and tpu_metadata(environ) is None
