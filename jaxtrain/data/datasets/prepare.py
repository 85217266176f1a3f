"""Finds a TFDS data set by name and prepares it on disk as ArrayRecord."""

import contextlib
import difflib
import fcntl
import io
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from jaxtrain.data.datasets.buckets import without_tensorflow
from jaxtrain.data.datasets.digits import Digits
from jaxtrain.data.datasets.download import manual_dir
from jaxtrain.data.datasets.glyphs import Glyphs
from jaxtrain.data.datasets.official import OFFICIAL
from jaxtrain.errors import UserError, nearest

# The data sets that this package generates: name -> (class, config).
OURS = {
    'digits': (Digits, None),
    **{f'glyphs/{config.name}': (Glyphs, config.name) for config in Glyphs.BUILDER_CONFIGS},
}
_FORMAT = tfds.core.FileFormat.ARRAY_RECORD


def builder(name: str, data_dir: str = '') -> tfds.core.DatasetBuilder:
    """Return the TFDS builder of a data set, without preparing it (see `prepare`).

    A name is NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION, with a VERSION like 1.0.0 or
    1.2.*. Without a version, the version of TFDS's code is used if it is prepared, otherwise the
    newest prepared version.

    Args:
        name: one of `OURS`, one of `OFFICIAL`, or any data set that is already prepared in
            `data_dir`, for which TFDS needs no code.
        data_dir: the folder of TFDS data sets; '' for TFDS's default, which is the environment
            variable TFDS_DATA_DIR or else ~/tensorflow_datasets.

    Raises:
        UserError: If there is no such data set, or it needs TensorFlow to be prepared or read.
    """
    root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    with _silence():
        dataset = _ours(name, root) or _from_tfds(name, root)
        prepared = dataset.is_prepared()
    if not prepared and not _can_be_prepared(dataset):
        raise UserError(
            f'config.data.name = {name!r}: not prepared in {dataset.data_dir}, and preparing it '
            f'requires TensorFlow; {_recipe(dataset, name, root)}'
        )
    if prepared and dataset.info.file_format != _FORMAT:
        form = dataset.info.file_format.value
        raise UserError(
            f'config.data.name = {name!r}: {dataset.data_dir} holds {form}, which requires '
            f'TensorFlow to read; remove it, and {_remedy(dataset, name, root)}'
        )
    return dataset


def prepare(builder: tfds.core.DatasetBuilder, quiet: bool = False) -> None:
    """Prepare a data set unless it is prepared, and make this builder ready to read it.

    Any number of processes on one file system may call this at the same time: one writes, and the
    others wait for it. If the writer is killed, the next process starts again: TFDS writes into a
    folder `incomplete.*` and renames it at the end, so a data set is complete or not visible.

    Args:
        builder: the builder of a data set that is prepared or that `builder` can prepare.
        quiet: show no progress bar, even on a terminal.

    Raises:
        UserError: If the folder cannot be written, or holds anything but a complete data set.
    """
    with _silence():
        if not builder.is_prepared():
            with _lock(builder):
                if not builder.is_prepared():  # otherwise another process did it in the meantime
                    _generate(builder, quiet)
        if not builder.info.splits:  # written by another process, after `builder` was made
            builder.info.set_file_format(_FORMAT, override=True)
            builder.info.read_from_directory(builder.data_dir)


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Return whether a data set is completely prepared on disk."""
    with _silence():
        return builder.is_prepared()


def check_split(name: str, splits: Mapping[str, tfds.core.SplitInfo], split: str, key: str) -> int:
    """Return the number of examples of a split in TFDS's notation, such as `train[:99%]`.

    Args:
        name: the name of the data set, for messages.
        splits: the data set's splits by name, a `SplitDict`.
        split: the requested split.
        key: the config key or flag that names the split, for messages.

    Raises:
        UserError: If there is no such split, or it has no examples.
    """
    known = sorted(splits)
    if not {part.split('[')[0].strip() for part in split.split('+')} <= {*known, 'all'}:
        raise UserError(
            f'{key}={split!r}: data set {name!r} has no such split{nearest(split, known)}; it has '
            f'{", ".join(known)}'
        )
    try:
        size = splits[split].num_examples
    except Exception as error:  # TFDS raises various types
        raise UserError(
            f'{key}={split!r} is not valid split notation of TFDS; '
            f"write it like 'train', 'train[:80%]' or 'train[:1000]'"
        ) from error
    if size == 0:
        raise UserError(f'{key}={split!r} holds no examples; choose a larger part')
    return size


def _generate(builder: tfds.core.DatasetBuilder, quiet: bool) -> None:
    """Write the data set; the caller holds the lock, so any leftover is from a dead process."""
    folder = Path(builder.data_dir)
    if folder.exists():
        raise UserError(f'{folder} is not a complete data set; remove it to prepare it again')
    for leftover in folder.parent.glob(f'incomplete.*_{folder.name}'):
        shutil.rmtree(leftover)
    builder.quiet = quiet
    with without_tensorflow():
        builder.download_and_prepare(
            file_format=_FORMAT,
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir(builder),
                force_checksums_validation=True,
                try_download_gcs=False,  # otherwise TFDS asks a server for a prepared TFRecord
            ),
        )


@contextlib.contextmanager
def _lock(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Hold an exclusive lock on the file VERSION.lock beside the data set's folder.

    The kernel releases the lock when its process dies. The file is never removed: otherwise a
    process that waits on the old file and one that creates a new file would both hold the lock.
    """
    if '://' in builder.data_dir:  # buckets support neither locks nor renaming folders
        raise UserError(
            f'config.data.dir: cannot prepare {builder.data_dir} in place; prepare the data set in '
            'a local folder, and copy it there'
        )
    path = Path(f'{builder.data_dir}.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a')
    except OSError as error:
        raise UserError(
            f'config.data.dir: cannot write {path.parent} ({error.strerror}); set a writable '
            'folder in the config or in the environment variable TFDS_DATA_DIR'
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ours(name: str, root: str) -> tfds.core.DatasetBuilder | None:
    """Return the builder of a data set in `OURS`, or None if the name is not in it."""
    key, _, version = name.partition(':')
    if key not in OURS:
        return None
    cls, config = OURS[key]
    try:
        return cls(data_dir=root, config=config, version=version or None)
    except AssertionError as error:
        raise _unknown(name, root) from error


def _from_tfds(name: str, root: str) -> tfds.core.DatasetBuilder:
    """Return the builder of a data set of TFDS, or of one that is only known by its files."""
    try:
        if _base(name) in map(_base, OURS):
            raise ValueError('one of our data sets, but no such config')
        dataset = tfds.builder(name, data_dir=root)
        if not dataset.is_prepared() and ':' not in name:
            dataset = tfds.builder(name, data_dir=root, version='*.*.*')  # any version
    except Exception as error:  # TFDS raises various types
        raise _unknown(name, root) from error
    if dataset.name in OFFICIAL and not dataset.is_prepared():
        cls = OFFICIAL[dataset.name]
        if dataset.version != cls.VERSION:
            raise UserError(
                f'config.data.name = {name!r}: not prepared in {dataset.data_dir}, and only '
                f"another version can be prepared: '{dataset.name}:{cls.VERSION}'"
            )
        return cls(data_dir=root)
    return dataset


def _can_be_prepared(dataset: tfds.core.DatasetBuilder) -> bool:
    return isinstance(dataset, (Digits, Glyphs, *OFFICIAL.values()))


def _unknown(name: str, root: str) -> UserError:
    """Return an error that lists what is prepared under that name, or else similar names."""
    prepared = _prepared_names(_base(name), root)
    if prepared:
        return UserError(
            f'config.data.name = {name!r}: no such version or config, or its files are damaged; '
            f'choose one that is prepared in {root}: {", ".join(prepared)}'
        )
    close = difflib.get_close_matches(name, _known(name), n=3, cutoff=0.5) or [*OURS, *OFFICIAL]
    return UserError(
        f'config.data.name = {name!r}: no such data set; nearest known names: '
        f'{", ".join(close)}; choose one of them, or a data set that is prepared as '
        f'array_record in {root}'
    )


def _prepared_names(base: str, root: str) -> list[str]:
    """Return the full names of what is prepared in the folder of a data set."""
    files = Path(root, base).rglob('dataset_info.json') if base.isidentifier() else ()
    parts = [file.parent.relative_to(root).parts for file in sorted(files)]
    return [f'{"/".join(path)}:{version}' for *path, version in parts]


def _known(name: str) -> list[str]:
    """Return all known names, with the configs of the data set that `name` begins with."""
    tfds_names = set(tfds.list_builders(with_community_datasets=False)) - set(map(_base, OURS))
    configs = tfds.builder_cls(_base(name)).builder_configs if _base(name) in tfds_names else ()
    return [*OURS, *sorted(tfds_names), *(f'{_base(name)}/{config}' for config in configs)]


def _base(name: str) -> str:
    return re.split('[/:]', name)[0]


def _remedy(dataset: tfds.core.DatasetBuilder, name: str, root: str) -> str:
    """Return how to get a data set as ArrayRecord that is prepared in another format."""
    if dataset.name in {*map(_base, OURS), *OFFICIAL}:
        return 'it will be prepared again as array_record'
    if dataset.name in _known(name):
        return _recipe(dataset, name, root)
    return "prepare it again with the code that made it and file_format='array_record'"


def _recipe(dataset: tfds.core.DatasetBuilder, name: str, root: str) -> str:
    """Return how to prepare a data set on another machine, which has TensorFlow."""
    return (
        f'run this once where TensorFlow is installed, and copy the folder data/{dataset.name} to '
        f'{root}: python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir='
        f"'data').download_and_prepare(file_format='array_record')\""
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence TFDS: its absl log, its stdout and (for good) its progress bars."""
    tfds.disable_progress_bar()  # permanent, because TFDS does not report whether they were on
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
