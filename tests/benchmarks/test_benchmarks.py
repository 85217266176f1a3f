"""The arithmetic of the benchmark's table. These tests time nothing and need no peer."""

import pytest

from tests.benchmarks.data import SHAPES, read, write
from tests.benchmarks.table import OURS, Spread, ratios, spread, table


def test_spread_is_median_least_and_greatest():
    assert spread([5.0, 1.0, 30.0]) == Spread(5.0, 1.0, 30.0)
    assert spread([1.0, 2.0, 4.0, 9.0]) == Spread(3.0, 1.0, 9.0)


def test_ratios_are_ours_over_theirs_and_paired_by_round():
    # The machine becomes slower for both: unpaired ratios would range from 0.2 to 20.
    result = ratios({OURS: [100.0, 40.0, 10.0], 'peer': [50.0, 10.0, 5.0]})
    assert result == {'peer': Spread(2.0, 2.0, 4.0)}


def test_ratios_need_every_contestant_in_every_round():
    with pytest.raises(ValueError):
        ratios({OURS: [1.0, 2.0], 'peer': [1.0]})


def test_table_has_a_row_for_each_and_ratios_for_the_peers():
    lines = table(
        {OURS: [1000.0, 1100.0, 1200.0], 'peer': [500.0, 1100.0, 400.0]},
        {OURS: [300.4, 300.4, 300.4], 'peer': [600.8, 600.8, 600.8]},
    ).splitlines()
    assert lines[2:] == [
        f'| {OURS} | 1,100 [1,000, 1,200] | 300 [300, 300] |  |  |',
        '| peer | 500 [400, 1,100] | 601 [601, 601] | 2.00 [1.00, 3.00] | 0.50 [0.50, 0.50] |',
    ]


def test_the_data_are_the_same_for_all(tmp_path):
    for name in ('a', 'b'):
        write('vgg16_head', str(tmp_path / f'{name}.npz'))
    (images, labels), again = read(str(tmp_path / 'a.npz')), read(str(tmp_path / 'b.npz'))
    shape, classes, count = SHAPES['vgg16_head']
    assert images.shape == (count, *shape) and images.dtype == 'uint8'
    assert set(labels.tolist()) == set(range(classes))
    assert (images == again[0]).all() and (labels == again[1]).all()
