"""Which process of a run this is, and where all connect: from flags, SLURM or a TPU's metadata.

| source         | read from                                                                      |
|----------------|--------------------------------------------------------------------------------|
| flags          | --coordinator=HOST:PORT --processes=N --process=I                              |
| SLURM          | SLURM_STEP_NUM_TASKS, SLURM_PROCID, SLURM_STEP_NODELIST, which srun sets       |
| TPU on GKE     | TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, and MEGASCALE_... for several slices      |
| TPU VM         | worker-network-endpoints, agent-worker-number, tpu-env of the metadata server  |

The names are those that JAX's own cluster detection reads (jax/_src/clusters).
"""

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtrain.errors import UserError

PORT = 8476
# Ports that the system does not assign by itself (Linux's default range ends below).
_SLURM_PORTS = range(61440, 65536)
# Seconds before the second attempt to read metadata; doubled for each further attempt.
BACKOFF = 0.5
_METADATA = 'http://{host}/computeMetadata/v1/instance/attributes/{key}'


@dataclass(frozen=True)
class Place:
    """A process among those of a run.

    Attributes:
      processes: the number of processes.
      process: the number of this one, from 0.
      coordinator: 'host:port' where process 0 listens; '' for a run with one process.
      source: where these values come from.
    """

    processes: int = 1
    process: int = 0
    coordinator: str = ''
    source: str = 'flags'

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.coordinator.rsplit(':', 1)
        return host.strip('[]'), int(port)


def find_place(
    flags: Place,
    port: int,
    environ: Mapping[str, str],
    metadata: Callable[[str], str] | None = None,
) -> Place:
    """The place of this process, from flags if any is given, else from the environment.

    Args:
      flags: the place that the flags give. It has 0 processes for as many as the environment gives,
        and 1 for this one alone; the number of this one requires a coordinator.
      port: where process 0 listens, if the environment gives the host; 0 for a default.
      environ: environment variables.
      metadata: reads a key of a TPU VM's metadata ('' for a missing one); None if this machine is
        not a TPU VM.

    Raises:
      UserError: flags contradict each other, or the environment is incomplete.
    """
    if not 0 <= port < 65536:
        raise UserError(f'--port={port} is not a valid port; give one from 1024 to 65535')
    if flags.coordinator or flags.processes or flags.process:
        return _from_flags(flags, port)
    place = _from_slurm(environ, port) or _from_tpu(environ, metadata, port)
    return place if place and place.processes > 1 else Place(source='nothing else')


def _from_flags(flags: Place, port: int) -> Place:
    coordinator, processes, process = flags.coordinator, flags.processes, flags.process
    if processes < 0 or (coordinator and not processes):
        raise UserError(
            f'--coordinator={coordinator} --processes={processes}: give the number of '
            'processes with --processes=N'
        )
    if not coordinator:
        if processes > 1 or process:
            raise UserError(
                f'--processes={processes} --process={process}: several processes require '
                '--coordinator=HOST:PORT of process 0'
            )
        return Place()
    match = re.fullmatch(r'[^/]+:(\d{1,5})', coordinator)
    if not match or not 0 < int(match[1]) < 65536:
        raise UserError(f'--coordinator={coordinator} must be HOST:PORT of process 0')
    if port:
        raise UserError(f'--port={port} is for SLURM and TPUs; --coordinator contains its port')
    if not 0 <= process < processes:
        raise UserError(f'--process={process} must be at least 0 and below --processes={processes}')
    return Place(processes, process, coordinator if processes > 1 else '')


def _from_slurm(environ: Mapping[str, str], port: int) -> Place | None:
    # The batch script itself has no SLURM_STEP_... variables, only what srun starts has them.
    if 'SLURM_STEP_NUM_TASKS' not in environ:
        return None
    try:
        tasks, task = int(environ['SLURM_STEP_NUM_TASKS']), int(environ['SLURM_PROCID'])
        nodes, job = environ['SLURM_STEP_NODELIST'], int(environ['SLURM_JOB_ID'])
    except (KeyError, ValueError) as error:
        raise UserError(
            'SLURM_STEP_NUM_TASKS is set, but a variable of the step is missing or malformed '
            f'({error}); start with srun, or give --coordinator, --processes and --process'
        ) from error
    # The port depends on the job, so that two jobs on a node do not connect to each other.
    port = port or _SLURM_PORTS[job % len(_SLURM_PORTS)]
    return Place(tasks, task, f'{_first_node(nodes)}:{port}', 'SLURM')


def _first_node(nodes: str) -> str:
    """'node[07-09,12],other' -> 'node07'; the coordinator is task 0, on the first node."""
    match = re.match(r'([^,\[\]]|\[\d[^\]]*\])+', nodes)
    if not match:
        raise UserError(f'SLURM_STEP_NODELIST={nodes!r} does not name a node; give --coordinator')
    return re.sub(r'\[(\d+)[^\]]*\]', r'\1', match[0])


def _from_tpu(
    environ: Mapping[str, str], metadata: Callable[[str], str] | None, port: int
) -> Place | None:
    workers = environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES')
    number = environ.get('TPU_WORKER_ID')
    slices = {name: environ.get(f'MEGASCALE_{name}') for name in _SLICES}
    if not workers and metadata:
        endpoints = metadata('worker-network-endpoints')
        if not endpoints:
            return None
        number = metadata('agent-worker-number')
        # 'name:id:ip', or a plain host name.
        workers = ','.join(e.split(':')[-1] for e in endpoints.split(',') if e)
        tpu_env = dict(re.findall(r"^(\w+): *'?([^'\n]*)'?", metadata('tpu-env'), re.MULTILINE))
        slices = {name: value or tpu_env.get(f'MEGASCALE_{name}') for name, value in slices.items()}
    if not workers:
        return None
    hosts = [worker.strip().split(':')[0] for worker in workers.split(',')]
    try:
        count = int(slices['NUM_SLICES'] or 1)
        if missing := [f'MEGASCALE_{name}' for name in _SLICES if count > 1 and not slices[name]]:
            raise UserError(
                f'the TPU has {count} slices, but {" and ".join(missing)} is not set; '
                'set it, or give --coordinator, --processes and --process'
            )
        within = int(number or ('' if len(hosts) > 1 else 0))
        before = int(slices['SLICE_ID'] or 0) * len(hosts)
    except ValueError as error:
        raise UserError(
            f'the TPU has the workers {workers}, but does not name this one ({error}); '
            'set TPU_WORKER_ID, or give --coordinator, --processes and --process'
        ) from error
    host = (slices['COORDINATOR_ADDRESS'] or hosts[0]).split(':')[0]
    return Place(len(hosts) * count, before + within, f'{host}:{port or PORT}', 'the TPU')


_SLICES = ('COORDINATOR_ADDRESS', 'NUM_SLICES', 'SLICE_ID')


def tpu_metadata(environ: Mapping[str, str]) -> Callable[[str], str] | None:
    """A function that reads this TPU VM's metadata; None if it is not one, or must not be asked."""
    chips = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
    platforms = environ.get('JAX_PLATFORMS') or 'tpu'
    if not chips or 'tpu' not in platforms or environ.get('TPU_SKIP_MDS_QUERY'):
        return None
    return lambda key: read_metadata(
        environ.get('GCE_METADATA_IP', 'metadata.google.internal'), key
    )


def read_metadata(host: str, key: str) -> str:
    """An attribute of the instance, '' if it is missing or no metadata server exists.

    Source: cloud.google.com/compute/docs/metadata/querying-metadata.

    Raises:
      UserError: the server exists but does not answer.
    """
    import requests
    from requests.adapters import HTTPAdapter, Retry

    with requests.Session() as session:
        session.trust_env = False  # no proxy: the server belongs to this machine
        codes = (429, 500, 502, 503)
        retry = Retry(total=5, backoff_factor=BACKOFF, status_forcelist=codes)
        session.mount('http://', HTTPAdapter(max_retries=retry))
        try:
            url = _METADATA.format(host=host, key=key)
            answer = session.get(url, headers={'Metadata-Flavor': 'Google'}, timeout=10)
        except requests.exceptions.RetryError as error:
            # Not '', as each host of a slice would then train alone, as process 0.
            raise UserError(
                f'the metadata server {host} does not return {key} ({error}); try again, or give '
                '--coordinator, --processes and --process'
            ) from error
        except requests.RequestException:
            return ''
    return answer.text if answer.ok else ''
