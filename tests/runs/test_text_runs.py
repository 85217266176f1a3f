"""Runs on text: training, resuming, evaluating and predicting with a tiny BERT and a tiny GPT."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.inference import predict
from jaxtrain.runs.folder import read_config
from jaxtrain.weights.bundle import of_run
from tests.runs.test_wrong_input import complaint
from tests.support.texts import word_tokenizer, write_list

CLASSIFY = """
from jaxtrain.config import base


def get_config(variant='scratch'):
    c = base()
    c.data.source = 'text'
    c.data.path = '{root}/texts.jsonl'
    c.data.length = 8
    c.data.tokenizer = '{root}/words/tokenizer.json'
    c.batch_size = 16
    c.steps = 40
    c.log_every = 10
    c.eval_every = 20
    c.optim.lr = 1e-2
    c.model.name = 'bert'
    c.model.vocabulary = 14
    c.model.width = 16
    c.model.depth = 1
    c.model.heads = 2
    c.model.positions = 8
    c.model.pool = 'mean'
    if variant == 'finetune':
        c.regime = 'finetune'
        c.model = dict(name='')
        c.data.tokenizer = ''
        c.init_from = '{root}/first'
        c.restore.rules = (('head/.*', 'init'), ('.*', 'load'))
        c.groups = (('backbone/.*', 'frozen'), ('head/.*', 'head'))
    return c
"""

LEARN = """
from jaxtrain.config import base


def get_config():
    c = base()
    c.task.name = 'lm'
    c.data.source = 'corpus'
    c.data.path = '{root}/all.txt'
    c.data.length = 32
    c.data.tokenizer = 'bytes'
    c.batch_size = 16
    c.steps = 120
    c.eval_every = 60
    c.optim.lr = 1e-2
    c.model.name = 'gpt'
    c.model.width = 32
    c.model.depth = 1
    c.model.heads = 2
    c.model.context = 32
    return c
"""

ROWS = [
    (f'{first} {animal} {verb} {last}', animal)
    for animal in ('cat', 'dog')
    for first in ('the', 'a')
    for verb in ('purrs', 'barks', 'sleeps')
    for last in ('loudly', 'a', 'the', 'cats', 'dogs', 'purrs', 'barks', 'sleeps')
]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with texts, a tokenizer, a corpus, two configs, and a finished run of each."""
    from jaxtrain.cli import main

    root = tmp_path_factory.mktemp('texts')
    word_tokenizer(root / 'words' / 'tokenizer.json')
    write_list(root / 'texts.jsonl', ROWS)
    (root / 'all.txt').write_text('the cat purrs and a dog barks\n' * 403)
    for name, text in (('classify', CLASSIFY), ('learn', LEARN)):
        (root / f'{name}.py').write_text(text.format(root=root))
    for name, workdir in (('classify', 'first'), ('learn', 'language')):
        assert main(['train', f'--config={root}/{name}.py', f'--workdir={root}/{workdir}']) == 0
    return root


def result(workdir) -> dict:
    return json.loads((workdir / 'result.json').read_text())


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_classes_of_texts_are_learned(root):
    summary = result(root / 'first')
    assert summary['metrics']['test']['accuracy'] == 1.0  # the animal is in the text
    assert summary['classes'] == ['cat', 'dog'] and summary['params_total'] > 1000


def test_a_run_keeps_its_tokenizer(root):
    stored = (root / 'first' / 'tokenizer.json').read_text()
    assert stored == (root / 'words' / 'tokenizer.json').read_text()
    assert of_run(root / 'first').tokenizer == str(root / 'first' / 'tokenizer.json')


def test_evaluation_and_prediction_use_the_tokenizer_in_the_run(root, jaxtrain, tmp_path):
    work, shown = tmp_path / 'run', tmp_path / 'more.jsonl'
    shutil.copytree(root / 'first', work)
    config = json.loads((work / 'config.json').read_text())
    config['config']['data']['tokenizer'] = '/gone/tokenizer.json'
    (work / 'config.json').write_text(json.dumps(config))
    write_list(shown, ROWS)
    assert 'accuracy=1' in jaxtrain('evaluate', f'--workdir={work}').out
    outcome = jaxtrain('predict', f'--workdir={work}', shown, '--top=1')
    assert outcome.code == 0 and f'{len(ROWS)} texts' in outcome.out, outcome.err
    predictions = lines(work / 'predictions.jsonl')
    assert [line['line'] for line in predictions] == list(range(1, len(ROWS) + 1))
    right = [line['class'] == label for line, (_, label) in zip(predictions, ROWS, strict=True)]
    assert np.mean(right) > 0.95
    assert set(predictions[0]['probabilities']) == {predictions[0]['class']}


def test_texts_in_files_and_folders_are_predicted(root, jaxtrain, tmp_path):
    for name, text in (('a', 'the cat sleeps'), ('b', 'a dog sleeps')):
        (tmp_path / f'{name}.txt').write_text(text)
    output = tmp_path / 'predictions.jsonl'
    words = ('predict', f'--workdir={root}/first', f'--output={output}')
    assert jaxtrain(*words, tmp_path, tmp_path / 'b.txt').code == 0
    assert [(line['file'], line['class']) for line in lines(output)] == [
        (f'{tmp_path}/a.txt', 'cat'),
        (f'{tmp_path}/b.txt', 'dog'),
        (f'{tmp_path}/b.txt', 'dog'),
    ]


def test_fine_tuning_uses_the_model_and_tokenizer_of_the_weights(root, jaxtrain, tmp_path):
    work = tmp_path / 'tuned'
    outcome = jaxtrain('train', f'--config={root}/classify.py:finetune', f'--workdir={work}')
    assert outcome.code == 0, outcome.err
    config = read_config(work)['config']
    assert config['data']['tokenizer'] == str(root / 'first' / 'tokenizer.json')
    assert config['model']['width'] == 16
    assert (work / 'tokenizer.json').exists()
    assert result(work)['params_trainable'] == 2 * 16 + 2


def test_another_tokenizer_than_that_of_the_weights_is_an_error(root, jaxtrain, tmp_path):
    other = word_tokenizer(tmp_path / 'other.json', words=('cat', 'dog'))
    words = ('train', f'--config={root}/classify.py:finetune', f'--workdir={tmp_path}/w')
    message = complaint(jaxtrain(*words, f'--config.data.tokenizer={other}'))
    assert f"config.data.tokenizer='{other}' is not that of {root}/first" in message
    same = shutil.copy(root / 'words' / 'tokenizer.json', tmp_path / 'same.json')
    inspected = ('inspect', words[1], f'--config.data.tokenizer={same}')
    assert jaxtrain(*inspected).code == 0


def test_a_run_resumes_with_its_own_tokenizer_and_no_other(root, jaxtrain, tmp_path):
    began = shutil.copy(root / 'words' / 'tokenizer.json', tmp_path / 'began.json')
    words = ('train', f'--config={root}/classify.py', f'--workdir={tmp_path}/run')
    began_with = f'--config.data.tokenizer={began}'
    assert jaxtrain(*words, began_with).code == 0
    before = result(tmp_path / 'run')
    (tmp_path / 'run' / 'result.json').unlink()
    (tmp_path / 'began.json').unlink()
    outcome = jaxtrain(*words, began_with)
    assert outcome.code == 0, outcome.err
    assert result(tmp_path / 'run')['metrics'] == before['metrics']
    (tmp_path / 'run' / 'result.json').unlink()
    other = word_tokenizer(tmp_path / 'other.json', words=('cat', 'dog'))
    message = complaint(jaxtrain(*words, f'--config.data.tokenizer={other}'))
    assert f"config.data.tokenizer='{other}' is not that of" in message


def test_truncated_texts_are_reported(root, jaxtrain, tmp_path):
    words = ('train', f'--config={root}/classify.py', f'--workdir={tmp_path}/w')
    outcome = jaxtrain(*words, '--config.data.length=5', '--config.steps=1')
    assert outcome.code == 0, outcome.err
    assert 'texts that are longer than 5 tokens' in outcome.out


def test_a_language_model_is_trained(root):
    summary = result(root / 'language')
    # Each next token is certain, except for the first tokens of a window.
    assert summary['metrics']['test']['loss'] < 0.6 < np.log(257)
    assert summary['classes'] == []
    assert {line['split'] for line in lines(root / 'language' / 'metrics.jsonl')} == {
        'train', 'val', 'test',
    }  # fmt: skip
    assert 'weight' not in summary['metrics']['test']


def test_evaluation_counts_tokens(root, jaxtrain):
    output = jaxtrain('evaluate', f'--workdir={root}/language', '--split=test').out
    values = dict(np.load(root / 'language' / 'test.npz'))
    loss = float((values['loss'] * values['weight']).sum() / values['weight'].sum())
    assert f'loss={loss:.4g}' in output
    assert len(set(values['weight'].tolist())) == 2  # the last window is not full


def test_prompts_are_continued(root, jaxtrain, tmp_path):
    rows = [('the cat ',), ('a dog barks\nthe c',)]
    prompts = write_list(tmp_path / 'p.jsonl', rows, ('text',))
    words = ('predict', f'--workdir={root}/language', prompts, '--temperature=0')
    outcome = jaxtrain(*words, '--new_tokens=10')
    assert outcome.code == 0, outcome.err
    predictions = lines(root / 'language' / 'predictions.jsonl')
    assert [line['prompt'] for line in predictions] == ['the cat ', 'a dog barks\nthe c']
    assert predictions[0]['text'] == 'purrs and ' and predictions[1]['text'] == 'at purrs a'
    assert [line['tokens'] for line in predictions] == [10, 10]
    assert '2 prompts' in outcome.out and 'purrs and' in outcome.out


def test_the_same_seed_gives_the_same_samples(root, jaxtrain, tmp_path):
    prompt = tmp_path / 'p.txt'
    prompt.write_text('the ')
    samples = []
    for seed in (1, 1, 2):
        words = ('predict', f'--workdir={root}/language', prompt, f'--seed={seed}')
        assert jaxtrain(*words, '--temperature=3', '--new_tokens=12').code == 0
        samples.append(lines(root / 'language' / 'predictions.jsonl')[0]['text'])
    assert samples[0] == samples[1] != samples[2]


def test_every_batch_of_prompts_has_its_own_random_numbers(root, jaxtrain, tmp_path):
    config = json.loads((root / 'language' / 'config.json').read_text())['config']
    size = config['eval_batch_size'] or config['batch_size']
    (tmp_path / 'p.csv').write_text('text\n' + 'the\n' * 2 * size)
    words = ('predict', f'--workdir={root}/language', tmp_path / 'p.csv', '--temperature=3')
    assert jaxtrain(*words, '--new_tokens=6').code == 0
    texts = [line['text'] for line in lines(root / 'language' / 'predictions.jsonl')]
    assert len(texts) == 2 * size and texts[:size] != texts[size:]


def test_a_continuation_ends_before_its_first_end_token(root, jaxtrain, tmp_path, monkeypatch):
    tokenizer = open_tokenizer('bytes')
    cat, purrs = tokenizer.pieces(['cat', 'purrs'])
    end = tokenizer.end
    rows = np.array([[*cat, end, end], [end, *cat, end], purrs])
    monkeypatch.setattr(predict, 'generate', lambda *args: rows)
    prompts = write_list(tmp_path / 'p.jsonl', [('the',), ('a',), ('dogs',)], ('text',))
    words = ('predict', f'--workdir={root}/language', prompts, '--new_tokens=5')
    assert jaxtrain(*words).code == 0
    predictions = lines(root / 'language' / 'predictions.jsonl')
    assert [(x['text'], x['tokens']) for x in predictions] == [('cat', 3), ('', 0), ('purrs', 5)]


def test_an_empty_prompt_is_continued_from_the_end_token(root, jaxtrain, tmp_path, monkeypatch):
    """A tokenizer without one requires text."""
    tokenizer, given = open_tokenizer('bytes'), []

    def generate(model, variables, prompts, sampling):
        rows = zip(prompts.tokens, prompts.lengths, strict=True)
        given.extend(row[:length].tolist() for row, length in rows)
        return prompts.tokens

    monkeypatch.setattr(predict, 'generate', generate)
    empty, other = tmp_path / 'empty.txt', tmp_path / 'other.txt'
    empty.write_text('')
    other.write_text('the cat')
    words = ('predict', f'--workdir={root}/language', empty, other, '--new_tokens=5')
    assert jaxtrain(*words).code == 0
    assert given == [[tokenizer.end], *tokenizer.pieces(['the cat'])]
    monkeypatch.setattr(predict, 'open_tokenizer', lambda name: replace(tokenizer, end=-1))
    assert f'{empty} is empty; begin with some text' in complaint(jaxtrain(*words))


# Wrong input.


def test_prompts_that_do_not_fit(root, jaxtrain, tmp_path):
    prompt = tmp_path / 'p.txt'
    prompt.write_text('the cat purrs and the')
    words = ('predict', f'--workdir={root}/language')
    message = complaint(jaxtrain(*words, prompt, '--new_tokens=12'))
    assert f'{prompt} has 21 tokens, which with --new_tokens=12 are more than the 32' in message
    message = complaint(jaxtrain(*words, prompt, '--new_tokens=4', '--top_p=0'))
    assert 'top_p=0' in message
    assert 'cannot be read' in complaint(jaxtrain(*words, tmp_path / 'none.txt'))
    message = complaint(jaxtrain(*words, prompt, '--new_tokens=0'))
    assert 'new tokens' in message or '--new_tokens' in message


def test_an_empty_text(root, jaxtrain, tmp_path):
    (tmp_path / 'a.txt').write_text(' \n')
    message = complaint(jaxtrain('predict', f'--workdir={root}/first', tmp_path / 'a.txt'))
    assert f'{tmp_path}/a.txt is empty' in message


@pytest.mark.parametrize(
    'words, part',
    [
        (('data.tokenizer=',), 'config.data.tokenizer is empty'),
        (('data.length=9',), 'BERT cannot take tokens of size 9: 9 tokens are more than its 8'),
        (('model.vocabulary=10',), 'bert has 10 tokens, but config.data.tokenizer has 14'),
        (('model.pad=3',), 'config.model.pad=3, but config.data.tokenizer pads texts with'),
        (('model.name=cnn',), 'cnn'),
        (('task.name=lm',), "config.task.name='lm' does not fit"),
        (('data.pattern=*.md',), 'nothing in this run reads it'),
        (('data.mean=(0.5,)',), 'nothing in this run reads it'),
    ],
)
def test_what_does_not_fit(words, part, root, jaxtrain, tmp_path):
    overrides = [f'--config.{word}' for word in words]
    outcome = jaxtrain(
        'train', f'--config={root}/classify.py', f'--workdir={tmp_path}/w', *overrides
    )
    assert part in complaint(outcome)


def test_a_model_of_images_for_texts(root, jaxtrain, tmp_path):
    text = CLASSIFY.format(root=root)
    kept = [line for line in text.splitlines() if 'c.model.' not in line or 'name' in line]
    (tmp_path / 'c.py').write_text('\n'.join(kept).replace("'bert'", "'cnn'"))
    message = complaint(jaxtrain('inspect', f'--config={tmp_path}/c.py'))
    assert 'cnn reads images, but the data is text' in message


def test_inspect_prints_the_tokens(root, jaxtrain):
    output = jaxtrain('inspect', f'--config={root}/learn.py').out
    assert 'tokens 32 of 257' in output
    output = jaxtrain('inspect', f'--config={root}/classify.py').out
    assert 'of 2 classes, tokens 8 of 14' in output


def test_the_stored_byte_tokenizer_equals_the_built_in_one(root):
    stored = open_tokenizer(str(root / 'language' / 'tokenizer.json'))
    assert stored == open_tokenizer('bytes')
