"""Loading of config files: runs the file, applies overrides, and checks every key.

Every error is one line, which names the line of the file or the flag on the command line.
"""

import re
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxtrain.config import Config, base
from jaxtrain.config.changes import CHANGES, with_current_values
from jaxtrain.config.closed import flatten, is_open
from jaxtrain.config.keys import PREPROCESSING
from jaxtrain.errors import UserError, nearest


def load(spec: str, overrides: list[str]) -> Config:
    """Loads `FILE.py` or `FILE.py:variant` and applies `--config.key=value` overrides.

    Args:
      spec: path of the config file, optionally with a colon and the argument of its `get_config`.
      overrides: command-line arguments, each `--config.path=value`.

    Raises:
      UserError: no such file or variant, an error inside the file, an unknown key, a wrong type.
    """
    path, *variant = spec.split(':', 1)
    if not Path(path).is_file():
        raise UserError(f'--config={spec}: there is no file {path!r}; give a path to a config file')
    config = _read(path, variant)
    _check_overrides(config, overrides)
    given = frozenset(map(_key, overrides))
    tree = _override(_from_scratch(config, overrides), overrides).to_dict()
    _check_keys(tree)
    return Config(with_current_values(tree, CHANGES), given)


def _from_scratch(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Returns the config with the regime 'scratch' if overrides take away the weights that a
    fine-tuning run of the file starts from.
    """
    values = {_key(word): word.split('=', 1)[1] for word in overrides}
    named = 'init_from' in config and config.init_from
    if named and not values.get('init_from', named) and config.regime == 'finetune':
        config.regime = 'scratch'
    return config


def _read(path: str, variant: list[str]) -> ConfigDict:
    """Returns the result of the file's get_config; an error in it is a UserError with its line."""
    try:
        config = runpy.run_path(path)['get_config'](*variant)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{path}:{_line(path, error)}: {_explain(error)}') from error
    if not isinstance(config, ConfigDict):
        raise UserError(f'{path}: get_config() must return the config; end it with `return c`')
    return config


def _override(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Applies overrides, whose values are parsed according to the type of their key."""
    words = {_key(word): word for word in overrides}  # the last override of a key counts
    for name in PREPROCESSING:
        # config_flags cannot parse None.
        if words.get(f'data.{name}', '').endswith('=None'):
            config.data[name] = None
            del words[f'data.{name}']
    values, argv = flags.FlagValues(), ['jaxtrain', *words.values()]
    try:
        # New attributes are those of open sections: `_check_overrides` has rejected all others.
        config_flags.DEFINE_config_dict(
            'config',
            config,
            flag_values=values,
            lock_config=False,
            accept_new_attributes=True,
            sys_argv=argv,
        )
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(_first_line(error) + _wanted_type(str(error))) from error
    return values.config


def _check_overrides(config: ConfigDict, overrides: list[str]) -> None:
    known = dict(flatten(config.to_dict()))
    for word in overrides:
        path = _key(word)
        if '=' not in word:
            raise UserError(f'{word} has no value; write --config.{path}=VALUE')
        if path not in known and not is_open(path):
            raise UserError(f'--config.{path}: there is no such key{nearest(path, known)}')


def _key(word: str) -> str:
    return word.lstrip('-').split('=', 1)[0].removeprefix('config.')


def _check_keys(tree: Mapping[str, Any]) -> None:
    """Raises a UserError unless the keys are those of `base()`.

    A config file may build a ConfigDict without `base()`.
    """
    defaults = dict(flatten(base().to_dict()))
    given = dict(flatten(tree))
    for path, value in given.items():
        if is_open(path):
            continue
        if path not in defaults:
            raise UserError(f'config.{path} does not exist{nearest(path, defaults)}')
        if value is None and defaults[path] is not None:
            raise UserError(
                f'config.{path}=None: only {", ".join(PREPROCESSING)} of config.data can be left '
                f'open; give it a value, like the default {defaults[path]!r}'
            )
    for path in defaults:
        if path not in given:
            raise UserError(f'config.{path} is missing; start from jaxtrain.config.base()')


def _line(path: str, error: Exception) -> int | str | None:
    """The line of the config file that raised an error."""
    name = str(Path(path).resolve())
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f.lineno for f in frames if str(Path(f.filename).resolve()) == name]
    return inside[-1] if inside else getattr(error, 'lineno', '?')


def _explain(error: Exception) -> str:
    text = str(error)
    if isinstance(error, KeyError) and error.args == ('get_config',):
        return 'it does not define the function get_config'
    if 'does not exist and cannot be added' in text:
        key = text.split('"')[1]
        names = [path.rsplit('.', 1)[-1] for path, _ in flatten(base().to_dict())]
        return f'config key {key!r} does not exist{nearest(key, names)}'
    return f'{type(error).__name__}: {_first_line(error)}'


def _wanted_type(message: str) -> str:
    """The type that the key of a rejected `--config.key=value` requires, for its message."""
    defaults = dict(flatten(base().to_dict()))
    match = re.search(r'--config\.([\w.]+)=', message)
    if not match or match[1] not in defaults:
        return ''
    key, default, left_open = match[1], defaults[match[1]], ''
    if default is None:
        default, left_open = PREPROCESSING[key.removeprefix('data.')], ', or None'
    return f'; config.{key} is of type {type(default).__name__}, like {default!r}{left_open}'


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
