"""An experiment, built from its config: the network, its steps, its initial state."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import ScopeParamShapeError
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

import cnn_research
from cnn_research import config as configs
from cnn_research.data import augment, mix, views
from cnn_research.errors import UserError
from cnn_research.models import registry
from cnn_research.models.layer_table import layer_table
from cnn_research.training import losses, optimizers, parallel, parameters, pretrained, schedules
from cnn_research.training.feeds import Feed
from cnn_research.training.state import TrainState, create_state
from cnn_research.training.step import eval_step, network_input, normalise, train_step, train_steps

# Of the first images of the training order, for networks whose initial values depend on the data: 5,000 of CIFAR-10.
_PIXELS_TO_FIT = 5000 * 32 * 32


def evaluation_views(evaluation: ConfigDict) -> Callable[[jax.Array], jax.Array]:
    """Returns the `views.make_views` of `config.evaluation`: uint8[N, H, W, C] -> [V, N, h, w, C]."""
    return functools.partial(
        views.make_views,
        crop_size=evaluation.crop_size,
        crops=evaluation.crops,
        flip=evaluation.flip,
        shift=evaluation.shift,
    )


class Experiment:
    """What a config stands for, once its data is open: the network, its steps and its initial state.

    Attributes:
        model: the network.
        total_steps, log_every, eval_every, save_every: in steps.
        early_stopping: likewise; 0 = never.
        profile: the steps before which profiling begins and ends; None = never.
    """

    def __init__(self, config: ConfigDict, feed: Feed):
        """Builds the network for the classes of a feed, and turns durations into steps by its number of examples.

        Raises:
            UserError: more steps than can be counted, or class weights for another number of classes.
        """
        self._config = config
        self._feed = feed
        self._steps = functools.partial(configs.to_steps, batch_size=config.batch_size, num_examples=feed.num_examples)
        self.total_steps = self._steps(config.duration)
        if self.total_steps >= 2**31:  # the step is an int32
            raise UserError(f"config.duration={config.duration!r} is {self.total_steps:,} steps, 2**31 or more")
        self._steps = functools.partial(self._steps, total_steps=self.total_steps)
        self.log_every = self._steps(config.log_every)
        self.eval_every = self._steps(config.eval_every)
        self.save_every = self._steps(config.checkpoint.every)
        self.early_stopping = self._steps(config.early_stopping)
        self.profile = None
        if config.profile:
            sizes = {"batch_size": config.batch_size, "num_examples": feed.num_examples}
            self.profile = configs.to_span(config.profile, **sizes, total_steps=self.total_steps)
            if self.profile[0] >= self.total_steps:
                begins = f"begins at step {self.profile[0]}, but training ends at {self.total_steps}"
                raise UserError(f"config.profile={config.profile!r} {begins}")
        self._loss = losses.create_loss(config.loss, len(feed.classes))
        self._make_views = evaluation_views(config.evaluation)
        self._input = {
            "gather": feed.gather,
            "mean": config.dataset.mean,
            "std": config.dataset.std,
            "axis_name": parallel.AXIS,
        }
        self.model = registry.create_model(
            config.model.name,
            len(feed.classes),
            dtype=config.precision,
            axis_name=parallel.AXIS if config.batch_norm == "global" else None,
            **configs.model_fields(config),
        )

    # Only when training asks for it: an evaluation's feed may be so small that the warm-up is longer than its epochs.
    @functools.cached_property
    def _schedule(self) -> optax.Schedule:
        schedule, duration = self._config.schedule, self._config.duration
        warmup_steps = self._steps(schedule.warmup)
        if warmup_steps > self.total_steps:
            raise UserError(
                f"config.schedule.warmup={schedule.warmup!r} is {warmup_steps} steps, more than the "
                f"{self.total_steps} of config.duration={duration!r}: the rate would never reach its peak"
            )
        boundaries = tuple(map(self._steps, schedule.boundaries))
        if schedule.name == "piecewise" and list(boundaries) != sorted(boundaries):
            raise UserError(
                f"config.schedule.boundaries={schedule.boundaries}: in steps {boundaries}, not in ascending order"
            )
        return schedules.create_schedule(
            schedule.name,
            self._config.optimizer.learning_rate,
            total_steps=self.total_steps,
            warmup_steps=warmup_steps,
            boundaries=boundaries,
            multipliers=schedule.multipliers,
            factor=schedule.factor,
            period=self._steps(schedule.period),
            period_multiplier=schedule.period_multiplier,
            power=schedule.power,
            end=schedule.end,
        )

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformationExtraArgs:
        return optimizers.create_optimizer(self._config.optimizer, self._schedule)

    @functools.cached_property
    def _augmentation(self) -> augment.Augmentation:
        return augment.parse(self._config.augment)

    @functools.cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what the network sees in training: augmentation may crop or resize.

        Raises:
            UserError: the augmentation can't be applied to the images.
        """
        try:
            return augment.output_shape(self._augmentation, self._feed.image_shape)
        except ValueError as error:
            raise UserError(f"config.augment={self._config.augment!r}: {error}") from None

    @functools.cached_property
    def flops_per_image(self) -> int:
        """Multiplications and additions that training on one image takes: 2 for each of the network's multiply-adds,
        and twice as many for the gradients, with respect to the layers' inputs and to their parameters. Less where
        parameters are frozen, which isn't looked at.
        """
        return 6 * layer_table(self.model, self.input_shape).macs

    def initial_state(self, load_weights: bool = True) -> TrainState:
        """Initialises the parameters.

        Args:
            load_weights: take the values that config.init.weights asks for, or fit those of a network that has
                `fit_to_data`; without need where a checkpoint will replace them.

        Raises:
            UserError: these values can't be had, or are another network's; the warm-up is longer than training; or the
                images don't fit the augmentation or are too small for the network: that message names the layer and its
                arithmetic.
        """
        config = self._config
        try:
            state = create_state(
                self.model,
                self._optimizer,
                config.seed,
                self.input_shape,
                averaging=config.ema_decay > 0,
                loss_scaling=config.precision == "float16",
                change=self._prepare if load_weights else None,
            )
        except ValueError as error:
            raise UserError(f"config.model.name={config.model.name!r}: {error}") from None
        norms = {path.rpartition("/")[0] for path in flatten_dict(state.batch_stats, sep="/")}
        if config.freeze_batch_stats and not any(map(self._is_frozen, norms)):
            freeze = f"config.optimizer.freeze={config.optimizer.freeze}"
            raise UserError(f"config.freeze_batch_stats=True: {freeze} freezes no batch normalisation's scale")
        return state

    def _prepare(self, variables: Any) -> Any:
        """What training starts from: the initial variables, fitted to the data or replaced by earlier ones."""
        config = self._config
        if config.init.weights:
            return pretrained.load(config.init, config.model.name, self.model, self.input_shape[:2], variables)
        if not hasattr(self.model, "fit_to_data"):
            return variables
        height, width, _ = self._feed.image_shape
        count = min(max(1, _PIXELS_TO_FIT // (height * width)), self._feed.num_examples)
        with closing(self._feed.train_batches(0, count)) as batches:
            images = jnp.asarray(self._feed.gather(self._feed.arrays, next(batches))["image"])
        images = np.asarray(normalise(images, config.dataset.mean, config.dataset.std))
        # Eigenvectors and the like come out otherwise on another kind of processor.
        return parallel.of_main(self.model.fit_to_data(variables, images))

    def check_evaluation(self, variables: Any, feed: Feed, trained_on: Sequence[int]) -> None:
        """Makes sure that the network can see the evaluation views of a feed's images, without computing anything.

        Args:
            variables: {"params", "batch_stats"}.
            feed: of the split that will be evaluated.
            trained_on: the `input_shape` that the variables were made for.

        Raises:
            UserError: the crops don't fit into the images, or the views not to the network's parameters.
        """
        evaluation, name = self._config.evaluation, self._config.model.name
        images = jax.ShapeDtypeStruct((1, *feed.image_shape), jnp.uint8)
        try:
            shape = jax.eval_shape(self._make_views, images).shape[2:]
        except ValueError as error:
            field = "crop_size" if evaluation.crop_size > min(feed.image_shape[:2]) else "shift"
            raise UserError(f"config.evaluation.{field}={evaluation[field]}: {error}") from None
        if shape == tuple(trained_on):
            return
        (seen, trained), sizes = ((f"{h}x{w}" for h, w, _ in (shape, trained_on)), set(trained_on[:2]))
        try:
            predict = functools.partial(self.model.apply, train=False)
            jax.eval_shape(predict, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
        except ScopeParamShapeError:
            hint = f"; config.evaluation.crop_size={sizes.pop()} does" if len(sizes) == 1 else ""
            raise UserError(
                f"config.evaluation: views of {seen} pixels don't fit {name}, whose parameters belong to the {trained} "
                f"pixels that it is trained on{hint}"
            ) from None
        except ValueError as error:
            raise UserError(f"config.evaluation: views of {seen} pixels don't fit {name}: {error}") from None

    def _is_frozen(self, path: str) -> bool:
        """Whether a batch normalisation is: it goes with its scale."""
        return parameters.is_frozen(f"{path}/scale", self._config.optimizer.freeze)

    def plateau(self, state: dict[str, Any] | None) -> schedules.Plateau | None:
        """Returns what lowers the learning rate when evaluations no longer get better; None for other schedules.

        Args:
            state: in which it was left, `Plateau.state`; None at the beginning.
        """
        schedule = self._config.schedule
        if schedule.name != "plateau":
            return None
        lowest = self._config.checkpoint.best_metric == "loss"
        return schedules.Plateau(schedule.factor, schedule.patience, schedule.end, lowest, **(state or {}))

    def make_input(self, arrays: Any, batch: Any, key: jax.Array) -> Any:
        """One device's share of a training batch -> images, targets and labels: see `step.network_input`."""
        return network_input(
            arrays,
            batch,
            key,
            **self._input,
            augmentation=self._augmentation,
            num_examples=self._feed.num_examples,
            mixing=mix.parse(self._config.mix),
            num_classes=self.model.num_classes,
        )

    def train_step(self) -> Callable:
        """Returns the compiled train_steps: (state, arrays, batches, key) -> (state, sums). Donates the state."""
        freeze = self._config.optimizer.freeze
        one = functools.partial(
            train_step,
            make_input=self.make_input,
            model=self.model,
            loss=self._loss,
            auxiliary_weight=self._config.loss.auxiliary_weight,
            optimizer=self._optimizer,
            schedule=self._schedule,
            axis_name=parallel.AXIS,
            accumulation=self._config.accumulation,
            unroll=parallel.on_cpu(),
            ema_decay=self._config.ema_decay,
            frozen=functools.partial(parameters.frozen, patterns=freeze) if freeze else None,
            is_frozen=self._is_frozen if self._config.freeze_batch_stats else None,
            accelerate=parallel.accelerate,
        )
        return parallel.pmap_step(functools.partial(train_steps, one=one), donate_state=True)

    @property
    def steps_per_call(self) -> int:
        """How many steps one call of the compiled train_step makes, where nothing is to be done in between.

        Always 1 on a CPU, where a loop makes gradients of convolutions slow, and for images that come from the host.
        """
        return 1 if parallel.on_cpu() or self._feed.prefetch else self._config.steps_per_call

    def calls(self, first_step: int) -> Iterator[int]:
        """Yields how many steps each call of the compiled train_step makes, from a step to the end of training.

        That is `steps_per_call`, or 1 where something is to be done before so many are made.
        """
        many, step = self.steps_per_call, first_step
        while step < self.total_steps:
            pauses = [(step // every + 1) * every for every in (self.log_every, self.eval_every, self.save_every)]
            pauses += [pause for pause in self.profile or () if pause > step]
            together = many if step + many <= min(*pauses, self.total_steps) else 1
            yield together
            step += together

    def eval_step(self) -> Callable:
        """Returns the compiled eval_step: (variables, arrays, batch) -> metric sums."""
        return parallel.pmap_step(
            functools.partial(
                eval_step,
                **self._input,
                model=self.model,
                make_views=self._make_views,
                accelerate=parallel.accelerate,
            ),
            donate_state=False,
        )

    def about(self) -> dict[str, Any]:
        """Returns what a checkpoint says of itself: enough to use the network without the dataset."""
        return {
            "version": cnn_research.__version__,
            "config": self._config.to_dict(),
            "dataset": {
                "classes": list(self._feed.classes),
                "read_shape": list(self._feed.image_shape),  # of training images before they are augmented
                "image_shape": list(self.input_shape),
                "mean": list(self._config.dataset.mean),
                "std": list(self._config.dataset.std),
            },
            "seconds": 0.0,  # of training so far
            "device_seconds": 0.0,
            "examples_per_second": None,  # known once some steps have been timed
            "rollbacks": 0,  # how often the learning rate was lowered after a divergence
            "stopped_early": False,
            "plateau": None,  # the state of `schedules.Plateau`
            "skipped": [],  # paths of training images that could not be read
        }
