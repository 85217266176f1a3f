"""Prediction: applies a trained model to images or texts, or continues prompts.

Every line of predictions.jsonl has `file`, the path as it was given or found in a given folder; a
text from a list also has its `line`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxtrain import storage
from jaxtrain.data.features import (
    ARRAYS,
    CLASS,
    TOKENS,
    classified_image,
    continued_tokens,
    feature,
)
from jaxtrain.data.images.decode import BadImage
from jaxtrain.data.images.find import find
from jaxtrain.data.images.transforms import image_settings, make_transforms, read_image
from jaxtrain.data.sources.corpus import text_files
from jaxtrain.data.sources.listing import SUFFIXES, read_list, read_text
from jaxtrain.data.sources.source import Source
from jaxtrain.data.sources.text import text_source
from jaxtrain.data.tokenizer import open_tokenizer
from jaxtrain.errors import UserError
from jaxtrain.inference.generate import Prompts, Sampling, generate
from jaxtrain.inference.trained import Record, apply, load, read_record, require_head
from jaxtrain.parallel.mesh import make_mesh, on_mesh
from jaxtrain.params.partition import unflatten
from jaxtrain.step.learner import make_network
from jaxtrain.tasks.tasks import task_of
from jaxtrain.weights import restore
from jaxtrain.weights.stored import of_checkpoint


@dataclass(frozen=True)
class _Text:
    """A text and its place: {'file': ...}, with 'line' too if it is from a list."""

    place: dict[str, Any]
    content: str

    def __str__(self) -> str:
        line = f', line {self.place["line"]}' if 'line' in self.place else ''
        return f'{self.place["file"]}{line}'


def predict(
    workdir: str, paths: list[str], name: str, output: str, on_bad_image: str, top: int,
    sampling: Sampling,
) -> dict[str, Any]:  # fmt: skip
    """Writes the predictions of a checkpoint, one JSON object per line.

    The task declares the keys of a line besides the place. A classifier has `class`, `probability`
    and `probabilities` (the `top` highest, by class); a sentence encoder without a head has
    `embedding`, a vector of norm 1; a language model has `text`, the continuation of the prompt.

    Args:
      workdir: the run directory.
      paths: images or texts, or folders to search for them. A text is a file, or a line of a list
        (.csv or .jsonl with a column `text`).
      name: 'best', 'last' or a step.
      output: the file to write; '' for predictions.jsonl in the run directory.
      on_bad_image: 'error', or 'skip' to leave out images that cannot be read.
      top: number of classes to list per example.
      sampling: settings of a language model's continuation, except for its `stop`.

    Returns:
      {'step', 'output', 'unit', 'predictions': [...], 'skipped': [...]}, and in 'columns' the keys
      of a line that the printed table shows.

    Raises:
      UserError: not a run, no such checkpoint, a path without images or texts, or one that cannot
        be read; nothing is written then.
    """
    record = read_record(workdir, name)
    task = task_of(record.cfg)
    if top < 1:
        raise UserError(f'--top={top} must be at least 1')
    if on_bad_image not in ('error', 'skip'):
        raise UserError(f"--on_bad_image={on_bad_image} is not known; choose 'error' or 'skip'")
    target = storage.path(output or storage.path(workdir) / 'predictions.jsonl')
    if not target.parent.is_dir():
        raise UserError(f'--output={target}: there is no folder {target.parent}; make it first')
    if not paths:
        raise UserError('nothing was named to predict; add paths of files, or of folders')
    skipped: list[str] = []
    if record.inputs.meaning == TOKENS:
        unit, lines = _of_texts(record, _find_texts(record, paths), top, sampling)
    else:
        files, skips = list(dict.fromkeys(find(paths))), on_bad_image == 'skip'
        unit, (lines, skipped) = 'images', _of_images(record, files, skips, top)
    storage.write(target, ''.join(json.dumps(line) + '\n' for line in lines).encode())
    return {
        'step': int(record.folder.name),
        'output': str(target),
        'unit': unit,
        'predictions': lines,
        'skipped': skipped,
        'columns': task.prediction.columns if task.prediction and record.has_head else (),
    }


def _of_images(
    record: Record, files: list[str], skips: bool, top: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns (a line for each image, the files that are left out)."""
    require_head(record)
    data = record.cfg.data
    height, width, channels = shape = record.inputs.shape
    transforms = make_transforms(image_settings(data, ''), (height, width, channels), data.exif)
    bad: set[int] = set()

    def read(index: int) -> np.ndarray:
        try:
            return read_image(files[index], transforms)
        except BadImage:
            if not skips:
                raise
            bad.add(index)
            return np.zeros(shape, np.uint8)  # its prediction is left out below

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        images = [read(i) for i in indices.tolist()]
        return {'image': np.stack(images), ARRAYS[CLASS]: np.zeros(len(images), np.int32)}

    source = Source(fetch, len(files), classified_image(*shape), 'image', record.classes)
    predictions = _predicted(record, source, top)
    lines = [
        {'file': file, **line}
        for i, (file, line) in enumerate(zip(files, predictions, strict=True))
        if i not in bad
    ]
    skipped = [files[i] for i in sorted(bad)]
    if not lines:
        raise UserError(f'none of the {len(files)} images can be read, for instance {skipped[0]}')
    return lines, skipped


def _of_texts(
    record: Record, texts: list[_Text], top: int, sampling: Sampling
) -> tuple[str, list[dict[str, Any]]]:
    """Returns (the unit for messages, a line for each text)."""
    if task_of(record.cfg).prediction is None:
        return 'prompts', _continued(record, texts, sampling)
    for text in texts:
        if not text.content.strip():
            raise UserError(f'{text} is empty; give some text, or leave it out')
    tokenizer, length = open_tokenizer(record.cfg.data.tokenizer), record.cfg.data.length
    contents = [text.content for text in texts]
    source = text_source(contents, [0] * len(texts), record.classes or ('',), tokenizer, length)
    if not record.has_head:
        rows = _embeddings(record, source)
        predictions = [{'embedding': row.tolist()} for row in rows]
    else:
        predictions = _predicted(record, source, top)
    return 'texts', [{**t.place, **line} for t, line in zip(texts, predictions, strict=True)]


def _predicted(record: Record, source: Source, top: int) -> list[dict[str, Any]]:
    """The prediction for each example, as the task declares it."""
    # The examples have no labels, and a prediction reads none; only the task's check needs them.
    label = task_of(record.cfg).label
    features = {**source.features, ARRAYS[label]: feature(label)}
    trained = load(record, replace(source, features=features))
    arrays = apply(record.cfg, trained.state, trained.learner.predict_step(), source)
    prediction = trained.learner.task.prediction
    assert prediction is not None  # tasks without one continue prompts instead
    rows = ({name: array[i] for name, array in arrays.items()} for i in range(len(source)))
    return [prediction.line(row, source.classes, top) for row in rows]


def _embeddings(record: Record, source: Source) -> np.ndarray:
    """Embeddings of norm 1 by a model without a head, float32 [texts, width]."""
    model, shapes = make_network(record.cfg.model, 1, source.model_input)
    if not hasattr(model, 'embed'):
        require_head(record)
    variables: tuple[Any, Any] = on_mesh(shapes, make_mesh())
    rules = (('head/.*', restore.INIT), ('.*', restore.LOAD))
    plan = restore.make_plan(of_checkpoint(record.folder), variables, rules)
    params = unflatten(restore.read(plan, variables))

    def step(params: Any, batch: Any) -> dict[str, Any]:
        return {'embedding': model.apply({'params': params}, batch['tokens'], method='embed')}

    return apply(record.cfg, params, step, source)['embedding']


def _continued(record: Record, texts: list[_Text], sampling: Sampling) -> list[dict[str, Any]]:
    tokenizer = open_tokenizer(record.cfg.data.tokenizer)
    features = continued_tokens(*record.inputs.shape)
    source = Source(_nothing, len(texts), features, 'tokens', tokenizer=tokenizer)
    trained = load(record, source)
    model, variables = trained.learner.model, {'params': trained.state.params}
    prompts = tokenizer.pieces([text.content for text in texts])
    for text, prompt in zip(texts, prompts, strict=True):
        if not prompt and tokenizer.end < 0:
            raise UserError(f'{text} is empty; begin with some text')
        if len(prompt) + sampling.new_tokens > model.context:
            raise UserError(
                f'{text} has {len(prompt)} tokens, which with --new_tokens={sampling.new_tokens} '
                f'are more than the {model.context} of its context; shorten either'
            )
    prompts = [prompt or [tokenizer.end] for prompt in prompts]
    longest, sampling = max(map(len, prompts)), replace(sampling, stop=tokenizer.end)
    size = min(record.cfg.eval_batch_size or record.cfg.batch_size, len(prompts))
    lines = []
    for start in range(0, len(prompts), size):
        # The last batch is padded by repetition, so that all batches use one program.
        rows = [prompts[min(i, len(prompts) - 1)] for i in range(start, start + size)]
        tokens = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
        lengths = np.array(list(map(len, rows)), np.int32)
        out = generate(model, variables, Prompts(tokens, lengths, sampling.key(start)), sampling)
        for text, row in zip(texts[start : start + size], np.asarray(out).tolist(), strict=False):
            kept = row[: row.index(tokenizer.end)] if tokenizer.end in row else row
            added = {'text': tokenizer.decode(kept), 'tokens': len(kept)}
            lines.append({**text.place, 'prompt': text.content, **added})
    return lines


def _nothing(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
    raise NotImplementedError('prompts are not fetched')


def _find_texts(record: Record, paths: Sequence[str]) -> list[_Text]:
    """Reads the texts in files, lists, and folders of files.

    Raises:
      UserError: a path that does not exist, or a folder or list without texts.
    """
    texts: list[_Text] = []
    for path in paths:
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            names = text_files(path, record.cfg.data.pattern)
            texts += [_file(os.path.join(path, name)) for name in names]
        elif os.path.splitext(path)[1].lower() in SUFFIXES:
            rows = read_list(path, 'text', labelled=False, key='PATH')
            texts += [_Text({'file': path, 'line': row.line}, row.content) for row in rows]
        else:
            texts.append(_file(path))
    return texts


def _file(path: str) -> _Text:
    return _Text({'file': path}, read_text(path, 'PATH'))
