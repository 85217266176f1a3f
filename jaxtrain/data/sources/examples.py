"""Source: what every kind of data set becomes, examples addressed by index."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jaxtrain.data.tokenizer import Tokenizer
from jaxtrain.errors import UserError, nearest

BLOCK = 4096  # examples fetched at once where all of them are gone through


@dataclass(frozen=True)
class Source:
    """Examples of one split.

    Attributes:
      fetch: indices [n] -> a batch of them, arrays by name as `features` tells.
      size: number of examples.
      shape: of what the model is given of each: (height, width, channels) of an image, or
        (length,) of tokens.
      classes: class names by label; () for text that is learned from without labels.
      digest: sha256 of the names and classes of all examples of the split, for data that belongs
        to the user and may change between two starts of a run; '' for TFDS.
      skipped: files that could not be read and are left out.
      labels: int32 [size] where known without fetching, else None.
      tokenizer: what made the tokens of text; None for images.
      cut: texts that are longer than the tokens of an example, and lose their end.
      crop: indices [n] and uint64 [n], a number for each -> the same batch as `fetch`, but of each
        image a random part, which goes by the number; None where training sees whole images.
    """

    fetch: Callable[[np.ndarray], dict[str, np.ndarray]]
    size: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    digest: str = ''
    skipped: tuple[str, ...] = ()
    labels: np.ndarray | None = field(default=None, compare=False, repr=False)
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    cut: int = 0
    crop: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]] | None = field(
        default=None, compare=False, repr=False
    )

    def __len__(self) -> int:
        return self.size

    @property
    def features(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype of an example's arrays by name.

        Images are uint8 `image`, text is int32 `tokens`; either has an int32 `label`, or text that
        has no classes int32 `targets`, the token that follows each, -1 where none is counted.
        """
        if len(self.shape) == 3:
            return {'image': (self.shape, np.uint8), 'label': ((), np.int32)}
        aim = {'label': ((), np.int32)} if self.classes else {'targets': (self.shape, np.int32)}
        return {'tokens': (self.shape, np.int32), **aim}


def digest(names: Sequence[str], classes: Iterable[str]) -> str:
    """sha256, in hex, of what the examples are called and are; their order does not matter."""
    lines = sorted(map(json.dumps, zip(names, classes, strict=True)))
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def in_memory(source: Source) -> Source:
    """The same examples, fetched once and kept."""
    parts = [source.fetch(block) for block in _blocks(len(source))]
    images = np.concatenate([part['image'] for part in parts])
    labels = np.concatenate([part['label'] for part in parts])

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        return {'image': images[indices], 'label': labels[indices]}

    return replace(source, fetch=fetch, labels=labels)


def first_per_class(source: Source, limit: int, where: str) -> Source:
    """The first `limit` examples of each class, in the order of the data set.

    Raises:
      UserError: a class has fewer, or there are none; `where` names the data in the message.
    """
    if not source.classes:
        raise UserError(
            f'config.data.limit={limit} counts the examples of each class, and {where} has no '
            'classes; set it to 0'
        )
    kept: list[int] = []
    counts = np.zeros(len(source.classes), int)
    for block in _blocks(len(source)):
        labels = source.fetch(block)['label'] if source.labels is None else source.labels[block]
        for index, label in zip(block.tolist(), labels.tolist(), strict=True):
            if counts[label] < limit:
                counts[label] += 1
                kept.append(index)
        if counts.min() == limit:
            break
    if counts.min() < limit:
        rarest = int(counts.argmin())
        raise UserError(
            f'config.data.limit={limit} is larger than the data: class '
            f'{source.classes[rarest]!r} has {counts[rarest]} examples in {where}'
        )
    chosen = np.array(kept)
    crop = source.crop
    return replace(
        source,
        fetch=lambda indices: source.fetch(chosen[indices]),
        crop=crop and (lambda indices, numbers: crop(chosen[indices], numbers)),
        size=len(chosen),
        labels=None if source.labels is None else source.labels[chosen],
    )


def relabel(found: Sequence[str], classes: tuple[str, ...], where: str) -> dict[str, int]:
    """Class name -> label among `classes`, the classes of the run.

    Raises:
      UserError: a class that was found in the data is not among them.
    """
    labels = {name: label for label, name in enumerate(classes)}
    for name in found:
        if name not in labels:
            raise UserError(
                f'{where}: class {name!r} is not one of the {len(classes)} classes that the run '
                f'trains on{nearest(name, classes)}; rename it, or take it away'
            )
    return labels


def check_classes(classes: Sequence[str], where: str) -> None:
    """UserError unless there are two classes or more to tell apart."""
    if len(classes) < 2:
        raise UserError(
            f'{where} has the one class {classes[0]!r}; a classifier takes two or more, give the '
            'others examples too'
        )


def require_all(labels: Iterable[int], classes: Sequence[str], key: str, split: str) -> None:
    """UserError if a class has no example in what was dealt to the split that is trained on."""
    for label in sorted(set(range(len(classes))) - set(labels)):
        raise UserError(
            f'{key}={split!r}: none of the examples of class {classes[label]!r} falls into it; add '
            'some, or let another config.data.split_seed deal them out'
        )


def _blocks(size: int) -> Iterable[np.ndarray]:
    return (np.arange(at, min(at + BLOCK, size)) for at in range(0, size, BLOCK))
