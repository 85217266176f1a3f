"""Archives in the official layouts of MNIST, CIFAR and ImageNet, with a few random images.

The content is the same each time. This module needs only NumPy and TFDS, so that the tests and the
script that uses TensorFlow (golden/make_tfds_digests.py) prepare data from the same archives.
"""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from tensorflow_datasets.core.download import checksums

NAMES = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')
TRAIN, TEST = 600, 110  # examples
# ImageNet's synset -> training images, in the order of the archive. Four are on TFDS's lists of
# images that it converts to RGB JPEGs; golden/imagenet2012.npz has their content here.
SYNSETS = {
    'n02447366': ('n02447366_7.JPEG', 'n02447366_23489.JPEG'),
    'n01440764': ('n01440764_10026.JPEG', 'n01440764_18.JPEG', 'n01440764_9.JPEG'),
    'n02105855': ('n02105855_2933.JPEG', 'n02105855_1.JPEG'),
    'n01739381': ('n01739381_1309.JPEG',),
    'n02077923': ('n02077923_3.JPEG', 'n02077923_4.JPEG', 'n02077923_14822.JPEG'),
}
SPECIAL = {
    'n01739381_1309.JPEG': 'CMYK, inverted as Adobe does',
    'n02077923_14822.JPEG': 'CMYK as it is',
    'n02447366_23489.JPEG': 'YCCK, inverted as Adobe does',
    'n02105855_2933.JPEG': 'PNG with transparency',
}
VALIDATION, UNLABELLED = (4, 1, 7, 3, 8, 2, 6, 5), (2, 1, 3)  # numbers, in the archive's order
IMAGENET = Path(__file__).parents[1] / 'golden' / 'imagenet2012.npz'
_CIFAR10_NAMES = 'airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n'


def write(name: str, folder: Path, train: int = TRAIN, test: int = TEST) -> list[Path]:
    """Writes the archives of a data set into a folder, under their official names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(NAMES.index(name))
    if name in ('mnist', 'fashion_mnist'):
        return _idx(rng, folder, {'train': train, 't10k': test})
    return [{'cifar10': _cifar10, 'cifar100': _cifar100}[name](rng, folder, train, test)]


def write_imagenet(folder: Path) -> list[Path]:
    """Writes the three archives of ImageNet into a folder, under their official names.

    The images that TFDS does not convert are copies of one JPEG, each with a different trailing
    byte, which decoders ignore.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(IMAGENET) as images:
        special = {name: images[name].tobytes() for name in SPECIAL}
        plain = images['plain'].tobytes()
    names = [name for files in SYNSETS.values() for name in files]
    files = {name: special.get(name, plain + b'%c' % n) for n, name in enumerate(names)}
    synsets = {f'{s}.tar': _tar({name: files[name] for name in SYNSETS[s]}) for s in SYNSETS}
    archives = {'ILSVRC2012_img_train.tar': synsets}
    for split, numbers in (('val', VALIDATION), ('test', UNLABELLED)):
        archives[f'ILSVRC2012_img_{split}.tar'] = {
            f'ILSVRC2012_{split}_{n:08}.JPEG': plain + b'%s %d' % (split.encode(), n)
            for n in numbers
        }
    for name, members in archives.items():
        (folder / name).write_bytes(_tar(members))
    return [folder / name for name in archives]


def describe_imagenet(rows) -> list[list]:
    """Name, label and SHA-256 ('' for the four in `SPECIAL`) of each row of a data source."""
    return [
        [
            name,
            int(row['label']),
            '' if name in SPECIAL else hashlib.sha256(row['image']).hexdigest(),
        ]
        for row in rows
        for name in [row['file_name'].decode()]
    ]


def url_infos(cls, folder: Path) -> dict[str, checksums.UrlInfo]:
    """The `cls.url_infos` under which the files in the folder pass as the official ones."""
    return {
        url: checksums.compute_url_info(folder / (official.filename or url.rpartition('/')[2]))
        for url, official in cls.url_infos.items()
    }


def _pixels(rng, *shape: int) -> np.ndarray:
    """uint8 pixels: noise for one half of the images, smooth ramps for the other."""
    pixels = rng.randint(0, 256, shape)
    pixels[::2] = np.cumsum(pixels[::2] % 9, axis=-1) % 256
    return pixels


def _idx(rng, folder: Path, sizes: dict[str, int]) -> list[Path]:
    paths = []
    for split, size in sizes.items():
        arrays = {
            'images-idx3': _pixels(rng, size, 28, 28),
            'labels-idx1': rng.randint(0, 10, size),
        }
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
            data = header + array.astype(np.uint8).tobytes()
            paths.append(folder / f'{split}-{kind}-ubyte.gz')
            paths[-1].write_bytes(gzip.compress(data, mtime=0))
    return paths


def _rows(rng, size: int, *classes: int) -> bytes:
    """Labels (coarse before fine) and pixels (all red, all green, all blue), row by row."""
    labels = [rng.randint(0, count, (size, 1)) for count in classes]
    pixels = _pixels(rng, size, 3 * 32 * 32)
    return np.concatenate([*labels, pixels], axis=1).astype(np.uint8).tobytes()


def _cifar10(rng, folder: Path, train: int, test: int) -> Path:
    files = {'batches.meta.txt': _CIFAR10_NAMES.encode()}
    files |= {f'data_batch_{n}.bin': _rows(rng, train // 5, 10) for n in (5, 1, 4, 2, 3)}
    files |= {'test_batch.bin': _rows(rng, test, 10), 'readme.html': b'<html></html>'}
    return _targz(folder / 'cifar-10-binary.tar.gz', 'cifar-10-batches-bin', files)


def _cifar100(rng, folder: Path, train: int, test: int) -> Path:
    files = {
        'coarse_label_names.txt': b''.join(b'coarse_%d\n' % n for n in range(20)),
        'fine_label_names.txt': b''.join(b'fine_%d\n' % n for n in range(100)),
        'test.bin': _rows(rng, test, 20, 100),
        'train.bin': _rows(rng, train, 20, 100),
    }
    return _targz(folder / 'cifar-100-binary.tar.gz', 'cifar-100-binary', files)


def _targz(path: Path, root: str, files: dict[str, bytes]) -> Path:
    path.write_bytes(gzip.compress(_tar(files, root), 1, mtime=0))
    return path


def _tar(files: dict[str, bytes], root: str = '') -> bytes:
    """A tar archive of files, in the folder `root` unless that is empty."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode='w') as tar:
        if root:
            folder = tarfile.TarInfo(root)
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        for name, data in files.items():
            member = tarfile.TarInfo(f'{root}/{name}' if root else name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return raw.getvalue()


def digest(rows, decode) -> dict[str, object]:
    """Returns the number of examples of a split, and a SHA-256 over all of them, in order on disk.

    Args:
      rows: a TFDS data source; everything in a row except the image is used as it is.
      decode: row['image'] -> uint8 [height, width, channels].
    """
    total = hashlib.sha256()
    for row in rows:
        image = decode(row['image'])
        rest = {key: row[key] for key in sorted(row) if key != 'image'}
        rest = {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in rest.items()}
        total.update(f'{image.shape} {image.dtype} {rest}'.encode() + image.tobytes())
    return {'len': len(rows), 'sha256': total.hexdigest()}
