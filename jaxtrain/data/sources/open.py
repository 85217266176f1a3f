"""Opens a split of the data that a config names, as a `Source`."""

from collections.abc import Callable

from jaxtrain.data.features import IMAGE, TOKENS, Feature, feature
from jaxtrain.data.sources.arrays import open_npz
from jaxtrain.data.sources.corpus import open_corpus
from jaxtrain.data.sources.folder import open_folder
from jaxtrain.data.sources.manifest import open_manifest
from jaxtrain.data.sources.source import Source, first_per_class
from jaxtrain.data.sources.text import open_text
from jaxtrain.data.sources.tfds import open_tfds
from jaxtrain.errors import UserError

__all__ = ['Source', 'data_name', 'input_feature', 'open_source']

# config.data.source -> (the function that opens a split, the meaning of the model's input).
SOURCES: dict[str, tuple[Callable[..., Source], str]] = {
    'tfds': (open_tfds, IMAGE),
    'folder': (open_folder, IMAGE),
    'manifest': (open_manifest, IMAGE),
    'npz': (open_npz, IMAGE),
    'text': (open_text, TOKENS),
    'corpus': (open_corpus, TOKENS),
}


def open_source(cfg, split: str, key: str, limit: int = 0, classes: tuple[str, ...] = ()) -> Source:
    """Open a split of the data that `config.data` names.

    Args:
      cfg: `config.data`.
      split: a split, in TFDS's notation if source='tfds', otherwise its plain name.
      key: the config key or flag that names the split, for messages.
      limit: keep the first `limit` examples of each class; 0 keeps all.
      classes: class names of the run, to which labels refer; () uses those of the data.

    Raises:
      UserError: If the data or its config is invalid, such as an unknown split, images of different
        sizes without `image_size`, a class that is not among `classes`, or a limit larger than the
        data.
    """
    if limit < 0:
        raise UserError(f'config.data.limit={limit} must be 0 (all) or more')
    kind = cfg.choose('source', SOURCES)
    name = data_name(cfg)
    if not name:
        problem = 'name is empty; give the name of a data set, such as digits'
        if kind != 'tfds':
            problem = f'path is empty; give the folder or file of source={kind!r}'
        raise UserError(f'config.data.{problem}')
    open_split, _ = SOURCES[kind]
    source = open_split(cfg, split, key, tuple(classes))
    return first_per_class(source, limit, f'{name!r} {split!r}') if limit else source


def data_name(cfg) -> str:
    """Return the name of the data of `config.data`: a TFDS name, or the path of the user's data."""
    return cfg.name if cfg.source == 'tfds' else cfg.path


def input_feature(cfg, shape: tuple[int, ...]) -> Feature:
    """Return the feature that is the input of a run's model.

    Args:
      cfg: the run's `config.data`.
      shape: the shape in the run's config.json.
    """
    _, meaning = SOURCES[cfg.choose('source', SOURCES)]
    return feature(meaning, *shape)
