"""Which process of a run this is, and where all meet: told by flags, SLURM or a TPU's metadata.

| told by        | in                                                                             |
|----------------|--------------------------------------------------------------------------------|
| flags          | --coordinator=HOST:PORT --processes=N --process=I                              |
| SLURM          | SLURM_STEP_NUM_TASKS, SLURM_PROCID, SLURM_STEP_NODELIST, which srun sets       |
| TPU on GKE     | TPU_WORKER_HOSTNAMES, TPU_WORKER_ID, of several slices also MEGASCALE_...      |
| TPU VM         | worker-network-endpoints, agent-worker-number, tpu-env of the metadata server  |

The names are those that JAX's own cluster detection reads (jax/_src/clusters).
"""

import glob
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxtrain.errors import UserError

PORT = 8476
# Ports that the system does not hand out by itself (Linux's default range ends below).
_SLURM_PORTS = range(61440, 65536)
# Seconds before the second attempt to read metadata; then twice as many each time.
BACKOFF = 0.5
_METADATA = 'http://{host}/computeMetadata/v1/instance/attributes/{key}'


@dataclass(frozen=True)
class Place:
    """A process among those of a run.

    Attributes:
      processes: how many there are.
      process: number of this one, from 0.
      coordinator: 'host:port' at which process 0 is met; '' for a run of one process.
      source: what told so, for messages.
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
    coordinator: str,
    processes: int,
    process: int,
    port: int,
    environ: Mapping[str, str],
    metadata: Callable[[str], str] | None = None,
) -> Place:
    """Where flags put this process, else the environment.

    Args:
      coordinator: '' or 'host:port'.
      processes: 0 for as many as the environment tells, 1 for this one alone.
      process: number of this one; needs a coordinator.
      port: to meet at, where the environment tells the host; 0 for a default.
      environ: environment variables.
      metadata: what reads a key of a TPU VM's metadata ('' if there is none); None where this is
        no TPU VM.

    Raises:
      UserError: flags that do not fit together, or an environment that says half of it.
    """
    if not 0 <= port < 65536:
        raise UserError(f'--port={port} is no port; give one from 1024 to 65535')
    if coordinator or processes or process:
        return _of_flags(coordinator, processes, process, port)
    place = _of_slurm(environ, port) or _of_tpu(environ, metadata, port)
    return place if place and place.processes > 1 else Place(source='nothing else')


def _of_flags(coordinator: str, processes: int, process: int, port: int) -> Place:
    if processes < 0 or (coordinator and not processes):
        raise UserError(
            f'--coordinator={coordinator} --processes={processes}: say by --processes=N how many '
            'processes there are'
        )
    if not coordinator:
        if processes > 1 or process:
            raise UserError(
                f'--processes={processes} --process={process}: several processes need '
                '--coordinator=HOST:PORT of process 0'
            )
        return Place()
    match = re.fullmatch(r'[^/]+:(\d{1,5})', coordinator)
    if not match or not 0 < int(match[1]) < 65536:
        raise UserError(f'--coordinator={coordinator} must be HOST:PORT of process 0')
    if port:
        raise UserError(f'--port={port} is for SLURM and TPUs; --coordinator has its own port')
    if not 0 <= process < processes:
        raise UserError(f'--process={process} must lie below --processes={processes}, from 0')
    return Place(processes, process, coordinator if processes > 1 else '')


def _of_slurm(environ: Mapping[str, str], port: int) -> Place | None:
    # The batch script itself has no SLURM_STEP_...: only what srun starts does.
    if 'SLURM_STEP_NUM_TASKS' not in environ:
        return None
    try:
        tasks, task = int(environ['SLURM_STEP_NUM_TASKS']), int(environ['SLURM_PROCID'])
        nodes, job = environ['SLURM_STEP_NODELIST'], int(environ['SLURM_JOB_ID'])
    except (KeyError, ValueError) as error:
        raise UserError(
            f'SLURM_STEP_NUM_TASKS is set, but what goes with it is not understood ({error}); '
            'start with srun, or give --coordinator, --processes and --process'
        ) from error
    # A name by the job, so that two jobs on a node do not meet.
    port = port or _SLURM_PORTS[job % len(_SLURM_PORTS)]
    return Place(tasks, task, f'{_first_node(nodes)}:{port}', 'SLURM')


def _first_node(nodes: str) -> str:
    """'node[07-09,12],other' -> 'node07'; the coordinator is where task 0 is, on the first node."""
    match = re.match(r'([^,\[\]]|\[\d[^\]]*\])+', nodes)
    if not match:
        raise UserError(f'SLURM_STEP_NODELIST={nodes!r} names no node; give --coordinator')
    return re.sub(r'\[(\d+)[^\]]*\]', r'\1', match[0])


def _of_tpu(
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
        told = dict(re.findall(r"^(\w+): *'?([^'\n]*)'?", metadata('tpu-env'), re.MULTILINE))
        slices = {name: value or told.get(f'MEGASCALE_{name}') for name, value in slices.items()}
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
            f'the TPU names its workers {workers}, but not which of them this is ({error}); '
            'set TPU_WORKER_ID, or give --coordinator, --processes and --process'
        ) from error
    host = (slices['COORDINATOR_ADDRESS'] or hosts[0]).split(':')[0]
    return Place(len(hosts) * count, before + within, f'{host}:{port or PORT}', 'the TPU')


_SLICES = ('COORDINATOR_ADDRESS', 'NUM_SLICES', 'SLICE_ID')


def tpu_metadata(environ: Mapping[str, str]) -> Callable[[str], str] | None:
    """What reads this TPU VM's metadata; None where this is none or asking it is forbidden."""
    chips = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
    platforms = environ.get('JAX_PLATFORMS') or 'tpu'
    if not chips or 'tpu' not in platforms or environ.get('TPU_SKIP_MDS_QUERY'):
        return None
    return lambda key: read_metadata(
        environ.get('GCE_METADATA_IP', 'metadata.google.internal'), key
    )


def read_metadata(host: str, key: str) -> str:
    """An attribute of the instance, '' if it has none or there is no such server.

    Source: cloud.google.com/compute/docs/metadata/querying-metadata.

    Raises:
      UserError: there is such a server, which never answers.
    """
    import requests
    from requests.adapters import HTTPAdapter, Retry

    with requests.Session() as session:
        session.trust_env = False  # no proxy: the server is the machine's own
        codes = (429, 500, 502, 503)
        retry = Retry(total=5, backoff_factor=BACKOFF, status_forcelist=codes)
        session.mount('http://', HTTPAdapter(max_retries=retry))
        try:
            url = _METADATA.format(host=host, key=key)
            answer = session.get(url, headers={'Metadata-Flavor': 'Google'}, timeout=10)
        except requests.exceptions.RetryError as error:
            # Alone would be wrong: each host of a slice would take itself for the first.
            raise UserError(
                f'the metadata server {host} does not tell {key} ({error}); try again, or give '
                '--coordinator, --processes and --process'
            ) from error
        except requests.RequestException:
            return ''
    return answer.text if answer.ok else ''
