"""`Source`, the common form of all data sets: examples addressed by index."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from jaxtrain.data.features import ARRAYS, CLASS, TOKENS, Feature
from jaxtrain.data.tokenizer import Tokenizer
from jaxtrain.errors import UserError, nearest

BLOCK = 4096  # examples fetched at a time when all of them are read


class Fetch(Protocol):
    """A function that reads a batch of examples."""

    def __call__(
        self, indices: np.ndarray, numbers: np.ndarray | None = None, /
    ) -> dict[str, np.ndarray]:
        """Return the arrays of `Source.features` by name, with a leading axis of examples.

        Args:
          indices: int64 [n], the examples.
          numbers: uint64 [n], the numbers that determine the random choices of each example's
            transforms; None to make no random choices, as in evaluation. A source without random
            transforms ignores them.
        """


@dataclass(frozen=True)
class Source:
    """The examples of one split.

    Attributes:
      fetch: the one way to read examples.
      size: the number of examples.
      features: the arrays of an example by name.
      inputs: the name of the array that is the model's input.
      classes: class names by label; () for text without labels.
      digest: SHA-256 of the names and classes of all examples of the split, for the user's data,
        which may change before a run resumes; '' for TFDS.
      skipped: files that could not be read and are omitted.
      labels: int32 [size] if they are known without fetching, otherwise None.
      tokenizer: the tokenizer of text; None for images.
      cut: the number of texts that are truncated to the tokens of an example.
      random: whether `fetch` uses the numbers; without them, small models train 5% faster.
    """

    fetch: Fetch
    size: int
    features: Mapping[str, Feature]
    inputs: str
    classes: tuple[str, ...] = ()
    digest: str = ''
    skipped: tuple[str, ...] = ()
    labels: np.ndarray | None = field(default=None, compare=False, repr=False)
    tokenizer: Tokenizer | None = field(default=None, repr=False)
    cut: int = 0
    random: bool = True

    def __len__(self) -> int:
        return self.size

    @property
    def model_input(self) -> Feature:
        """The feature that is the model's input."""
        return self.features[self.inputs]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the model's input, without the axis of examples."""
        return self.model_input.shape

    @property
    def tokens(self) -> int:
        """The number of tokens of an example; 0 if the model's input is not text."""
        return self.shape[0] if self.model_input.meaning == TOKENS else 0


def digest(names: Sequence[str], classes: Iterable[str]) -> str:
    """Return the SHA-256, in hex, of the names and classes of examples, whatever their order."""
    lines = sorted(map(json.dumps, zip(names, classes, strict=True)))
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def in_memory(source: Source) -> Source:
    """Return a source of the same examples, fetched once and kept in memory."""
    parts = [source.fetch(block) for block in _blocks(len(source))]
    kept = {name: np.concatenate([part[name] for part in parts]) for name in source.features}

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in kept.items()}

    return replace(source, fetch=fetch, labels=kept.get(ARRAYS[CLASS]))


def first_per_class(source: Source, limit: int, where: str) -> Source:
    """Return the first `limit` examples of each class, in the order of the data set.

    Raises:
      UserError: If a class has fewer, or there are no classes; `where` names the data in messages.
    """
    name = ARRAYS[CLASS]
    if name not in source.features:
        raise UserError(
            f'config.data.limit={limit} counts the examples of each class, and {where} does not '
            'give every example one class; set it to 0'
        )
    kept: list[int] = []
    counts = np.zeros(len(source.classes), int)
    for block in _blocks(len(source)):
        labels = source.fetch(block)[name] if source.labels is None else source.labels[block]
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
    return replace(
        source,
        fetch=lambda indices, numbers=None: source.fetch(chosen[indices], numbers),
        size=len(chosen),
        labels=None if source.labels is None else source.labels[chosen],
    )


def relabel(names: Sequence[str], classes: tuple[str, ...], where: str) -> dict[str, int]:
    """Return a dict from class name to label in `classes`, the classes of the run.

    Args:
      names: the class names in the data.
      classes: class names of the run by label.
      where: the name of the data, for messages.

    Raises:
      UserError: If a class of the data is not among `classes`.
    """
    labels = {name: label for label, name in enumerate(classes)}
    for name in names:
        if name not in labels:
            raise UserError(
                f'{where}: class {name!r} is not one of the {len(classes)} classes that the run '
                f'trains on{nearest(name, classes)}; rename or remove it'
            )
    return labels


def check_classes(classes: Sequence[str], where: str) -> None:
    """Raise UserError unless there are at least two classes."""
    if len(classes) < 2:
        raise UserError(
            f'{where} has only the class {classes[0]!r}; a classifier needs at least two, so '
            'add examples of others'
        )


def require_all(labels: Iterable[int], classes: Sequence[str], key: str, split: str) -> None:
    """Raise UserError if a class has no example in the training split."""
    for label in sorted(set(range(len(classes))) - set(labels)):
        raise UserError(
            f'{key}={split!r}: none of the examples of class {classes[label]!r} falls into it; add '
            'some, or set another config.data.split_seed'
        )


def _blocks(size: int) -> Iterable[np.ndarray]:
    return (np.arange(at, min(at + BLOCK, size)) for at in range(0, size, BLOCK))
