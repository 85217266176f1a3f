"""launch/gke/render.py: Kubernetes accepts the manifest, and restarts the right failures."""

import importlib.util
import json
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT

SCRIPT = ROOT / 'launch' / 'gke' / 'render.py'
WORDS = ('--config=c.py:full', '--workdir=gs://bucket/run')

_spec = importlib.util.spec_from_file_location('render', SCRIPT)
render = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(render)


def arguments(*options: str, words=WORDS) -> list[str]:
    names = {option.split('=')[0] for option in options}
    required = ('--name=vit', '--image=registry.example/vit:1', '--topology=v5e:4x4')
    rest = [option for option in required if option.split('=')[0] not in names]
    return [*rest, *options, '--', *words]


@pytest.fixture
def rendered(capsys):
    """Renders in this process: options -> the manifest, parsed from the printed text."""

    def run(*options: str, words=WORDS) -> dict:
        assert render.main(arguments(*options, words=words)) == 0
        return yaml.safe_load(capsys.readouterr().out)

    return run


def job_of(manifest: dict) -> dict:
    (job,) = manifest['spec']['replicatedJobs']
    return job['template']['spec']


def pod_of(manifest: dict) -> dict:
    return job_of(manifest)['template']['spec']


def container_of(manifest: dict) -> dict:
    (container,) = pod_of(manifest)['containers']
    return container


@pytest.mark.parametrize('options', [(), ('--spot', '--service-account=a', '--env=A=1')])
def test_kubernetes_accepts_the_job_and_its_pod(rendered, options):
    job = job_of(rendered('--slices=2', '--topology=v5p:2x2x4', *options))
    kinds = (('batch/v1', 'Job', job), ('v1', 'Pod', job['template']['spec']))
    for version, kind, spec in kinds:
        resource = {'apiVersion': version, 'kind': kind, 'metadata': {'name': 'x'}, 'spec': spec}
        kubernetes_validate.validate(resource, '1.34', strict=True)


def test_validation_rejects_an_unknown_key(rendered):
    job = job_of(rendered()) | {'backoffLimits': 0}
    resource = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'x'}, 'spec': job}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource, '1.34', strict=True)


def test_everything_is_filled_in(rendered):
    manifest = rendered('--namespace=team')
    assert manifest['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
    assert manifest['kind'] == 'JobSet'
    assert manifest['metadata']['name'] == 'vit'
    assert manifest['metadata']['namespace'] == 'team'
    assert container_of(manifest)['image'] == 'registry.example/vit:1'
    assert 'RENDERED' not in json.dumps(manifest)


@pytest.mark.parametrize(
    'topology, accelerator, hosts, chips',
    [
        ('v5e:1x1', 'tpu-v5-lite-podslice', 1, 1),
        ('v5e:2x2', 'tpu-v5-lite-podslice', 1, 4),
        ('v5e:2x4', 'tpu-v5-lite-podslice', 1, 8),
        ('v5e:4x4', 'tpu-v5-lite-podslice', 4, 4),
        ('v5e:16x16', 'tpu-v5-lite-podslice', 64, 4),
        ('v6e:2x4', 'tpu-v6e-slice', 1, 8),
        ('v6e:8x16', 'tpu-v6e-slice', 32, 4),
        ('v4:2x2x1', 'tpu-v4-podslice', 1, 4),
        ('v4:2x2x4', 'tpu-v4-podslice', 4, 4),
        ('v5p:2x2x2', 'tpu-v5p-slice', 2, 4),
        ('v5p:4x4x8', 'tpu-v5p-slice', 32, 4),
    ],
)
def test_topologies(rendered, topology, accelerator, hosts, chips):
    manifest = rendered(f'--topology={topology}')
    job = job_of(manifest)
    assert job['parallelism'] == job['completions'] == hosts
    assert job['completionMode'] == 'Indexed'
    selector = pod_of(manifest)['nodeSelector']
    assert selector == {
        'cloud.google.com/gke-tpu-accelerator': accelerator,
        'cloud.google.com/gke-tpu-topology': topology.split(':')[1],
    }
    resources = container_of(manifest)['resources']
    assert resources['requests'] == resources['limits'] == {'google.com/tpu': chips}


def test_same_generations_as_plan():
    from jaxtrain.costs.topology import GENERATIONS

    here = {name: dimensions for name, (_, dimensions) in render.GENERATIONS.items()}
    assert here == {name: dimensions for name, (dimensions, _) in GENERATIONS.items()}


@pytest.mark.parametrize('slices', [1, 2, 16])
def test_slices(rendered, slices):
    manifest = rendered(f'--slices={slices}', '--topology=v5e:4x8')
    (job,) = manifest['spec']['replicatedJobs']
    assert job['replicas'] == slices
    assert job_of(manifest)['parallelism'] == 8  # hosts of one slice


def test_one_slice_one_node_pool(rendered):
    key = 'alpha.jobset.sigs.k8s.io/exclusive-topology'
    annotations = rendered('--topology=v5e:4x4')['metadata']['annotations']
    assert annotations == {key: 'cloud.google.com/gke-nodepool'}
    assert 'annotations' not in rendered('--topology=v5e:2x4')['metadata']


# How Kubernetes and JobSet handle a failure, from their documentation and their source.


def job_failure(job: dict, *pods: dict) -> str | None:
    """The reason with which a Job fails; a pod has its exit `code`, and may be `disrupted`.

    The first rule that a pod matches applies. FailJob for any pod has precedence over the count.
    """
    assert job['template']['spec']['restartPolicy'] == 'Never'  # the API requires this for a policy
    actions = [_action(job['podFailurePolicy']['rules'], pod) for pod in pods if _failed(pod)]
    if 'FailJob' in actions:
        return 'PodFailurePolicy'
    return 'BackoffLimitExceeded' if actions.count('Count') > job['backoffLimit'] else None


def _failed(pod: dict) -> bool:
    return pod.get('code') != 0


def _action(rules: list, pod: dict) -> str:
    for rule in rules:
        if 'onPodConditions' in rule:
            (condition,) = rule['onPodConditions']
            assert condition == {'type': 'DisruptionTarget', 'status': 'True'}
            matches = pod.get('disrupted', False)
        else:
            code, asked = pod.get('code'), rule['onExitCodes']
            matches = (
                code not in (None, 0)
                and {
                    'In': code in asked['values'],
                    'NotIn': code not in asked['values'],
                }[asked['operator']]
            )
        if matches:
            return rule['action']
    return 'Count'


def set_action(policy: dict, *reasons: str) -> str:
    """The action of a JobSet after Jobs failed: that of the first rule that any of them matches."""
    for rule in policy['rules']:
        asked = rule.get('onJobFailureReasons')
        if any(not asked or reason in asked for reason in reasons):
            return rule['action']
    return 'RestartJobSet'


RESTART, FAIL = 'RestartJobSet', 'FailJobSet'
STOPPED, CRASHED, FATAL = {'code': 42}, {'code': 1}, {'code': 2}


@pytest.mark.parametrize(
    'slices, action',
    [
        ([[STOPPED]], RESTART),
        ([[STOPPED, STOPPED, {'code': 0}]], RESTART),
        ([[CRASHED]], FAIL),
        ([[FATAL]], FAIL),
        ([[{'code': 137}]], FAIL),  # out of memory
        ([[{'code': 143}]], FAIL),
        ([[STOPPED, CRASHED]], FAIL),
        ([[STOPPED], [CRASHED]], FAIL),
        ([[CRASHED], [STOPPED]], FAIL),
        ([[{'code': 137, 'disrupted': True}]], RESTART),
        ([[{'code': 143, 'disrupted': True}, STOPPED]], RESTART),
        ([[{'disrupted': True}]], RESTART),  # its node is gone, and the exit code with it
        ([[{'code': 137, 'disrupted': True}], [STOPPED]], RESTART),
        ([[{}]], RESTART),  # no container was started
    ],
)
def test_what_is_restarted(rendered, slices, action):
    manifest = rendered()
    reasons = [job_failure(job_of(manifest), *pods) for pods in slices]
    assert None not in reasons
    assert set_action(manifest['spec']['failurePolicy'], *reasons) == action


def test_a_finished_job_is_no_failure(rendered):
    assert job_failure(job_of(rendered()), {'code': 0}, {'code': 0}) is None


@pytest.mark.parametrize('reason', ['DeadlineExceeded', 'FailedIndexes', 'Other'])
def test_other_failures_end_the_set(rendered, reason):
    assert set_action(rendered()['spec']['failurePolicy'], reason) == FAIL


def test_policy_names_the_container_that_exists(rendered):
    manifest = rendered()
    asked = {
        rule['onExitCodes']['containerName']
        for rule in job_of(manifest)['podFailurePolicy']['rules']
        if 'onExitCodes' in rule
    }
    assert asked == {container_of(manifest)['name']}


def test_restarts(rendered):
    assert rendered()['spec']['failurePolicy']['maxRestarts'] == 20
    assert rendered('--max-restarts=0')['spec']['failurePolicy']['maxRestarts'] == 0


def test_time_to_save(rendered):
    assert pod_of(rendered())['terminationGracePeriodSeconds'] == 120


def test_spot(rendered):
    key = 'cloud.google.com/gke-spot'
    pod = pod_of(rendered('--spot'))
    assert pod['nodeSelector'][key] == 'true'
    assert {'key': key, 'operator': 'Equal', 'value': 'true', 'effect': 'NoSchedule'} in pod[
        'tolerations'
    ]
    assert key not in json.dumps(rendered())


def test_service_account(rendered):
    assert pod_of(rendered('--service-account=trainer'))['serviceAccountName'] == 'trainer'
    assert 'serviceAccountName' not in pod_of(rendered())


NASTY = (
    "--config.augment=(('shift', 1), ('noise', 5.0))",
    '--config.note="a": {b} # c',
    '--config.text=two\nlines\t\\n',
    '1e3', 'y', 'null', '- x', '', ' x ', '{{ y }}', '0x10', '12:30', 'é☃',
)  # fmt: skip


def test_arguments_are_unchanged(rendered):
    manifest = rendered(words=(*WORDS, *NASTY))
    assert container_of(manifest)['command'] == ['python', '-m', 'jaxtrain', 'train']
    assert container_of(manifest)['args'] == [*WORDS, *NASTY]


def test_kubectl_reads_no_argument_as_a_number(capsys):
    """Its parser reads more plain words as numbers and booleans than PyYAML: 1e3, y, 0o7."""
    render.main(arguments('--env=A=1e3', '--namespace=1e3', words=(*WORDS, '1e3', 'y', '0o7')))
    lines = capsys.readouterr().out.splitlines()
    for word in ('1e3', 'y', '0o7'):
        assert f'- "{word}"' in (line.strip() for line in lines)
    assert 'value: "1e3"' in (line.strip() for line in lines)
    assert '  namespace: "1e3"' in lines


def expanded(text: str, env: dict) -> str:
    """Kubernetes' expansion of args and values of env."""

    def replace(match):
        if match.group() == '$$':
            return '$'
        return env.get(match.group(1), match.group())

    return re.sub(r'\$\$|\$\(([^)]*)\)', replace, text)


@pytest.mark.parametrize('text', ['$(HOME)', '$$(HOME)', '$HOME', '$', '$$', 'a$(', '${HOME}'])
def test_kubernetes_expands_nothing(rendered, text):
    manifest = rendered(f'--env=A={text}', words=(*WORDS, text))
    env = {'HOME': '/root'}
    assert expanded(container_of(manifest)['args'][-1], env) == text
    (value,) = (e['value'] for e in container_of(manifest)['env'] if e['name'] == 'A')
    assert expanded(value, env) == text


def test_env(rendered):
    options = ('JAX_COMPILATION_CACHE_DIR=gs://b/xla', 'B=x=y: z', 'C=1', 'C=')
    manifest = rendered(*(f'--env={option}' for option in options))
    env = {entry['name']: entry['value'] for entry in container_of(manifest)['env']}
    assert env == {
        'PYTHONUNBUFFERED': '1',
        'JAX_COMPILATION_CACHE_DIR': 'gs://b/xla',
        'B': 'x=y: z',
        'C': '',
    }


@pytest.mark.parametrize(
    'options, message',
    [
        (['--topology=v5e'], '--topology=v5e'),
        (['--topology=v9:2x2'], 'v9:2x2'),
        (['--topology=v5e:4x4x4'], 'v5e has 1x1, 2x2'),
        (['--topology=v5e:3x3'], 'v5e has 1x1, 2x2'),
        (['--topology=v5e:4x2'], 'v5e has 1x1, 2x2'),
        (['--topology=v5p:8x8'], 'v5p has 2x2x1'),
        (['--topology=v5p:8x4x4'], 'v5p has 2x2x1'),
        (['--topology=v5p:4x4x6'], 'v5p has 2x2x1'),
        (['--topology=v5e:2x4', '--slices=2'], 'has one'),
        (['--slices=0'], '--slices=0'),
        (['--slices=two'], '--slices'),
        (['--name=Vit'], "--name='Vit'"),
        (['--name=1vit'], "--name='1vit'"),
        (['--name=vit-'], "--name='vit-'"),
        (['--name=a\nb'], '--name='),
        (['--name=' + 'a' * 60], '13 characters too long'),
        (['--namespace=a.b'], '--namespace'),
        (['--service-account=A'], '--service-account'),
        (['--image=a b'], '--image'),
        (['--image='], '--image'),
        (['--env=A'], '--env'),
        (['--env=1A=2'], '--env'),
        (['--max-restarts=-1'], '--max-restarts'),
        (['--unknown'], '--unknown'),
        (['--topolog=v5e:4x4'], '--topolog'),
    ],
)
def test_wrong_input(capsys, options, message):
    assert render.main(arguments(*options)) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert len(err.splitlines()) == 1 and message in err


@pytest.mark.parametrize('words', [(), ('--config=c.py',), ('--workdir=w', '--configs=c')])
def test_missing_arguments(capsys, words):
    assert render.main(arguments(words=words)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_arguments_at_all(capsys):
    assert render.main(arguments()[:3]) == 2
    assert 'after --' in capsys.readouterr().err


def test_longest_name(rendered, capsys):
    """JobSet rejects a name if a pod's name, with slice, host and five letters, exceeds 63."""
    rest = '-slice-11-15-abcde'  # 12 slices of 16 hosts
    name = 'a' * (63 - len(rest))
    options = ('--slices=12', '--topology=v5e:8x8')
    assert rendered(f'--name={name}', *options)
    assert render.main(arguments(f'--name={name}a', *options)) == 2
    assert 'too long' in capsys.readouterr().err


def test_command():
    """Run as a program, which requires neither JAX nor jaxtrain."""
    code = f'import sys, runpy; sys.argv = {[str(SCRIPT), *arguments()]!r}\n' + (
        "sys.modules |= {'jax': None, 'jaxtrain': None}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='/')
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)['metadata']['name'] == 'vit'
