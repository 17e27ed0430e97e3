import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.data import augment
from cnn_research.errors import UserError

KEY = jax.random.key(42)
PIPELINE = "pad_and_crop(2)|flip|shift(1)"


def random_images(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@functools.cache  # so that each pipeline is compiled once for each shape
def compiled(text):
    return jax.jit(functools.partial(augment.apply, augment.parse(text)))


def augmented(text, images, positions=None, key=KEY):
    positions = jnp.arange(len(images), dtype=jnp.uint32) if positions is None else positions
    return np.asarray(compiled(text)(key, positions, images))


def crops(image, padding, mode):
    """All crops of the padded image, by NumPy, by offset."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode=mode)
    size = range(2 * padding + 1)
    return {(y, x): padded[y : y + image.shape[0], x : x + image.shape[1]] for y in size for x in size}


@pytest.mark.parametrize("text", ["flip", "pad_and_crop(4)", "shift(3)"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (5, 9, 3), (1, 1, 3)])
def test_keeps_shape_and_type(text, shape):
    images = random_images(4, shape)
    result = augmented(text, images)
    assert result.shape == images.shape and result.dtype == np.uint8


@pytest.mark.parametrize("text", ["", " ", "pad_and_crop(0)", "shift(0)"])
def test_nothing_to_do(text):
    images = random_images(4, (6, 7, 3))
    np.testing.assert_array_equal(augmented(text, images), images)


@pytest.mark.parametrize(("text", "reach", "mode"), [("pad_and_crop(2)", 2, "constant"), ("shift(2)", 2, "edge")])
def test_offsets_are_uniform_and_border_is_right(text, reach, mode):
    image = random_images(1, (7, 6, 3))[0]
    count = 2500
    results = augmented(text, np.repeat(image[None], count, axis=0))
    by_pixels = {crop.tobytes(): offset for offset, crop in crops(image, reach, mode).items()}
    assert len(by_pixels) == 25  # every crop of this image is told from the others
    offsets = [by_pixels[result.tobytes()] for result in results]  # KeyError: not a crop of the padded image
    frequencies = np.zeros((5, 5))
    for offset in offsets:
        frequencies[offset] += 1
    # Each of the 25 offsets, and so both axes together, is binomial(2500, 1/25): mean 100, sd 9.8; 5 sd is 49.
    assert np.all(np.abs(frequencies - 100) < 49)


def test_shift_larger_than_the_image_repeats_its_edge():
    image = random_images(1, (2, 3, 1))[0]
    possible = {crop.tobytes() for crop in crops(image, 5, "edge").values()}
    results = augmented("shift(5)", np.repeat(image[None], 2500, axis=0))
    assert {result.tobytes() for result in results} == possible


def test_flip_mirrors_left_and_right_half_of_the_time():
    image = random_images(1, (4, 5, 3))[0]
    results = augmented("flip", np.repeat(image[None], 2500, axis=0))
    flipped = np.array([np.array_equal(result, image[:, ::-1]) for result in results])
    kept = np.array([np.array_equal(result, image) for result in results])
    assert np.all(flipped ^ kept)
    assert abs(flipped.sum() - 1250) < 125  # binomial(2500, 1/2): sd 25


def test_every_operation_has_a_key_of_its_own():
    # If the two flips shared a key, they would always undo each other.
    image = random_images(1, (4, 5, 3))[0]
    results = augmented("flip|flip", np.repeat(image[None], 400, axis=0))
    changed = sum(not np.array_equal(result, image) for result in results)
    assert abs(changed - 200) < 50


@pytest.mark.parametrize(("text", "widest"), [("shift(1)|pad_and_crop(1)", 1), ("pad_and_crop(1)|shift(1)", 2)])
def test_applied_from_left_to_right(text, widest):
    # A crop brings in at most one column of zeros; only a shift after it can repeat that column.
    image = random_images(1, (4, 4, 1))[0] | 1  # no zeros of its own
    results = augmented(text, np.repeat(image[None], 400, axis=0))
    assert np.max(np.sum(np.all(results == 0, axis=(1, 3)), axis=1)) == widest


def test_depends_on_key_and_position_alone():
    images = random_images(24, (8, 8, 3))
    positions = np.arange(100, 124, dtype=np.uint32)
    whole = augmented(PIPELINE, images, positions)
    np.testing.assert_array_equal(augmented(PIPELINE, images, positions), whole)
    for size in (1, 8):  # batch sizes
        parts = [augmented(PIPELINE, images[i : i + size], positions[i : i + size]) for i in range(0, 24, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    backwards = augmented(PIPELINE, images[::-1], positions[::-1])
    np.testing.assert_array_equal(backwards[::-1], whole)
    assert not np.array_equal(augmented(PIPELINE, images, positions, jax.random.key(43)), whole)
    assert not np.array_equal(augmented(PIPELINE, images, positions + np.uint32(1)), whole)


def test_largest_position():
    images = random_images(2, (8, 8, 3))
    result = augmented(PIPELINE, images, np.array([2**32 - 1, 0], np.uint32))
    assert result.shape == images.shape


def test_same_on_every_device():
    devices = jax.devices()
    assert len(devices) > 1
    images = random_images(4 * len(devices), (8, 8, 3))
    positions = np.arange(len(images), dtype=np.uint32)
    split = jax.pmap(lambda p, i: augment.apply(augment.parse(PIPELINE), KEY, p, i))(
        positions.reshape(len(devices), -1), images.reshape(len(devices), -1, 8, 8, 3)
    )
    np.testing.assert_array_equal(np.asarray(split).reshape(images.shape), augmented(PIPELINE, images, positions))


@pytest.mark.parametrize("text", [" pad_and_crop( 4 ) | flip ", "pad_and_crop(4)|flip()"])
def test_spelling(text):
    images = random_images(8, (6, 6, 1))
    np.testing.assert_array_equal(augmented(text, images), augmented("pad_and_crop(4)|flip", images))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flop", ["'flop'", "Did you mean 'flip'?", "pad_and_crop(padding: int)"]),
        ("flip|", ["''", "flip()"]),
        ("flip(", ["'flip('"]),
        ("flip(1)", ["'flip(1)'", "too many positional arguments"]),
        ("pad_and_crop", ["'pad_and_crop'", "missing", "padding"]),
        ("pad_and_crop(four)", ["'four' is not a number"]),
        ("pad_and_crop(4,)", ["'' is not a number"]),
        ("pad_and_crop(-1)", ["padding must be a whole number of pixels"]),
        ("shift(1.5)", ["pixels must be a whole number of pixels", "1.5"]),
        ("__import__('os').system('true')", ["Can't read"]),
    ],
)
def test_errors(text, says):
    with pytest.raises(UserError) as error:
        augment.parse(text)
    message = str(error.value)
    assert "\n" not in message and repr(text) in message
    for part in says:
        assert part in message


def test_alternating_flip_shows_both_sides_of_every_image_in_each_two_epochs():
    num_examples, image = 50, np.arange(6, dtype=np.uint8).reshape(1, 6, 1)
    run = jax.jit(functools.partial(augment.apply, augment.parse("alternating_flip"), num_examples=num_examples))
    mirrored = []
    for epoch in range(4):  # in each of which the examples come in another order
        indices = np.random.default_rng(epoch).permutation(num_examples).astype(np.int32)
        positions = np.arange(num_examples, dtype=np.uint32) + np.uint32(epoch * num_examples)
        images = run(jax.random.key(0), positions, np.tile(image, (num_examples, 1, 1, 1)), indices)
        first = np.empty(num_examples, int)
        first[indices] = np.asarray(images)[:, 0, 0, 0]
        assert set(first) == {0, 5}
        mirrored.append(first == 5)
    assert np.array_equal(mirrored[0], mirrored[2]) and np.array_equal(mirrored[1], mirrored[3])
    assert np.array_equal(mirrored[0], ~mirrored[1])
    assert 10 < mirrored[0].sum() < 40
