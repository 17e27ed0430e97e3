"""The training order: which example stands at position p of the stream, a pure function of (seed, p).

The stream is the endless concatenation of the epochs' permutations, so every example comes exactly once an epoch
whatever the batch size is, and a run can start anywhere in it: there is no iterator state to save.
"""

import functools
import operator

import numpy as np


# Two epochs are alive while a batch spans an epoch's end; four serve two feeds (or seeds) at once.
@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of the examples in one epoch: int64[num_examples], read-only because it is cached.

    The order sorts the examples by the raw 64-bit words of a Philox stream keyed by (seed, epoch). NumPy guarantees
    these words across its versions (NEP 19), but not what `Generator.permutation` makes of them: an order drawn with
    that could change with a NumPy upgrade, and a resumed run would then repeat some examples and miss others.

    Args:
      seed: 0 <= seed < 2**63.
      epoch: 0 <= epoch < 2**64.
      num_examples: the size of the dataset.

    Raises:
      ValueError: for a seed out of its range.
    """
    if not 0 <= seed < 2**63:
        raise ValueError(f"The seed of the data order must lie in [0, 2**63), but is {seed}.")
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    order = np.argsort(words, kind="stable").astype(np.int64, copy=False)  # stable: equal words keep their order
    order.flags.writeable = False
    return order


def example_indices(seed: int, start: int, count: int, num_examples: int) -> np.ndarray:
    """Returns which examples stand at the stream positions start .. start + count - 1.

    Args:
      seed: 0 <= seed < 2**63.
      start: first position of the stream, of any size (positions are Python integers and don't overflow).
      count: how many positions; may span several epochs.
      num_examples: the size of the dataset, at least 1.

    Returns:
      int64[count], each in [0, num_examples).

    Raises:
      ValueError: for a negative start or count, an empty dataset or a seed out of its range.
    """
    start, count, num_examples = operator.index(start), operator.index(count), operator.index(num_examples)
    if start < 0 or count < 0 or num_examples < 1:
        raise ValueError(f"No stream positions: {start=}, {count=}, {num_examples=}.")
    indices = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, offset = divmod(start + done, num_examples)
        take = min(count - done, num_examples - offset)
        indices[done : done + take] = epoch_permutation(seed, epoch, num_examples)[offset : offset + take]
        done += take
    return indices


def stream_positions(start: int, count: int) -> np.ndarray:
    """Returns the stream positions start .. start + count - 1 as the devices know them: uint32[count], modulo 2**32."""
    return (np.arange(count, dtype=np.int64) + start % 2**32).astype(np.uint32)  # the cast wraps around
