"""Finds a data set by name, and makes sure that it lies on disk, whole, as ArrayRecord."""

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

# The data sets that this package makes by itself: name -> (class, config).
OURS = {
    'digits': (Digits, None),
    **{f'glyphs/{config.name}': (Glyphs, config.name) for config in Glyphs.BUILDER_CONFIGS},
}
_FORMAT = tfds.core.FileFormat.ARRAY_RECORD


def builder(name: str, data_dir: str = '') -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set; nothing is written yet, see `prepare`.

    A name is NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION, with a VERSION like 1.0.0 or
    1.2.*. Without a version, the one of TFDS's code is meant if it is prepared, or else the newest
    that is.

    Args:
        name: of one of `OURS`, of one of `OFFICIAL`, or of a data set that lies prepared in
            `data_dir`; TFDS needs to know no code for that one.
        data_dir: where TFDS data sets lie. Empty: where TFDS says, which is the environment's
            TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        UserError: no such data set, or one that cannot be read without TensorFlow.
    """
    root = os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR)
    with _silence():
        found = _ours(name, root) or _foreign(name, root)
        prepared = found.is_prepared()
    if not prepared and not _can_be_made(found):
        raise UserError(
            f'config.data.name = {name!r}: not prepared in {found.data_dir}, and to prepare it '
            f'takes TensorFlow; {_recipe(found, name, root)}'
        )
    if prepared and found.info.file_format != _FORMAT:
        raise UserError(
            f'config.data.name = {name!r}: {found.data_dir} holds {found.info.file_format.value}, '
            f'which takes TensorFlow to read; remove it, and {_remedy(found, name, root)}'
        )
    return found


def prepare(builder: tfds.core.DatasetBuilder, quiet: bool = False) -> None:
    """Makes sure that a data set is ready to be read, by this very builder too.

    Any number of processes may call it at once on one file system: one writes, the others wait for
    it. If one is killed on its way, the next one starts afresh: TFDS writes into a folder
    `incomplete.*` and renames it when all is there, so a data set is whole or it is not seen.

    Args:
        builder: of a data set that is prepared, or that can be generated without TensorFlow.
        quiet: no progress bar, on a terminal either.

    Raises:
        UserError: the folder cannot be written, or holds something else than a whole data set.
    """
    with _silence():
        if not builder.is_prepared():
            with _lock(builder):
                if not builder.is_prepared():  # else another process did it while we waited
                    _generate(builder, quiet)
        if not builder.info.splits:  # written by another process, after `builder` was made
            builder.info.set_file_format(_FORMAT, override=True)
            builder.info.read_from_directory(builder.data_dir)


def is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    """Returns whether a data set lies on disk, whole."""
    with _silence():
        return builder.is_prepared()


def check_split(name: str, splits: Mapping[str, tfds.core.SplitInfo], split: str, key: str) -> int:
    """Returns the number of examples of a split in TFDS's notation, such as `train[:99%]`.

    Args:
        name: of the data set, for messages.
        splits: a `SplitDict`.
        split: what is asked for.
        key: the config key or flag that asks for it, for messages.

    Raises:
        UserError: no such split, or no examples in it.
    """
    known = sorted(splits)
    if not {part.split('[')[0].strip() for part in split.split('+')} <= {*known, 'all'}:
        raise UserError(
            f'{key}={split!r}: data set {name!r} has no such split{nearest(split, known)}; it has '
            f'{", ".join(known)}'
        )
    try:
        size = splits[split].num_examples
    except Exception as error:  # TFDS has no one type for it
        raise UserError(
            f'{key}={split!r} is not a split that TFDS understands; '
            f"write it like 'train', 'train[:80%]' or 'train[:1000]'"
        ) from error
    if size == 0:
        raise UserError(f'{key}={split!r} holds no examples; choose a larger part')
    return size


def _generate(builder: tfds.core.DatasetBuilder, quiet: bool) -> None:
    """Writes the data set. The caller holds the lock, so every leftover is a dead process's."""
    folder = Path(builder.data_dir)
    if folder.exists():
        raise UserError(f'{folder} is not a whole data set: remove it, and it is prepared again')
    for leftover in folder.parent.glob(f'incomplete.*_{folder.name}'):
        shutil.rmtree(leftover)
    builder.quiet = quiet
    with without_tensorflow():
        builder.download_and_prepare(
            file_format=_FORMAT,
            download_config=tfds.download.DownloadConfig(
                manual_dir=manual_dir(builder),
                force_checksums_validation=True,
                try_download_gcs=False,  # or it asks a server whether there is a TFRecord to be had
            ),
        )


@contextlib.contextmanager
def _lock(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Holds an exclusive lock on the file VERSION.lock beside the data set's folder.

    The kernel drops the lock when its process dies. The file stays: if it were removed, a process
    that waits on the old one and a process that makes a new one would both hold the lock.
    """
    if '://' in builder.data_dir:  # a bucket knows neither locks nor renamed folders
        raise UserError(
            f'config.data.dir: cannot prepare {builder.data_dir} in place; prepare the data set in '
            'a local folder and copy it there'
        )
    path = Path(f'{builder.data_dir}.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a')
    except OSError as error:
        raise UserError(
            f'config.data.dir: cannot write {path.parent} ({error.strerror}); name a folder that '
            "can be written, in the config or in the environment's TFDS_DATA_DIR"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ours(name: str, root: str) -> tfds.core.DatasetBuilder | None:
    """Returns the builder of a data set that is generated here, or None if it is not one."""
    key, _, version = name.partition(':')
    if key not in OURS:
        return None
    cls, config = OURS[key]
    try:
        return cls(data_dir=root, config=config, version=version or None)
    except AssertionError as error:
        raise _unknown(name, root) from error


def _foreign(name: str, root: str) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set of TFDS, or of one of which only the files are there."""
    try:
        if _base(name) in map(_base, OURS):
            raise ValueError('one of our data sets, but no such config')
        found = tfds.builder(name, data_dir=root)
        if not found.is_prepared() and ':' not in name:
            found = tfds.builder(name, data_dir=root, version='*.*.*')  # of any version
    except Exception as error:  # TFDS has no one type for it
        raise _unknown(name, root) from error
    if found.name in OFFICIAL and not found.is_prepared():
        cls = OFFICIAL[found.name]
        if found.version != cls.VERSION:
            raise UserError(
                f'config.data.name = {name!r}: not prepared in {found.data_dir}, and the version '
                f"that can be prepared is another one: '{found.name}:{cls.VERSION}'"
            )
        return cls(data_dir=root)
    return found


def _can_be_made(found: tfds.core.DatasetBuilder) -> bool:
    return isinstance(found, (Digits, Glyphs, *OFFICIAL.values()))


def _unknown(name: str, root: str) -> UserError:
    """Says what there is instead: what lies in the folder of that name, or else similar names."""
    lying = _lying(_base(name), root)
    if lying:
        return UserError(
            f'config.data.name = {name!r}: no such version or config, or its files are damaged; '
            f'name one that lies prepared in {root}: {", ".join(lying)}'
        )
    close = difflib.get_close_matches(name, _known(name), n=3, cutoff=0.5) or [*OURS, *OFFICIAL]
    return UserError(
        f'config.data.name = {name!r}: no such data set; nearest known names: '
        f'{", ".join(close)}; set it to one of them, or to a data set that is prepared as '
        f'array_record in {root}'
    )


def _lying(base: str, root: str) -> list[str]:
    """Returns the full names of what is prepared in the folder of a data set."""
    files = Path(root, base).rglob('dataset_info.json') if base.isidentifier() else ()
    parts = [file.parent.relative_to(root).parts for file in sorted(files)]
    return [f'{"/".join(path)}:{version}' for *path, version in parts]


def _known(name: str) -> list[str]:
    """Returns the names there are, with configs for the data set that `name` begins with."""
    theirs = set(tfds.list_builders(with_community_datasets=False)) - set(map(_base, OURS))
    configs = tfds.builder_cls(_base(name)).builder_configs if _base(name) in theirs else ()
    return [*OURS, *sorted(theirs), *(f'{_base(name)}/{config}' for config in configs)]


def _base(name: str) -> str:
    return re.split('[/:]', name)[0]


def _remedy(found: tfds.core.DatasetBuilder, name: str, root: str) -> str:
    """Returns how to get as ArrayRecord what is there in another format."""
    if found.name in {*map(_base, OURS), *OFFICIAL}:
        return 'it is prepared anew as array_record'
    if found.name in _known(name):
        return _recipe(found, name, root)
    return "prepare it anew by the code that made it, with file_format='array_record'"


def _recipe(found: tfds.core.DatasetBuilder, name: str, root: str) -> str:
    """Returns how to prepare a data set on a machine with TensorFlow, for this one."""
    return (
        f'do once where that is installed, and copy the folder data/{found.name} to {root}: '
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir='
        f"'data').download_and_prepare(file_format='array_record')\""
    )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps TFDS from talking: absl's log, lines on stdout, and (from now on) its own bars."""
    tfds.disable_progress_bar()  # for good, because TFDS does not tell whether they were on
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
