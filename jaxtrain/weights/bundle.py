"""What weights bring along beside their arrays: the model they are of, preprocessing and classes.

Every run directory holds it, in config.json; so does a file from elsewhere, as its origin's map
reads it. A run that starts from them takes it over (`resolve`).
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
# The keys of PREPROCESSING in which a config may differ from the weights: the same network may well
# be trained on with larger images.
FREE = ('image_size', 'crop', 'interpolation')


@dataclass(frozen=True)
class Bundle:
    """What weights bring along.

    Attributes:
      where: where they are, for messages.
      model: `config.model` that they are of.
      data: values for the keys of `PREPROCESSING`.
      classes: class names by output of the head, () without one.
      tokenizer: path of the tokenizer.json that text is read with, '' without one.
    """

    where: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    classes: tuple[str, ...]
    tokenizer: str = ''


def of_run(workdir: str | Path) -> Bundle:
    """That of a run directory. UserError if it is none."""
    found = read_config(workdir)
    config = Config.from_json(found['config']).to_dict()
    classes = found['data']['classes'] if 'data' in found else ()
    return Bundle(
        where=str(workdir),
        model=with_defaults(config['model']),
        data={key: config['data'][key] for key in PREPROCESSING},
        classes=tuple(classes),
        tokenizer=beside(storage.path(workdir)),
    )


def beside(folder: Path) -> str:
    """The path of the tokenizer.json in a folder, '' if there is none."""
    return str(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else ''


def resolve(cfg: Config, bundle: Bundle | None) -> Config:
    """The config with nothing left open, by the weights that it starts from.

    Args:
      cfg: as it was written.
      bundle: of the weights in `config.init_from`, None if it starts from random parameters.

    Raises:
      UserError: the config says something else than the weights, or leaves the model open.
    """
    theirs = bundle if _asks(cfg) else None
    written = cfg.to_dict()
    data = {key: _data(key, written['data'][key], theirs) for key in PREPROCESSING}
    data['tokenizer'] = _tokenizer(written['data']['tokenizer'], theirs)
    model = _model(written['model'], bundle, theirs)
    return cfg.updated(best_metric=best_metric(cfg).name, data=data, model=model)


def resumed(cfg: Config, workdir: str | Path) -> Config:
    """The config of a run that goes on; what it leaves open is as it was when the run began.

    Without a run directory it is what no weights have a say in.
    """
    _asks(cfg)
    if not str(workdir) or not (storage.path(workdir) / 'config.json').exists():
        return resolve(cfg, None)
    own, written = of_run(workdir), cfg.to_dict()
    data = {
        k: own.data[k] if written['data'][k] is None else written['data'][k] for k in PREPROCESSING
    }
    # The run has its own copy, should the one that it began with be gone.
    given = written['data']['tokenizer']
    began = read_config(workdir)['config']
    data['tokenizer'] = _tokenizer('' if given == began['data']['tokenizer'] else given, own)
    best = cfg.best_metric or began['best_metric']
    return cfg.updated(best_metric=best, data=data, model=_model(written['model'], own, None))


def _asks(cfg: Config) -> bool:
    return cfg.restore.choose('settings', ('weights', 'config')) == 'weights'


def _data(key: str, value: Any, theirs: Bundle | None) -> Any:
    wanted = theirs.data[key] if theirs else PREPROCESSING[key]
    if value is None:
        return wanted
    if theirs and key not in FREE and value != wanted:
        raise UserError(
            f'config.data.{key}={value!r}, but the weights of {theirs.where} go by {wanted!r}; '
            "leave it out, or set config.restore.settings='config' to do so nevertheless"
        )
    return value


def _tokenizer(given: str, theirs: Bundle | None) -> str:
    if theirs is None or not theirs.tokenizer:
        return given
    if given and read_definition(given) != read_definition(theirs.tokenizer):
        raise UserError(
            f'config.data.tokenizer={given!r} is not that of {theirs.where}; leave it out, or '
            "set config.restore.settings='config' to take it nevertheless"
        )
    return theirs.tokenizer


def _model(given: dict[str, Any], bundle: Bundle | None, theirs: Bundle | None) -> dict[str, Any]:
    if not given['name']:
        if bundle is None:
            raise UserError(
                "config.model.name='' is the model of the weights in config.init_from, which is "
                'empty; name a model'
            )
        return {**bundle.model, **given, 'name': bundle.model['name']}
    if theirs is None or theirs.model['name'] != given['name']:
        return given
    for field, default in fixed_fields(given['name']).items():
        value, wanted = given.get(field, default), theirs.model[field]
        if value != wanted:
            raise UserError(
                f'config.model.{field}={value!r}, but the weights of {theirs.where} are of a model '
                f"with {wanted!r}; set it so, or config.restore.settings='config' to take them "
                'nevertheless'
            )
    return given
