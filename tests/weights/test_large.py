"""Half a gigabyte of weights: memory is that of the arrays and little more."""

import pytest

from tests.benchmarks.restore import FORMATS, in_fresh_process

pytestmark = pytest.mark.slow


@pytest.mark.parametrize('kind', FORMATS)
def test_peak_memory_is_at_most_1_3_times_the_file(kind, tmp_path):
    in_fresh_process('make', kind, str(tmp_path))
    assert 0.9 < float(in_fresh_process('memory', kind, str(tmp_path))) <= 1.3
