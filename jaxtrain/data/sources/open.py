"""Opens the data that a config names: a split of it, as a Source of examples addressed by index."""

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

# config.data.source -> (what opens a split of it, the meaning of what the model is given).
SOURCES: dict[str, tuple[Callable[..., Source], str]] = {
    'tfds': (open_tfds, IMAGE),
    'folder': (open_folder, IMAGE),
    'manifest': (open_manifest, IMAGE),
    'npz': (open_npz, IMAGE),
    'text': (open_text, TOKENS),
    'corpus': (open_corpus, TOKENS),
}


def open_source(cfg, split: str, key: str, limit: int = 0, classes: tuple[str, ...] = ()) -> Source:
    """A split of the data that `config.data` names.

    Args:
      cfg: `config.data`.
      split: a split, in TFDS's notation for source='tfds'; else its plain name.
      key: the config key or flag that names the split, for messages.
      limit: keep the first `limit` examples of each class; 0 keeps all.
      classes: class names of the run, to which labels are to refer; () takes the data's own.

    Raises:
      UserError: anything wrong with the data or what the config says of it, such as an unknown
        split, images of different sizes with no `image_size`, a class that is not among `classes`,
        or a limit larger than the data.
    """
    if limit < 0:
        raise UserError(f'config.data.limit={limit} must be 0 (all) or more')
    kind = cfg.choose('source', SOURCES)
    name = data_name(cfg)
    if not name:
        wanted = 'name is empty; give the name of a data set, such as digits'
        if kind != 'tfds':
            wanted = f'path is empty; name the folder or file of source={kind!r}'
        raise UserError(f'config.data.{wanted}')
    opens, _ = SOURCES[kind]
    source = opens(cfg, split, key, tuple(classes))
    return first_per_class(source, limit, f'{name!r} {split!r}') if limit else source


def data_name(cfg) -> str:
    """What the data of `config.data` is called: a TFDS name, or the path of the user's own."""
    return cfg.name if cfg.source == 'tfds' else cfg.path


def input_feature(cfg, shape: tuple[int, ...]) -> Feature:
    """What the model of a run was given of an example.

    Args:
      cfg: the run's `config.data`.
      shape: as its config.json has it.
    """
    _, meaning = SOURCES[cfg.choose('source', SOURCES)]
    return feature(meaning, *shape)
