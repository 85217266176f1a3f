"""The benchmark of large models, at tiny size: what it times and counts, and how it takes turns."""

import itertools
import json
import math
import time
from dataclasses import replace

import jax
import pytest

from jaxtrain.parallel.compile import Compiled
from jaxtrain.params.partition import count
from tests.benchmarks import foundation, foundation_ours
from tests.benchmarks.foundation import BATCHES, SPECS, TINY, OutOfMemory
from tests.benchmarks.table import OURS


def written(spec, folder, **changes):
    """Writes the data of a spec, and returns the spec with its folder."""
    spec = replace(spec, folder=str(folder), device='cpu', **changes)
    foundation._write(spec)
    return spec


def dense_vit(spec) -> int:
    """Multiply-adds of a ViT's forward pass in the layers after the patches, and in the patches."""
    patches, d = (spec.size // spec.patch) ** 2, spec.width
    tokens = patches + 1
    blocks = spec.depth * (12 * tokens * d**2 + 2 * tokens**2 * d)
    return blocks + d * spec.outputs, patches * 3 * spec.patch**2 * d


def test_operations_of_a_vit_are_those_of_its_layers(tmp_path):
    spec = written(TINY['vit_b16'], tmp_path)
    layers, patches = dense_vit(spec)
    # The backward pass costs twice as much, except that the pixels need no gradient.
    expected = 2 * (3 * layers + 2 * patches)
    assert foundation_ours.flops(foundation_ours.job_of(spec)) == pytest.approx(expected, rel=1e-3)


def test_operations_of_a_gpt_are_those_of_palm(tmp_path):
    spec = written(TINY['gpt2'], tmp_path)
    kernels = 12 * spec.depth * spec.width**2 + spec.outputs * spec.width
    # arXiv:2204.02311, appendix B: per token 6 N + 12 L H Q T.
    expected = spec.size * (6 * kernels + 12 * spec.depth * spec.width * spec.size)
    assert foundation_ours.flops(foundation_ours.job_of(spec)) == pytest.approx(expected, rel=1e-3)


# The parameters and the GMACs of a forward pass are from torchvision's table of models, which
# rounds the GMACs and calls them GFLOPS.
@pytest.mark.slow
def test_the_large_vit_is_the_published_one(tmp_path):
    job = foundation_ours.job_of(written(SPECS['vit_b16'], tmp_path, batch_size=1))
    assert count(job.abstract.params) == 86_567_656
    assert foundation_ours.flops(job) == pytest.approx(6 * 17.56e9, rel=0.01)


@pytest.mark.slow
def test_the_large_resnet_is_the_published_one(tmp_path):
    job = foundation_ours.job_of(written(SPECS['resnet50'], tmp_path, batch_size=1))
    assert count(job.abstract.params) == 25_557_032
    # The published number includes products with padding, at the edges of the 7x7 convolution and
    # of the 3x3 convolutions, of which the first in a stage may have a stride of 2.
    stem = 3 * 64
    on_padding = stem * (784**2 - 778**2)
    for width, side, blocks, first in (
        (64, 56, 3, 2), (128, 28, 4, 1), (256, 14, 6, 1), (512, 7, 3, 1),
    ):  # fmt: skip
        for missing in (first, *[2] * (blocks - 1)):
            on_padding += width**2 * ((3 * side) ** 2 - (3 * side - missing) ** 2)
    # The pixels need no gradient.
    expected = 6 * (4.09e9 - on_padding) - 2 * stem * 778**2
    assert foundation_ours.flops(job) == pytest.approx(expected, rel=0.003)


def test_the_smallest_gpt2_has_124_million_parameters(tmp_path):
    job = foundation_ours.job_of(written(SPECS['gpt2'], tmp_path, batch_size=1))
    assert count(job.abstract.params) == 124_439_808  # of the published weights


@pytest.mark.slow
def test_ours_counts_the_steps_that_it_times(tmp_path, monkeypatch, capsys):
    spec = written(TINY['gpt2'], tmp_path, depth=1)
    compiled, calls, done = foundation_ours.compile_train_step, [], []

    def counting(*args):
        step = compiled(*args)

        def call(*args):
            calls.append(args)
            state, metrics = step.call(*args)
            done.append(int(state.step))
            return state, metrics

        return Compiled(call, step.flops)

    # With this clock each step takes 2 seconds.
    monkeypatch.setattr(foundation_ours, 'compile_train_step', counting)
    monkeypatch.setattr(time, 'perf_counter', lambda: 2.0 * len(calls))
    foundation_ours.main(json.dumps(spec.__dict__), 'time')
    report = json.loads(capsys.readouterr().out)
    assert done == list(range(1, spec.warmup + spec.steps + 1))
    assert report['steps_per_s'] == 0.5
    # The batches on the device are used in turn.
    assert len({id(batch['tokens']) for _, batch in calls}) == BATCHES
    d = spec.width
    block = 12 * d**2 + 13 * d
    assert report['params'] == (spec.outputs + spec.size) * d + spec.depth * block + 2 * d


def test_ours_reports_that_memory_ran_out(monkeypatch, capsys):
    monkeypatch.setattr(foundation_ours, 'time_steps', lambda spec: jax.numpy.zeros(2**50, 'int8'))
    foundation_ours.main(json.dumps(TINY['gpt2'].__dict__), 'time')
    assert json.loads(capsys.readouterr().out) == {'out_of_memory': True}


def test_texts_are_the_tokens_that_the_peer_reads(tmp_path):
    spec = written(TINY['gpt2'], tmp_path)
    examples = foundation_ours.job_of(spec).train.fetch(range(BATCHES * spec.batch_size))
    stream = foundation.np.load(tmp_path / 'tokens.npy')
    assert (examples['tokens'].ravel() == stream[:-1]).all()
    assert (examples['targets'].ravel() == stream[1:]).all()


def test_contestants_take_turns_and_all_restart_with_half_the_batch():
    asked = []

    def ask(name, spec):
        asked.append((name, spec.batch_size))
        if name not in ('flops', OURS) and spec.batch_size > 2:
            raise OutOfMemory(name)
        return {'flops': 1.0} if name == 'flops' else {'params': 7}

    sizes = []
    spec = replace(TINY['gpt2'], batch_size=5)
    result = foundation.measure(spec, 2, ask, lambda spec: sizes.append(spec.batch_size))
    peer = 'PyTorch, torch.compile'
    assert sizes == [5, 2] and result['halved'] == [peer]
    assert asked[-5:] == [('flops', 2), (OURS, 2), (peer, 2), (OURS, 2), (peer, 2)]
    assert result['spec'] == {**spec.__dict__, 'batch_size': 2}


def test_a_single_example_that_does_not_fit_is_an_error():
    def ask(name, spec):
        raise OutOfMemory(name)

    with pytest.raises(SystemExit, match='single example of gpt2'):
        foundation.measure(TINY['gpt2'], 1, ask, lambda spec: None)


def test_models_of_different_sizes_are_an_error():
    numbers = itertools.count()
    with pytest.raises(SystemExit, match='not the same model'):
        foundation.measure(
            TINY['gpt2'], 1, lambda *_: {'flops': 1.0, 'params': next(numbers)}, lambda spec: None
        )


def test_the_table_has_units_per_second_and_their_share_of_the_peak():
    report = {
        'steps_per_s': 10.0,
        'params': 7,
        'device': 'chip',
        'peak': 4e6,
        'versions': {'a': '1'},
    }
    result = {
        'spec': replace(TINY['gpt2'], batch_size=4, size=32).__dict__,
        'halved': [],
        'flops': 64e3,  # so 2000 for a token
        'rounds': [{OURS: report, 'peer': {**report, 'steps_per_s': 5.0}}],
    }
    title, _, *lines = foundation.report(result).splitlines()
    assert 'on chip: 7 parameters, batch 4, 32 tokens' in title and 'halved' not in title
    assert lines[2:] == [
        f'| {OURS} | 1,280 [1,280, 1,280] | 64.00 [64.00, 64.00] |  |',
        '| peer | 640 [640, 640] | 32.00 [32.00, 32.00] | 2.00 [2.00, 2.00] |',
    ]
    halved = foundation.report({**result, 'halved': ['peer']}, peak=8e6)
    assert 'batch 4 (halved: out of memory in peer)' in halved and '| 32.00 [' in halved


@pytest.mark.parametrize('program', TINY)
def test_the_peer_is_the_same_model_and_trains(tmp_path, program):
    torch = pytest.importorskip('torch')
    if program != 'gpt2':
        pytest.importorskip('timm')
    from tests.benchmarks import foundation_torch

    spec = written(TINY[program], tmp_path, batch_size=4, mode='eager')
    torch.manual_seed(0)
    model, steps = foundation_torch.make_steps(spec)
    numbers = sum(p.numel() for p in model.parameters())
    assert numbers == count(foundation_ours.job_of(spec).abstract.params)
    first = steps(1)
    assert steps(20) < first and math.isfinite(first)
