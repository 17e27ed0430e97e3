import jax
import jax.numpy as jnp
import pytest

from cnn_research.config import base_config, set_field
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed
from cnn_research.errors import UserError
from cnn_research.training.feeds import open_feeds
from cnn_research.training.setup import Experiment
from cnn_research.training.state import count_parameters


def experiment(split, warmup):
    config = base_config()
    config.dataset.image_size = 28
    config.batch_size, config.duration, config.schedule.warmup = 10, "2ep", warmup
    return Experiment(config, ResidentFeed(open_source("digits", split), image_size=28))


def test_a_warmup_longer_than_training_is_refused_before_anything_is_initialised():
    assert experiment("test[:50]", "10st").initial_state().step == 0
    with pytest.raises(UserError, match=r"config\.schedule\.warmup='11st' is 11 steps, more than the 10 of .*'2ep'"):
        experiment("test[:50]", "11st").initial_state()


# 20 images in batches of 5, for 10 epochs: 40 steps, 4 an epoch. Rates at a peak of 1, by hand.
@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"name": "constant", "warmup": "1ep"}, {0: 0.25, 3: 1, 39: 1}),
        ({"name": "plateau", "warmup": "20ex"}, {0: 0.25, 3: 1, 39: 1}),
        ({"name": "step", "boundaries": ("5ep", "150ex"), "factor": 0.5}, {19: 1, 20: 0.5, 29: 0.5, 30: 0.25}),
        ({"name": "piecewise", "boundaries": ("50%", "30st"), "multipliers": (0.5, 2.0)}, {19: 1, 20: 0.5, 30: 2}),
        ({"name": "exponential", "period": "2ep", "factor": 0.5, "end": 0.1}, {0: 1, 8: 0.5, 16: 0.25, 39: 0.1}),
        ({"name": "cosine", "end": 0.5}, {0: 1, 20: 0.75}),
        ({"name": "linear", "warmup": "10%", "end": 0.5}, {3: 1, 4: 1, 22: 0.75}),
        ({"name": "polynomial", "power": 3.0}, {0: 1, 20: 0.125}),
        ({"name": "one_cycle", "warmup": "50%"}, {0: 0.04, 20: 1}),
        ({"name": "warm_restarts", "period": "50ex", "period_multiplier": 2.0}, {0: 1, 5: 0.5, 10: 1, 20: 0.5, 30: 1}),
    ],
    ids=lambda x: x.get("name"),
)
def test_every_field_of_the_schedule_arrives(fields, rates):
    config = base_config()
    config.batch_size, config.duration, config.optimizer.learning_rate = 5, "10ep", 1.0
    config.schedule.update(fields)
    schedule = Experiment(config, ResidentFeed(open_source("digits", "test[:20]")))._schedule
    assert {step: float(schedule(step)) for step in rates} == pytest.approx(rates, rel=1e-5)


def test_boundaries_out_of_order_are_refused_where_each_has_a_multiplier():
    config = base_config()
    config.batch_size, config.duration = 5, "10ep"
    config.schedule.update(name="piecewise", boundaries=("50%", "10st"))
    made = Experiment(config, ResidentFeed(open_source("digits", "test[:20]")))
    with pytest.raises(UserError, match=r"config\.schedule\.boundaries=.*: in steps \(20, 10\), not in ascending"):
        made.initial_state()


def test_class_weights_are_counted_when_the_classes_are_known():
    config = base_config()
    config.loss.class_weights = (1.0, 2.0)
    with pytest.raises(UserError, match=r"config\.loss\.class_weights=\(1\.0, 2\.0\): the dataset has 10 classes"):
        Experiment(config, ResidentFeed(open_source("digits", "test[:20]")))


def test_frozen_pattern_that_is_nowhere_is_told_when_the_network_is_initialised():
    config = base_config()
    config.dataset.image_size, config.optimizer.freeze = 28, ("^conv1/",)
    made = Experiment(config, ResidentFeed(open_source("digits", "test[:50]"), image_size=28))
    with pytest.raises(UserError, match=r"config\.optimizer\.freeze: '\^conv1/' is found in no parameter's path; .*C1"):
        made.initial_state()


def test_evaluation_asks_for_no_schedule():
    experiment("test[:50]", "11st").eval_step()


# ------------------------------------------------------------------------------------- sizes of images and views


def on_shapes(model="lenet5", size=40, augment="", evaluation=(), **dataset):
    """An experiment on generated images, its parameters' shapes and its two feeds."""
    config = base_config()
    config.model.name, config.augment = model, augment
    config.dataset.update(name=f"shapes:{size}", train_split="train[:20]", eval_split="test[:10]", **dataset)
    config.evaluation.update(dict(evaluation))
    feeds = open_feeds(config, ("test[:10]",), "train[:20]")
    made = Experiment(config, feeds["train[:20]"])
    return made, feeds


def test_evaluation_images_have_a_size_of_their_own():
    made, feeds = on_shapes(image_size=32, evaluation={"image_size": 48, "crop_size": 32})
    assert [feed.image_shape for feed in feeds.values()] == [(32, 32, 3), (48, 48, 3)]
    made.check_evaluation(made.initial_state().variables, feeds["test[:10]"], made.input_shape)


def test_parameters_are_made_for_what_augmentation_leaves():
    made, feeds = on_shapes(augment="random_crop(32)", evaluation={"crop_size": 32, "crops": "ten"})
    assert feeds["train[:20]"].image_shape == (40, 40, 3) and made.input_shape == (32, 32, 3)
    assert made.about()["dataset"]["image_shape"] == [32, 32, 3]
    state = made.initial_state()
    # LeNet-5 at 32x32: 61,706 with one channel and ten classes; here are three channels and four classes.
    assert count_parameters(state.params) == 61_706 + 2 * 25 * 6 - 6 * 85
    made.check_evaluation(state.variables, feeds["test[:10]"], made.input_shape)


@pytest.mark.parametrize(
    ("model", "evaluation", "says"),
    [
        ("lenet5", {}, "views of 40x40 .* lenet5, .* 32x32 .*; config.evaluation.crop_size=32 does"),
        ("lenet5", {"crop_size": 36}, "views of 36x36 .*config.evaluation.crop_size=32"),
        ("lenet5", {"crop_size": 48}, "evaluation.crop_size=48: crops of 48x48 .* images of 40x40"),
        ("lenet5", {"crop_size": 32, "shift": 32}, "evaluation.shift=32: .* views of 32x32"),
        ("vgg16_bn_cifar", {"crop_size": 16}, "views of 16x16 .* don't fit vgg16_bn_cifar: pool5: .* too small"),
        ("resnet20", {}, None),  # fits any size
        ("resnet20", {"crop_size": 36, "flip": True}, None),
    ],
)
def test_views_that_do_not_fit_are_told_in_one_line(model, evaluation, says):
    made, feeds = on_shapes(model, augment="random_crop(32)", evaluation=evaluation)
    model = made.model
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *made.input_shape), jnp.float32))
    if says is None:
        return made.check_evaluation(variables, feeds["test[:10]"], made.input_shape)
    with pytest.raises(UserError, match=says) as error:
        made.check_evaluation(variables, feeds["test[:10]"], made.input_shape)
    assert str(error.value).startswith("config.evaluation") and "\n" not in str(error.value)


def test_augmentation_that_does_not_fit_the_images():
    made, _ = on_shapes(augment="flip|random_crop(41)")
    with pytest.raises(UserError, match=r"config\.augment='flip\|random_crop\(41\)': .*40x40"):
        made.initial_state()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"profile": "20st:30st", "duration": "20st"},
            "profile='20st:30st' begins at step 20, but training ends at 20",
        ),
        (
            {"freeze_batch_stats": True, "optimizer.freeze": ("^C1",)},
            "freeze_batch_stats=True: .* freezes no batch norm",
        ),
    ],
)
def test_what_could_never_have_an_effect(fields, says):
    config = base_config()
    config.dataset.update(name="shapes:32", train_split="train[:20]")
    for field, value in fields.items():
        set_field(config, field, value)
    with pytest.raises(UserError, match=says):
        Experiment(config, open_feeds(config, (), "train[:20]")["train[:20]"]).initial_state()


def test_networks_that_look_at_the_data_first_see_the_same_with_every_feed():
    """The first layer of SpeedNet, whose initial values are of the images: not those of another seed's order."""
    config = base_config()
    config.model.name, config.dataset.name = "speednet", "shapes:16"
    source = open_source("shapes:16", "train[:40]")
    kernels = []
    for feed in (ResidentFeed(source), StreamingFeed(source), ResidentFeed(source)):
        state = Experiment(config, feed).initial_state()
        kernels.append(jax.device_get(state.params["whiten"]["kernel"]))
    assert kernels[0].tobytes() == kernels[1].tobytes() == kernels[2].tobytes()
    plain = Experiment(config, ResidentFeed(source)).initial_state(load_weights=False)
    assert abs(plain.params["whiten"]["kernel"] - kernels[0]).max() > 0.1
