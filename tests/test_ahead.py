"""Reading ahead changes neither what comes nor where an error is seen."""

import threading

import pytest

from tefusion.data.ahead import ahead


def test_the_same_items_in_the_same_order():
    assert list(ahead(iter(range(20)))) == list(range(20))
    assert list(ahead([])) == []


def test_one_item_is_made_while_another_is_used():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    coming = ahead(items())
    assert next(coming) == 1
    assert second.wait(10)


def test_it_is_never_more_than_one_item_ahead():
    made = []
    coming = ahead(made.append(i) or i for i in range(9))
    for used in range(1, 5):
        next(coming)
        assert len(made) <= used + 1


def test_an_error_is_raised_as_it_is_where_its_item_is_asked_for():
    def items():
        yield 1
        raise OSError(28, "No space left on device", "frames")

    coming = ahead(items())
    assert next(coming) == 1
    with pytest.raises(OSError, match="No space left on device: 'frames'"):
        next(coming)


def test_nothing_runs_on_where_nobody_asks_any_more():
    coming = ahead(iter(range(9)))
    next(coming)
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
