"""The settings that belong to weights: their model, preprocessing, classes and tokenizer.

Every run directory has them in config.json; for a file of another framework, the module of its
origin reads them. A run that starts from the weights adopts them (`resolve`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtrain import storage
from jaxtrain.config import Config
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.data.tokenizer import read_definition
from jaxtrain.errors import UserError
from jaxtrain.models import fixed_fields, with_defaults
from jaxtrain.runs.folder import read_config
from jaxtrain.tasks.tasks import best_metric

TOKENIZER = 'tokenizer.json'
# The keys of PREPROCESSING in which a config may differ from the weights, since a network may, for
# example, be trained further on larger images.
FREE = ('image_size', 'crop', 'crop_rounding', 'interpolation')


@dataclass(frozen=True)
class Bundle:
    """The settings that belong to weights.

    Attributes:
      where: the folder or file of the weights, for messages.
      model: the `config.model` of the weights.
      data: values for the keys of `PREPROCESSING`.
      classes: class names by output of the head, () without a head.
      tokenizer: path of the tokenizer.json for text, '' without one.
    """

    where: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    classes: tuple[str, ...]
    tokenizer: str = ''


def of_run(workdir: str | Path) -> Bundle:
    """Return the bundle of a run directory. UserError if the folder is not a run directory."""
    written = read_config(workdir)
    config = Config.from_json(written['config']).to_dict()
    classes = written['data']['classes'] if 'data' in written else ()
    return Bundle(
        where=str(workdir),
        model=with_defaults(config['model']),
        data={key: config['data'][key] for key in PREPROCESSING},
        classes=tuple(classes),
        tokenizer=beside(storage.path(workdir)),
    )


def beside(folder: Path) -> str:
    """Return the path of the tokenizer.json in a folder, or '' if the folder has none."""
    return str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else ''


def resolve(cfg: Config, bundle: Bundle | None) -> Config:
    """Return the config with every open setting filled in from the weights or the defaults.

    Args:
      cfg: the config as the user wrote it.
      bundle: the bundle of `config.init_from`, or None if the parameters are random.

    Raises:
      UserError: the config contradicts the weights, or has no model.
    """
    reference = bundle if _follows_weights(cfg) else None
    written = cfg.to_dict()
    data = {key: _data(key, written['data'][key], reference) for key in PREPROCESSING}
    data['tokenizer'] = _tokenizer(written['data']['tokenizer'], reference)
    model = _model(written['model'], bundle, reference)
    return cfg.updated(best_metric=best_metric(cfg).name, data=data, model=model)


def resumed(cfg: Config, workdir: str | Path) -> Config:
    """Return the config of a resumed run, whose open settings are as they were when the run began.

    Without a run directory, the open settings have their defaults.
    """
    _follows_weights(cfg)  # raises if the key is wrong
    if not str(workdir) or not (storage.path(workdir) / 'config.json').exists():
        return resolve(cfg, None)
    bundle, written = of_run(workdir), cfg.to_dict()
    data = {
        key: bundle.data[key] if written['data'][key] is None else written['data'][key]
        for key in PREPROCESSING
    }
    # The run has a copy of its tokenizer, in case the original no longer exists.
    tokenizer = written['data']['tokenizer']
    if tokenizer == read_config(workdir)['config']['data']['tokenizer']:
        tokenizer = ''
    data['tokenizer'] = _tokenizer(tokenizer, bundle)
    cfg = with_recorded_metric(cfg, workdir)
    return cfg.updated(data=data, model=_model(written['model'], bundle, None))


def with_recorded_metric(cfg: Config, workdir: str | Path) -> Config:
    """Return the config with the best_metric that a run recorded, if the config leaves it open.

    A run that stopped before its first checkpoint starts again, perhaps with a version of the task
    that has another main metric.
    """
    if cfg.best_metric or not str(workdir):
        return cfg
    if not (storage.path(workdir) / 'config.json').exists():
        return cfg
    return cfg.updated(best_metric=read_config(workdir)['config']['best_metric'])


def _follows_weights(cfg: Config) -> bool:
    """Whether the settings of the weights apply, by `config.restore.settings`."""
    return cfg.restore.choose('settings', ('weights', 'config')) == 'weights'


def _data(key: str, value: Any, bundle: Bundle | None) -> Any:
    expected = bundle.data[key] if bundle else PREPROCESSING[key]
    if value is None:
        return expected
    if bundle and key not in FREE and value != expected:
        raise UserError(
            f'config.data.{key}={value!r}, but the weights of {bundle.where} use {expected!r}; '
            "omit the key, or set config.restore.settings='config' to use your value anyway"
        )
    return value


def _tokenizer(path: str, bundle: Bundle | None) -> str:
    if bundle is None or not bundle.tokenizer:
        return path
    if path and read_definition(path) != read_definition(bundle.tokenizer):
        raise UserError(
            f'config.data.tokenizer={path!r} is not that of {bundle.where}; omit the key, or set '
            "config.restore.settings='config' to use your tokenizer anyway"
        )
    return bundle.tokenizer


def _model(
    model: dict[str, Any], bundle: Bundle | None, reference: Bundle | None
) -> dict[str, Any]:
    """Fill in the model that `config.model` leaves open, and check it against `reference`."""
    if not model['name']:
        if bundle is None:
            raise UserError(
                "config.model.name='' is the model of the weights in config.init_from, which is "
                'empty; name a model'
            )
        return {**bundle.model, **model, 'name': bundle.model['name']}
    if reference is None or reference.model['name'] != model['name']:
        return model
    for field, default in fixed_fields(model['name']).items():
        value, expected = model.get(field, default), reference.model[field]
        if value != expected:
            raise UserError(
                f'config.model.{field}={value!r}, but the weights of {reference.where} are of a '
                f"model with {expected!r}; set this value, or config.restore.settings='config' to "
                'use the weights anyway'
            )
    return model
