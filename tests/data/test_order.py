import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

from cnn_research.data import order


def stream(seed, start, count, num_examples):
    return order.example_indices(seed, start, count, num_examples)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("num_examples", [1, 2, 7, 1437])
def test_every_epoch_is_a_permutation(seed, num_examples):
    epochs = stream(seed, 0, 3 * num_examples, num_examples).reshape(3, num_examples)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (3, 1)))


def test_epochs_and_seeds_have_different_orders():
    orders = {tuple(stream(seed, epoch * 50, 50, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_order_is_the_stable_argsort_of_the_published_philox_stream():
    # Philox4x64-10 by hand, from Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    def philox(counter, key):
        words, key = [counter, 0, 0, 0], list(key)
        for _ in range(10):
            first = words[0] * 0xD2E7470EE14C6C93
            second = words[2] * 0xCA5A826395121157
            words = [
                (second >> 64) ^ words[1] ^ key[0],
                second % 2**64,
                (first >> 64) ^ words[3] ^ key[1],
                first % 2**64,
            ]
            key = [(key[0] + 0x9E3779B97F4A7C15) % 2**64, (key[1] + 0xBB67AE8584CAA73B) % 2**64]
        return words

    for seed, epoch in [(0, 0), (7, 3), (2**63 - 1, 123456)]:
        # NumPy increments the counter before each block of four words.
        words = list(itertools.chain.from_iterable(philox(counter, (seed, epoch)) for counter in range(1, 6)))
        expected = sorted(range(20), key=lambda i: words[i])
        assert list(stream(seed, epoch * 20, 20, 20)) == expected


@pytest.mark.parametrize("batch_size", [1, 3, 10, 17, 64])
def test_batch_size_does_not_change_the_stream(batch_size):
    steps = -(-100 // batch_size)
    batches = [stream(5, step * batch_size, batch_size, 10) for step in range(steps)]
    np.testing.assert_array_equal(np.concatenate(batches)[:100], stream(5, 0, 100, 10))


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 95])
@pytest.mark.parametrize("count", [0, 1, 10, 35])
def test_starts_anywhere(start, count):
    indices = stream(3, start, count, 10)
    assert indices.dtype == np.int64 and indices.shape == (count,)
    np.testing.assert_array_equal(indices, stream(3, 0, start + count, 10)[start:])


def test_positions_beyond_64_bits():
    far = 2**66
    epoch = stream(0, far - far % 12, 12, 12)
    assert sorted(epoch) == list(range(12))
    np.testing.assert_array_equal(stream(0, far - far % 12 + 5, 3, 12), epoch[5:8])


def test_numpy_integers_do_not_overflow():
    start = np.int32(2**31 - 1)
    np.testing.assert_array_equal(stream(0, start, 20, 13), stream(0, 2**31 - 1, 20, 13))


def test_result_can_be_changed_without_changing_the_stream():
    stream(0, 0, 10, 10)[:] = -1
    assert sorted(stream(0, 0, 10, 10)) == list(range(10))
    with pytest.raises(ValueError, match="read-only"):
        order.epoch_permutation(0, 0, 10)[:] = -1


def test_positions_are_uniform_over_examples():
    # Example 0's place in 2,000 epochs of 10: each of the 10 places is binomial(2000, 0.1), sd 13.4; 5 sd is 67.
    epochs = stream(11, 0, 20_000, 10).reshape(2000, 10)
    places = np.bincount(np.argmax(epochs == 0, axis=1), minlength=10)
    assert np.all(np.abs(places - 200) < 67)


def test_same_in_another_process():
    code = "from cnn_research.data import order; print(order.example_indices(9, 5, 40, 30).tolist())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == stream(9, 5, 40, 30).tolist()


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 1, 1), (2**63, 0, 1, 1), (0, -1, 1, 1), (0, 0, -1, 1), (0, 0, 1, 0)], ids=str
)
def test_impossible_arguments(arguments):
    with pytest.raises(ValueError):
        stream(*arguments)
