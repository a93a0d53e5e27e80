"""The order of examples: pure, complete, and the same for any number of processes."""

from collections import Counter

import pytest

from tefusion.data.order import Order, shuffled


def flat(order):
    return [place for batch in order for place in batch]


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    first = flat(Order(examples=10, batch=4, steps=20, seed=3))
    shuffled.cache_clear()
    assert first == flat(Order(examples=10, batch=4, steps=20, seed=3))
    assert first != flat(Order(examples=10, batch=4, steps=20, seed=4))
    epochs = {e: [i for epoch, i in first if epoch == e] for e in range(8)}
    assert len({tuple(epoch) for epoch in epochs.values()}) == 8  # every epoch has an order of its own
    assert [Order(10, 4, 1, 3).at(place) for place in range(80)] == first  # from any step on, without the ones before


def test_every_example_comes_once_an_epoch():
    seen = Counter(flat(Order(examples=10, batch=4, steps=15, seed=0)))
    assert seen == Counter((epoch, i) for epoch in range(6) for i in range(10))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3), (4, 2)])
def test_parts_join_to_the_same_global_batch(world, accumulate):
    plain = list(Order(examples=50, batch=24, steps=5, seed=0))
    ranks = [list(Order(50, 24, 5, 0, accumulate, rank, world)) for rank in range(world)]
    assert all(len(Order(50, 24, 5, 0, accumulate, rank, world)) == len(parts) for rank, parts in enumerate(ranks))
    for step, batch in enumerate(plain):
        micros = range(step * accumulate, (step + 1) * accumulate)
        assert [place for micro in micros for rank in ranks for place in rank[micro]] == batch
    assert len({len(part) for parts in ranks for part in parts}) == 1


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_done_is_left_out(world):
    whole = list(Order(10, 12, 6, 3, 2, world - 1, world))
    for done in range(7):
        order = Order(10, 12, 6, 3, 2, world - 1, world, done)
        assert list(order) == whole[2 * done :]
        assert len(order) == len(whole) - 2 * done


def test_a_batch_may_be_larger_than_the_set():
    assert [Counter(batch) for batch in Order(examples=3, batch=7, steps=1, seed=0)] == [
        Counter({(0, 0): 1, (0, 1): 1, (0, 2): 1, (1, 0): 1, (1, 1): 1, (1, 2): 1, Order(3, 7, 1, 0).at(6): 1})
    ]


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch of 24 does not divide over 5 processes x 1"):
        Order(examples=50, batch=24, steps=5, seed=0, world=5)
