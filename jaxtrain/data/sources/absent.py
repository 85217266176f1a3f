"""What planning needs to know of a data set that is not on this machine: all but its examples."""

from typing import TYPE_CHECKING

import numpy as np

from jaxtrain.data.features import classified_image
from jaxtrain.data.images.resize import asked_size
from jaxtrain.data.sources.source import Source
from jaxtrain.data.sources.tfds import image_shape
from jaxtrain.errors import UserError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Examples of each split with labels, of all data sets of `official.OFFICIAL`:
# http://yann.lecun.com/exdb/mnist, https://github.com/zalandoresearch/fashion-mnist,
# https://www.cs.toronto.edu/~kriz/cifar.html, and table 2 of Russakovsky et al., "ImageNet Large
# Scale Visual Recognition Challenge" (https://arxiv.org/abs/1409.0575).
SIZES = {
    'mnist': {'train': 60_000, 'test': 10_000},
    'fashion_mnist': {'train': 60_000, 'test': 10_000},
    'cifar10': {'train': 50_000, 'test': 10_000},
    'cifar100': {'train': 50_000, 'test': 10_000},
    'imagenet2012': {'train': 1_281_167, 'validation': 50_000},
}


def is_here(cfg) -> bool:
    """Whether the examples of `config.data` can be had without a download or archives.

    So they can if they are the user's own, or prepared, or made by this package itself. What TFDS
    does not know, or what is there in a format that takes TensorFlow, is not.
    """
    from jaxtrain.data.datasets.prepare import OURS, builder, is_prepared

    if cfg.source != 'tfds' or cfg.name.partition(':')[0] in OURS:
        return True
    try:
        return is_prepared(builder(cfg.name, cfg.dir))
    except UserError:
        return False


def absent_source(
    cfg, split: str, key: str, limit: int = 0, classes: tuple[str, ...] = ()
) -> Source:
    """A split of a data set that is not here, whose examples cannot be fetched.

    Args:
      cfg, split, key, limit, classes: as of `open.open_source`, but the class names of
        CIFAR are numbers unless `classes` are given, since the archives hold the names.

    Raises:
      UserError: a data set of which too little is known, with how to prepare it; or anything that
        would be wrong with the split, image_size or limit if it were here.
    """
    from jaxtrain.data.datasets.prepare import builder, check_split

    made = builder(cfg.name, cfg.dir)
    if made.name not in SIZES:
        raise UserError(
            f'config.data.name={cfg.name!r}: the size of this data set is not known before it is '
            'prepared, which `jaxtrain train` does on first use'
        )
    if 'shard' in split:
        raise UserError(
            f'{key}={split!r} counts files, and how many there are is not known before '
            f"{cfg.name!r} is prepared; write it like 'train[:80%]' or 'train[:1000]'"
        )
    size = check_split(made.info.full_name, _splits(made), split, key)
    features = made.info.features
    names = tuple(features['label'].names)
    if limit < 0 or limit * len(names) > size:
        raise UserError(
            f'config.data.limit={limit} must be 0 (all), or up to {size // len(names)}, for '
            f'{cfg.name!r} {split!r} has {size} examples of {len(names)} classes'
        )

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        raise UserError(
            f'config.data.name={cfg.name!r}: its examples are not here, only its size is known; '
            '`jaxtrain train` prepares it on first use'
        )

    shape = image_shape(cfg.name, asked_size(cfg), features['image'].shape)
    return Source(
        fetch, limit * len(names) or size, classified_image(*shape), 'image', classes or names
    )


def _splits(made: 'tfds.core.DatasetBuilder') -> 'tfds.core.splits.SplitDict':
    """The splits that the builder would have if it were prepared, of one file each."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.naming import ShardedFileTemplate

    template = ShardedFileTemplate(
        data_dir=made.data_dir, dataset_name=made.name, filetype_suffix='array_record'
    )
    return tfds.core.splits.SplitDict(
        tfds.core.SplitInfo(
            name=name, shard_lengths=[size], num_bytes=0, filename_template=template
        )
        for name, size in SIZES[made.name].items()
    )
