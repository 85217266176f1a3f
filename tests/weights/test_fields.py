"""Every field of the files beside weights: its value is computed as the reference library does, or
has no effect, or is refused. tests/golden/fields.tsv is the table of these outcomes.

After a change, `python -m tests.weights.test_fields` writes the table anew.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxtrain.errors import UserError
from jaxtrain.weights.origins import huggingface_text, huggingface_vit
from tests.golden.make_fields import HERE, load
from tests.support import fields as replay

TABLE = HERE / 'fields.tsv'
GATES = {'pixels': 1e-5, 'outputs': 1e-12}  # pixels of the reference are float32
_BERT = {
    'name': 'bert', 'vocabulary': 20, 'positions': 16, 'width': 24, 'depth': 2, 'heads': 4,
    'mlp': 32, 'pool': 'mean',
}  # fmt: skip
_VIT = {'name': 'vit', 'patch': (8, 8), 'width': 24, 'depth': 2, 'heads': 4}
# Tiny models: (origin, name) -> (module of the origin, the fields that an import would start from).
# Their values differ from those in the files where no shape shows them.
MODELS: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    ('huggingface', 'gpt2'): (
        huggingface_text, {'name': 'gpt', 'width': 24, 'depth': 2, 'heads': 3, 'context': 1024}
    ),
    ('huggingface', 'bert'): (huggingface_text, {**_BERT, 'heads': 3}),
    ('huggingface', 'sentence'): (huggingface_text, {**_BERT, 'heads': 3, 'pool': 'token'}),
    ('huggingface', 'vit'): (huggingface_vit, {**_VIT, 'heads': 3, 'mlp': 96}),
    ('huggingface', 'dinov2'): (
        huggingface_vit, {**_VIT, 'heads': 3, 'mlp': 96, 'layer_scale': 1.0, 'pool': 'both'}
    ),
    ('huggingface', 'dinov2_registers'): (
        huggingface_vit, {**_VIT, 'heads': 3, 'mlp': 96, 'layer_scale': 1.0, 'pool': 'both'}
    ),
}  # fmt: skip
VERSIONS, CASES = load()


def kind(case: dict) -> str:
    return 'pixels' if isinstance(case['inputs'], dict) else 'outputs'


FIRST = {(c['origin'], c['model'], kind(c)): c for c in reversed(CASES) if not c['field']}


def replayed(case: dict, folder: Path) -> tuple[str, str]:
    """Return (outcome of a case, the message of our refusal, '' without one).

    An outcome of another kind begins with 'WRONG'.
    """
    module, _ = MODELS[case['origin'], case['model']]
    try:
        match = replay.match_of(case, module, folder)
    except UserError as error:
        return replay.REFUSED, str(error)
    if case['error']:
        return f'WRONG: the reference raises {case["error"]}', ''
    if any('for which transformers' in text for text in match.assumed):
        return replay.SAID, ''
    ours, reference = replay.outputs_of(case, match, folder), case['outputs']
    error = np.inf
    if ours.shape == reference.shape:
        error = float(np.abs(ours - reference).max() / np.abs(reference).max())
    if error > GATES[kind(case)]:
        return f'WRONG: error {error:.1e}', ''
    return replay.outcome(case, FIRST[case['origin'], case['model'], kind(case)]), ''


def row(case: dict, outcome: str) -> str:
    what = case['origin'], case['model'], case['file'], case['field']
    return '\t'.join((*what, json.dumps(case['value']), outcome))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for (_, name), (module, fields) in MODELS.items():
        monkeypatch.setitem(module.MODELS, name, fields)


# Models whose files and maps are much those of others.
LIKE_OTHERS = ('bert', 'dinov2', 'dinov2_registers')


@pytest.mark.parametrize(
    'model',
    [pytest.param(n, marks=[pytest.mark.slow] * (n[1] in LIKE_OTHERS)) for n in sorted(MODELS)],
    ids='-'.join,
)
def test_every_field_is_computed_without_effect_or_refused(model, tmp_path):
    found, messages = set(), []
    for number, case in enumerate(CASES):
        if (case['origin'], case['model']) == model:
            outcome, message = replayed(case, tmp_path / str(number))
            found.add(row(case, outcome))
            messages.append((case, message))
    assert found and not [line for line in found if 'WRONG' in line]
    start = '\t'.join((*model, ''))
    assert found == {line for line in TABLE.read_text().splitlines() if line.startswith(start)}
    for case, message in messages:
        assert '\n' not in message
        # The message names the file, unless the arrays do not fit.
        assert not message or case['file'] in message or 'arrays' in message


def test_no_case_is_left_out():
    assert {(case['origin'], case['model']) for case in CASES} == set(MODELS)
    assert {case['origin'] for case in CASES} == set(VERSIONS)


def write_table() -> None:
    for (_, name), (module, fields) in MODELS.items():
        module.MODELS[name] = fields
    with tempfile.TemporaryDirectory() as folder:
        results = [(c, *replayed(c, Path(folder) / str(i))) for i, c in enumerate(CASES)]
    for case, outcome, message in results:
        print(row(case, outcome), message[:160], sep='\t')
    header = '\t'.join(('origin', 'model', 'file', 'field', 'value', 'outcome'))
    lines = dict.fromkeys(row(case, outcome) for case, outcome, _ in results)
    TABLE.write_text('\n'.join((header, *lines)) + '\n')


if __name__ == '__main__':
    write_table()
