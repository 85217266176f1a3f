"""A folder of images as a data set: DIR/SPLIT/CLASS/**, or DIR/CLASS/** dealt out to splits."""

import os

from jaxtrain.data.images.find import SUFFIXES, scan, walk
from jaxtrain.data.sources.deal import deal
from jaxtrain.data.sources.files import Files, file_source
from jaxtrain.data.sources.source import Source, check_classes, relabel, require_all
from jaxtrain.errors import UserError, nearest

# Folders so called are taken for splits, and never for classes that hold images directly.
SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'dev', 'test', 'testing', 'eval'}


def open_folder(cfg, split: str, key: str, classes: tuple[str, ...]) -> Source:
    """A split of the folder `config.data.path`.

    It is split already if it holds folders called like the run's splits that hold folders of their
    own. Else its folders are the classes, and each image is dealt to a split by its path without
    the suffix, so that neither other images nor another format move it. What is hidden or has
    another suffix than those of `find.SUFFIXES` is ignored.

    Args:
      cfg: `config.data`.
      split: the split to open.
      key: the config key or flag that names it, for messages.
      classes: class names by label; () takes those of the data, sorted.

    Raises:
      UserError: see the messages.
    """
    root = os.path.expanduser(cfg.path)
    if not os.path.isdir(root):
        what = 'is not a folder' if os.path.exists(root) else 'does not exist'
        raise UserError(
            f"config.data.path={cfg.path!r} {what}; for source='folder' name a folder of images"
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
    """All images of the class folders of `root`, sorted by class and path.

    Raises:
      UserError: no class folders, an empty one, or one that is not among `classes`; or a single
        class where `classes` are not given; or two images that differ in the suffix alone.
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
    found: list[int] = []
    for folder in folders:
        inside = walk(os.path.join(root, folder))
        if not inside:
            raise UserError(
                f'{os.path.join(root, folder)} holds no images ({", ".join(SUFFIXES)}); '
                'remove it, or put the images of that class there'
            )
        _require_distinct(os.path.join(root, folder), inside)
        names += [f'{folder}/{name}' for name in inside]
        found += [labels[folder]] * len(inside)
    paths = tuple(os.path.join(root, name) for name in names)
    return Files(tuple(names), paths, tuple(found), classes or tuple(folders))


def _folders(root: str) -> list[str]:
    return sorted(entry.name for entry in scan(root) if entry.is_dir())


def _require_distinct(folder: str, inside: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in inside:
        stem = os.path.splitext(name)[0]
        if stem in seen:
            raise UserError(
                f'{folder} holds {seen[stem]} and {name}: the same example twice; remove or rename '
                'one of them'
            )
        seen[stem] = name
