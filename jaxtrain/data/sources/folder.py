"""The source 'folder': images in DIR/SPLIT/CLASS/**, or in DIR/CLASS/** with assigned splits."""

import os

from jaxtrain.data.images.find import SUFFIXES, scan, walk
from jaxtrain.data.sources.deal import deal
from jaxtrain.data.sources.files import Files, file_source
from jaxtrain.data.sources.source import Source, check_classes, relabel, require_all
from jaxtrain.errors import UserError, nearest

# Folders with these names are taken for splits, and not for class folders of images.
SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing', 'eval'}


def open_folder(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """Open a split of the folder `config.data.path`.

    The folder has explicit splits if it contains folders named like the splits of the run, which
    contain folders themselves. Otherwise its folders are the classes, and each image is assigned to
    a split by its path without the suffix, so that neither adding images nor converting them to
    another format moves it. Hidden files and files without a suffix in `find.SUFFIXES` are ignored.

    Args:
      cfg: `config.data`.
      split: the split to open.
      key: the config key or flag that names the split, for messages.
      classes: class names by label; () uses the sorted classes of the data.

    Raises:
      UserError: If the folder is missing, malformed or empty; see the messages.
    """
    root = os.path.expanduser(cfg.path)
    if not os.path.isdir(root):
        what = 'is not a folder' if os.path.exists(root) else 'does not exist'
        raise UserError(
            f"config.data.path={cfg.path!r} {what}; for source='folder' give a folder of images"
        )
    folders = _folders(root)
    splits = {split, cfg.train, cfg.val, cfg.test}
    if any(name in folders and _folders(os.path.join(root, name)) for name in splits):
        if split not in folders:
            raise UserError(
                f'{key}={split!r}: {root} has no folder of that name{nearest(split, folders)}; it '
                f'has {", ".join(folders)}'
            )
        files = list_classes(os.path.join(root, split), classes)
        return file_source(cfg, files, split)
    if folders and set(folders) <= SPLITS | splits:
        raise UserError(
            f'{os.path.join(root, folders[0])} holds no class folders; put each image in one, like '
            f'{os.path.join(root, folders[0], "CLASS", "image.jpg")}'
        )
    files = list_classes(root, classes)
    stems = [os.path.splitext(name)[0] for name in files.names]
    files = files.take(deal(cfg, stems, split, key))
    if split == cfg.train:
        require_all(files.labels, files.classes, key, split)
    return file_source(cfg, files, split)


def list_classes(root: str, classes: tuple[str, ...]) -> Files:
    """Return all images in the class folders of `root`, sorted by class and path.

    Raises:
      UserError: If there are no class folders; if one is empty or not among `classes`; if there is
        only one and `classes` is (); or if two images differ only in the suffix.
    """
    folders = _folders(root)
    if not folders:
        inside = walk(root)
        raise UserError(
            f'{root} holds {len(inside) or "no"} images and no class folders; put each image in '
            f'one, like {os.path.join(root, "CLASS", "image.jpg")}'
        )
    if not classes:
        check_classes(folders, root)
    labels = relabel(folders, classes or tuple(folders), root)
    names: list[str] = []
    numbers: list[int] = []
    for folder in folders:
        inside = walk(os.path.join(root, folder))
        if not inside:
            raise UserError(
                f'{os.path.join(root, folder)} holds no images ({", ".join(SUFFIXES)}); '
                'remove it, or put the images of that class there'
            )
        _require_distinct(os.path.join(root, folder), inside)
        names += [f'{folder}/{name}' for name in inside]
        numbers += [labels[folder]] * len(inside)
    paths = tuple(os.path.join(root, name) for name in names)
    return Files(tuple(names), paths, tuple(numbers), classes or tuple(folders))


def _folders(root: str) -> list[str]:
    return sorted(entry.name for entry in scan(root) if entry.is_dir())


def _require_distinct(folder: str, inside: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in inside:
        stem = os.path.splitext(name)[0]
        if stem in seen:
            raise UserError(
                f'{folder} holds {seen[stem]} and {name}, the same example twice; remove or rename '
                'one of them'
            )
        seen[stem] = name
