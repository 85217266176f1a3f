"""Seeds of the random streams: apart within a lineage, shared by the arms of a comparison."""

import itertools

import pytest

from jaxtrain.config.streams import Streams, begin, of_record, seeds_of

REGIMES = ('scratch', 'full', 'finetune')


def seed(*lineage: str, config_seed: int = 0) -> int:
    """The seed of the last run, if all have the same config.seed."""
    seeds: tuple[int, ...] = ()
    for regime in lineage:
        seeds = tuple(begin(config_seed, regime, seeds).to_json()['seeds'])
    return seeds[-1]


@pytest.mark.parametrize('config_seed', [0, 1, 2**32 - 1])
def test_no_two_runs_of_a_lineage_share_a_seed(config_seed):
    for regimes in itertools.product(REGIMES, repeat=5):
        seeds = {seed(*regimes[: n + 1], config_seed=config_seed) for n in range(5)}
        assert len(seeds) == 5 and max(seeds) < 2**32


def test_the_arms_of_a_comparison_share_a_seed():
    assert seed('scratch') == seed('full', 'finetune') == seed('finetune')  # of foreign weights
    assert seed('full', 'full', 'finetune') == seed('scratch')
    assert len({seed('scratch', config_seed=n) for n in range(100)}) == 100


def test_arms_from_a_fine_tuned_checkpoint_share_all_other_seeds():
    earlier = (seed('full'), seed('full', 'finetune'))
    shared = [begin(n, 'finetune', earlier).seed == begin(n, 'scratch', ()).seed for n in range(5)]
    assert shared == [False, True, True, True, True]


def test_a_seed_is_none_of_those_of_earlier_versions():
    first = begin(3, 'finetune', ()).seed
    assert begin(3, 'finetune', (first,)).seed != first


def test_the_first_version_uses_the_seed_of_the_config():
    recorded = {'config': {'regime': 'full', 'seed': 7}}
    assert of_record(recorded) == Streams(7, (), 1) and seeds_of(recorded) == (7,)


def test_a_record_continues_the_streams():
    streams = begin(3, 'finetune', (5, 6))
    assert of_record({'config': {'seed': 3}, **streams.to_json()}) == streams
