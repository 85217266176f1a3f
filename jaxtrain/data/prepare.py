"""Finds a data set by name, and makes sure that it lies on disk, whole, as ArrayRecord."""

import contextlib
import difflib
import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from jaxtrain.data.digits import Digits
from jaxtrain.data.glyphs import Glyphs
from jaxtrain.errors import UserError

# The data sets that this package makes by itself: name -> (class, config).
OURS = {
    'digits': (Digits, None),
    **{f'glyphs/{config.name}': (Glyphs, config.name) for config in Glyphs.BUILDER_CONFIGS},
}
_FORMAT = tfds.core.FileFormat.ARRAY_RECORD


def builder(name: str, data_dir: str = '') -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a data set; nothing is written yet, see `prepare`.

    Args:
        name: a key of `OURS`, or the name of a TFDS data set that is prepared already.
        data_dir: where TFDS data sets lie. Empty: where TFDS says, which is the environment's
            TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Raises:
        UserError: no such data set, or one that cannot be read without TensorFlow.
    """
    data_dir = os.path.expanduser(data_dir) or None
    with _silence():
        if name in OURS:
            cls, config = OURS[name]
            found = cls(data_dir=data_dir, config=config)
        else:
            found = _foreign(name, data_dir)
        prepared = found.is_prepared()
    if name not in OURS and not prepared:
        raise UserError(
            f'config.data.name = {name!r}: not prepared in {found.data_dir}, and to prepare it '
            f'takes TensorFlow; do it once where that is installed, and copy the folder: '
            f'{_recipe(name)}'
        )
    if prepared and found.info.file_format != _FORMAT:
        raise UserError(
            f'config.data.name = {name!r}: {found.data_dir} holds {found.info.file_format.value}, '
            f'which takes TensorFlow to read; remove it and prepare it as array_record: '
            f'{_recipe(name)}'
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


def _generate(builder: tfds.core.DatasetBuilder, quiet: bool) -> None:
    """Writes the data set. The caller holds the lock, so every leftover is a dead process's."""
    folder = Path(builder.data_dir)
    if folder.exists():
        raise UserError(f'{folder} is not a whole data set: remove it, and it is prepared again')
    for leftover in folder.parent.glob(f'incomplete.*_{folder.name}'):
        shutil.rmtree(leftover)
    builder.quiet = quiet
    builder.download_and_prepare(file_format=_FORMAT)


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


def _foreign(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Asks TFDS for a builder that is not ours."""
    try:
        if _base(name) in map(_base, OURS):
            raise ValueError('one of our data sets, but no such config')
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError, ImportError) as error:  # TFDS has no one type for it
        nearest = difflib.get_close_matches(name, _known(name), n=3, cutoff=0.5) or list(OURS)
        raise UserError(
            f'config.data.name = {name!r}: no such data set; nearest known names: '
            f'{", ".join(nearest)}; set it to one of them, or to a data set that is prepared as '
            f'array_record in {data_dir or tfds.core.constants.DATA_DIR}'
        ) from error


def _known(name: str) -> list[str]:
    """Returns the names there are, with configs for the data set that `name` begins with."""
    theirs = set(tfds.list_builders(with_community_datasets=False)) - set(map(_base, OURS))
    configs = tfds.builder_cls(_base(name)).builder_configs if _base(name) in theirs else ()
    return [*OURS, *sorted(theirs), *(f'{_base(name)}/{config}' for config in configs)]


def _base(name: str) -> str:
    return name.partition('/')[0]


def _recipe(name: str) -> str:
    """Returns the command that prepares a data set where TensorFlow is installed."""
    return (
        f'python -c "import tensorflow_datasets as tfds; tfds.builder({name!r})'
        f".download_and_prepare(file_format='array_record')\""
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
