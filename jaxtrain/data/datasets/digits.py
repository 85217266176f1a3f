"""The data set `digits`: scikit-learn's 1,797 small handwritten digits, in fixed splits."""

from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

SPLITS = {'train': 897, 'val': 300, 'test': 600}


class Digits(tfds.core.GeneratorBasedBuilder):
    """A TFDS builder of 8x8 grey images of digits; see `_DESCRIPTION`."""

    VERSION = tfds.core.Version('1.0.0')
    RELEASE_NOTES = {'1.0.0': 'Initial release.'}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    'image': tfds.features.Image(shape=(8, 8, 1), encoding_format='png'),
                    'label': tfds.features.ClassLabel(names=list('0123456789')),
                }
            ),
            supervised_keys=('image', 'label'),
            homepage='https://archive.ics.uci.edu/dataset/80',
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        from sklearn.datasets import load_digits

        del dl_manager  # the images come with scikit-learn
        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        rows = split_rows(digits.target)
        return {
            split: self._generate_examples(images, digits.target, rows[split]) for split in SPLITS
        }

    def _generate_examples(self, images, labels, rows) -> Iterator[tuple[int, dict]]:
        for row in rows.tolist():
            png = cv2.imencode('.png', images[row])[1].tobytes()
            yield row, {'image': png, 'label': int(labels[row])}


def split_rows(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Assign the rows to splits, stratified by class and in the same way on every run.

    Args:
        labels: integers of shape (1797,).

    Returns:
        The sorted row numbers of each split; int64 of shape (897,), (300,) and (600,).
    """
    rng = np.random.RandomState(0)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        position[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    # Each class is now spread evenly over (0, 1), so any span of the order is stratified.
    order = np.argsort(position, kind='stable')
    bounds = np.cumsum(list(SPLITS.values()))[:-1]
    return dict(zip(SPLITS, map(np.sort, np.split(order, bounds)), strict=True))


_DESCRIPTION = """
1,797 handwritten digits as 8x8 grey images: the copy of the test set of the UCI "Optical
Recognition of Handwritten Digits" data that comes with scikit-learn, its 17 levels stretched to
0..255. The splits train, val and test are fixed and stratified by class.
"""

_CITATION = """
@misc{digits,
  author = {E. Alpaydin and C. Kaynak},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  publisher = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""
