"""What planning needs to know of a data set that is not on this machine: all but its examples."""

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.naming import ShardedFileTemplate

from jaxtrain.data.datasets.prepare import OURS, builder, check_split, is_prepared
from jaxtrain.data.images.decode import asked_size
from jaxtrain.data.sources.examples import Source
from jaxtrain.errors import UserError

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
      cfg, split, key, limit, classes: as of `sources.open_source`, but for that the class names of
        CIFAR are numbers unless `classes` are given, since the archives hold the names.

    Raises:
      UserError: a data set of which too little is known, with how to prepare it; or anything that
        would be wrong with the split, image_size or limit if it were here.
    """
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

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        raise UserError(
            f'config.data.name={cfg.name!r}: its examples are not here, only its size is known; '
            '`jaxtrain train` prepares it on first use'
        )

    shape = _image_shape(cfg, features['image'].shape)
    return Source(fetch, limit * len(names) or size, shape, classes or names)


def _splits(made: tfds.core.DatasetBuilder) -> tfds.core.splits.SplitDict:
    """The splits that the builder would have if it were prepared, of one file each."""
    template = ShardedFileTemplate(
        data_dir=made.data_dir, dataset_name=made.name, filetype_suffix='array_record'
    )
    return tfds.core.splits.SplitDict(
        tfds.core.SplitInfo(
            name=name, shard_lengths=[size], num_bytes=0, filename_template=template
        )
        for name, size in SIZES[made.name].items()
    )


def _image_shape(cfg, own: tuple[int | None, ...]) -> tuple[int, int, int]:
    """(height, width, channels) of images as the model is given them; `own` is the data set's."""
    height, width = asked_size(cfg) or own[:2]
    if height is None or width is None:
        raise UserError(
            f'config.data.image_size: the images of {cfg.name!r} differ in size; give (height, '
            'width)'
        )
    return height, width, 1 if own[2] == 1 else 3
