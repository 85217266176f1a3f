"""Seeds of the random streams: apart within a lineage, shared by the arms of a comparison."""

import itertools

import pytest

from jaxtrain.config.streams import Streams, of_record


def seed(*lineage: str, config_seed: int = 0, **options) -> int:
    return Streams(config_seed, lineage, **options).seed


@pytest.mark.parametrize('config_seed', [0, 1, 2**32 - 1])
def test_no_two_runs_of_a_lineage_share_a_seed(config_seed):
    for regimes in itertools.product(('scratch', 'full', 'finetune'), repeat=5):
        seeds = {seed(*regimes[: n + 1], config_seed=config_seed) for n in range(5)}
        assert len(seeds) == 5 and max(seeds) < 2**32


def test_the_arms_of_a_comparison_share_a_seed():
    assert seed('scratch') == seed('full', 'finetune') == seed('finetune')  # of foreign weights
    assert seed('full', 'full', 'finetune') == seed('scratch')
    assert len({seed('scratch', config_seed=n) for n in range(100)}) == 100


def test_the_first_version_uses_the_seed_of_the_config():
    assert seed('full', 'finetune', config_seed=7, version=1) == 7
    assert of_record({'config': {'regime': 'full'}}, 7).seed == 7


def test_a_record_continues_the_streams():
    written = Streams(3, ('full', 'finetune')).to_json()
    assert of_record({'config': {'regime': 'finetune'}, **written}, 3) == Streams(
        3, ('full', 'finetune')
    )
    # Imported weights have no lineage: no run of this package made them.
    assert of_record({'config': {'regime': 'full'}, 'streams': 2}, 3) == Streams(3, ('full',))
