"""Source: what every kind of data set becomes, examples addressed by index."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from jaxtrain.data.features import TOKENS, Feature
from jaxtrain.data.tokenizer import Tokenizer
from jaxtrain.errors import UserError, nearest

BLOCK = 4096  # examples fetched at once where all of them are gone through


class Fetch(Protocol):
    """Reads a batch of examples."""

    def __call__(
        self, indices: np.ndarray, numbers: np.ndarray | None = None, /
    ) -> dict[str, np.ndarray]:
        """Arrays by name, as `Source.features` declares them, with an axis of examples in front.

        Args:
          indices: int64 [n], the examples.
          numbers: uint64 [n], what the random choices of each example's transforms go by; None
            where no choice is to be made, as in evaluation. A source that makes none ignores them.
        """


@dataclass(frozen=True)
class Source:
    """Examples of one split.

    Attributes:
      fetch: the one way to read them.
      size: number of examples.
      features: the arrays of an example by name.
      inputs: the name of the one that the model is given.
      classes: class names by label; () for text that is learned from without labels.
      digest: sha256 of the names and classes of all examples of the split, for data that belongs
        to the user and may change between two starts of a run; '' for TFDS.
      skipped: files that could not be read and are left out.
      labels: int32 [size] where known without fetching, else None.
      tokenizer: what made the tokens of text; None for images.
      cut: texts that are longer than the tokens of an example, and lose their end.
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

    def __len__(self) -> int:
        return self.size

    @property
    def model_input(self) -> Feature:
        """What the model is given of an example."""
        return self.features[self.inputs]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what the model is given of an example."""
        return self.model_input.shape

    @property
    def tokens(self) -> int:
        """How many tokens the model is given of an example; 0 where it is given something else."""
        return self.shape[0] if self.model_input.meaning == TOKENS else 0


def digest(names: Sequence[str], classes: Iterable[str]) -> str:
    """sha256, in hex, of what the examples are called and are; their order does not matter."""
    lines = sorted(map(json.dumps, zip(names, classes, strict=True)))
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()


def in_memory(source: Source) -> Source:
    """The same examples, fetched once and kept."""
    parts = [source.fetch(block) for block in _blocks(len(source))]
    kept = {name: np.concatenate([part[name] for part in parts]) for name in source.features}

    def fetch(indices: np.ndarray, numbers: np.ndarray | None = None) -> dict[str, np.ndarray]:
        return {name: array[indices] for name, array in kept.items()}

    return replace(source, fetch=fetch, labels=kept['label'])


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
    return replace(
        source,
        fetch=lambda indices, numbers=None: source.fetch(chosen[indices], numbers),
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
