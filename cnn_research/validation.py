"""What a config may hold, checked before anything is read or compiled, all problems at once."""

import math
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from cnn_research.config import (
    CHOICES,
    base_config,
    flatten,
    get_field,
    model_fields,
    set_field,
    to_span,
    to_steps,
)
from cnn_research.data import augment, mix
from cnn_research.errors import UserError, suggest
from cnn_research.models import registry


def validate(config: ConfigDict, num_devices: int = 1) -> None:
    """Checks everything that can be checked without data, and reports all problems at once.

    Args:
        config: a configuration with the fields of `base_config()`.
        num_devices: over how many devices the batch is split.

    Raises:
        UserError: one line for each problem, each naming the field, its value and what is allowed.
    """
    # What has another type is told first and then stands at its default, so that all other checks can be made.
    problems = []
    given, config = config, config.copy_and_resolve_references()
    for field, default in flatten(base_config().to_dict()).items():
        problem = _type_problem(get_field(given, field), default)
        if problem:
            problems.append(f"config.{field}={get_field(given, field)!r}: {problem}")
            set_field(config, field, default)

    def require(condition: bool, field: str, what: str) -> None:
        if not condition:
            value = get_field(config, field)
            problems.append(f"config.{field}={value!r}: {what}")

    def attempt(field: str, check, *args, **kwargs) -> Any:
        try:
            return check(*args, **kwargs)
        except (UserError, ValueError) as error:
            problems.append(f"config.{field}: {error}")

    for field, allowed in CHOICES.items():
        value = get_field(config, field)
        require(value in allowed, field, f"not one of {', '.join(allowed)}.{suggest(value, allowed)}")

    fields = attempt("model.name", registry.model_fields, config.model.name)
    if fields is not None:
        for field in model_fields(config):
            has = f"{config.model.name} has no such field, only {', '.join(fields)}; None leaves it unset"
            require(field in fields, f"model.{field}", has)
        known = {k: v for k, v in model_fields(config).items() if k in fields}
        attempt("model", registry.create_model, config.model.name, 10, **known)
    attempt("augment", augment.parse, config.augment)
    attempt("mix", mix.parse, config.mix)

    # JAX makes a key of a seed's lower 32 bits alone: two seeds would share their initial parameters.
    require(0 <= config.seed < 2**32, "seed", "must be at least 0 and below 2**32")
    require(config.batch_size >= 1, "batch_size", "must be at least 1")
    require(config.eval_batch_size >= 1, "eval_batch_size", "must be at least 1")
    require(config.dataset.image_size >= 0, "dataset.image_size", "must be at least 0 (0 = as the images are)")
    require(config.dataset.workers >= -1, "dataset.workers", "must be at least -1 (-1 = one a core)")
    if config.dataset.train_crop == "random_resized_crop":
        require(config.dataset.image_size > 0, "dataset.train_crop", "needs a dataset.image_size for the crops")
        require(config.dataset.feed != "resident", "dataset.train_crop", "needs dataset.feed=streaming or auto")
    evaluation = config.evaluation
    require(evaluation.image_size >= 0, "evaluation.image_size", "must be at least 0 (0 = dataset.image_size)")
    require(evaluation.crop_size >= 0, "evaluation.crop_size", "must be at least 0 (0 = whole images)")
    require(evaluation.shift >= 0, "evaluation.shift", "must be at least 0 (0 = no view is moved)")
    side = evaluation.image_size or config.dataset.image_size
    if side > 0:  # else the images' own size decides, which is known when the data is open
        source = "evaluation" if evaluation.image_size else "dataset"
        larger = f"is larger than the images, of config.{source}.image_size={side}"
        require(evaluation.crop_size <= side, "evaluation.crop_size", larger)
    if evaluation.crops == "ten":
        require(
            evaluation.crop_size > 0,
            "evaluation.crops",
            "needs a config.evaluation.crop_size: whole images have no corners",
        )
        require(not evaluation.flip, "evaluation.flip", "ten crops have their mirror images among them already")
    require(
        len(config.dataset.mean) > 0 and all(map(math.isfinite, config.dataset.mean)),
        "dataset.mean",
        "needs one value, or one a channel",
    )
    require(
        len(config.dataset.std) > 0 and all(map(_positive, config.dataset.std)),
        "dataset.std",
        "needs one value above 0, or one a channel",
    )
    for field in ("dataset.eval_split", "dataset.test_split"):
        own = "is the training split, whose rows in metrics.jsonl it would share; evaluate on it afterwards"
        require(get_field(config, field) != config.dataset.train_split, field, own)
    require(config.checkpoint.keep >= 1, "checkpoint.keep", "must be at least 1")
    _check_recipe(config, require, attempt)

    require(config.accumulation >= 1, "accumulation", "must be at least 1")
    require(config.steps_per_call >= 1, "steps_per_call", "must be at least 1")
    shares = num_devices * max(1, config.accumulation)
    if config.batch_size >= 1 and config.batch_size % shares:
        below = config.batch_size // shares * shares
        nearest = " or ".join(str(b) for b in (below, below + shares) if b > 0)
        parts = f" and {config.accumulation} parts of accumulation" if config.accumulation > 1 else ""
        require(False, "batch_size", f"cannot be split over {num_devices} devices{parts} evenly; {nearest} can")
    if config.freeze_batch_stats:
        require(
            len(config.optimizer.freeze) > 0, "freeze_batch_stats", "nothing is frozen: set config.optimizer.freeze"
        )
    require(0 <= config.ema_decay < 1, "ema_decay", "must be at least 0 and below 1")
    require(0 < config.rollback_factor < 1, "rollback_factor", "must be above 0 and below 1")
    require(config.max_rollbacks >= 1, "max_rollbacks", "must be at least 1")

    # With any sizes one sees whether a duration can be read; what it comes to is known when the data is open.
    size = {"batch_size": 1, "num_examples": 1000}
    total = attempt("duration", to_steps, config.duration, **size)
    require(total != 0, "duration", "must be longer than nothing")
    for field in ("checkpoint.every", "log_every", "eval_every"):
        steps = attempt(field, to_steps, get_field(config, field), **size, total_steps=1000)
        require(steps != 0, field, "must be longer than nothing")
    attempt("early_stopping", to_steps, config.early_stopping, **size, total_steps=1000)
    if config.profile:
        attempt("profile", to_span, config.profile, **size, total_steps=1000)
    warmup = attempt("schedule.warmup", to_steps, config.schedule.warmup, **size, total_steps=1000)
    if config.schedule.name == "one_cycle":
        require(warmup != 0, "schedule.warmup", 'the one-cycle schedule needs a rise, such as "30%"')
    period = attempt("schedule.period", to_steps, config.schedule.period, **size, total_steps=1000)
    require(period != 0, "schedule.period", "must be longer than nothing")
    for boundary in config.schedule.boundaries:
        attempt("schedule.boundaries", to_steps, boundary, **size, total_steps=1000)

    if problems:
        raise UserError("\n".join(problems))


def _check_recipe(config: ConfigDict, require: Callable[[bool, str, str], None], attempt: Callable[..., Any]) -> None:
    """Checks optimizer, schedule (but for its durations) and loss, by the `require` and `attempt` of `validate`."""
    optimizer, schedule, loss = config.optimizer, config.schedule, config.loss
    for field in ("learning_rate", "epsilon", "trust_coefficient", "clip_threshold"):
        require(_positive(optimizer[field]), f"optimizer.{field}", "must be above 0")
    require(_not_negative(optimizer.weight_decay), "optimizer.weight_decay", "must be at least 0")
    for field in ("optimizer.momentum", "optimizer.beta1", "optimizer.beta2", "loss.label_smoothing"):
        require(0 <= get_field(config, field) < 1, field, "must be at least 0 and below 1")
    if optimizer.renormalise:
        sized = "is for muon, whose updates have a size of their own"
        require(optimizer.name == "muon", "optimizer.renormalise", sized)
    for pattern in optimizer.freeze:
        attempt("optimizer.freeze", _parse_pattern, pattern)
    for text in optimizer.learning_rate_multipliers:
        attempt("optimizer.learning_rate_multipliers", parse_multiplier, text)
    require(optimizer.lookahead_steps >= 0, "optimizer.lookahead_steps", "must be at least 0 (0 = no lookahead)")
    require(0 < optimizer.lookahead_alpha <= 1, "optimizer.lookahead_alpha", "must be above 0 and at most 1")

    require(all(map(_not_negative, schedule.multipliers)), "schedule.multipliers", "must be at least 0")
    if schedule.name == "piecewise":
        each = f"piecewise needs one for each of the {len(schedule.boundaries)} config.schedule.boundaries"
        require(len(schedule.multipliers) == len(schedule.boundaries), "schedule.multipliers", each)
    require(0 < schedule.factor <= 1, "schedule.factor", "must be above 0 and at most 1")
    require(1 <= schedule.period_multiplier < math.inf, "schedule.period_multiplier", "must be at least 1")
    require(_positive(schedule.power), "schedule.power", "must be above 0")
    require(0 <= schedule.end <= 1, "schedule.end", "must be at least 0 and at most 1: it is a fraction of the peak")
    require(schedule.patience >= 1, "schedule.patience", "must be at least 1")

    for field in ("gamma", "rubbish", "auxiliary_weight"):
        require(_not_negative(loss[field]), f"loss.{field}", "must be at least 0")
    weights = loss.class_weights
    enough = len(weights) > 0 and all(map(_not_negative, weights)) and any(weights)
    require(enough, "loss.class_weights", "needs one value of at least 0, or one a class, and not only zeros")
    if loss.name == "hinge":
        require(loss.label_smoothing <= 0, "loss.label_smoothing", "the hinge loss has no probabilities to smooth")


def parse_multiplier(text: str) -> tuple[re.Pattern, float]:
    """Reads one of `optimizer.learning_rate_multipliers`, "PATTERN=FACTOR", cut at its last "=".

    Raises:
        UserError: the pattern is no regular expression, or the factor no number above 0.
    """
    pattern, equals, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = 0.0
    if not (equals and pattern and 0 < value < math.inf):
        raise UserError(f'{text!r} is not a pattern and a factor above 0, such as "^output=10"')
    return _parse_pattern(pattern), value


def _parse_pattern(text: str) -> re.Pattern:
    """Compiles a regular expression of `optimizer.freeze`.

    Raises:
        UserError: it is none.
    """
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{text!r} is not a regular expression: {error}") from None


def _type_problem(value: Any, default: Any) -> str:
    """What is wrong with a value's type beyond what ConfigDict refuses by itself: None, and the elements of a tuple."""
    if default is None:  # a network's field; the network itself checks it
        return ""
    if value is None:
        return f"must be set, for example to {default!r}"
    if isinstance(default, tuple):
        what, types = ("numbers", (int, float)) if default and isinstance(default[0], float) else ("texts", str)
        such_as = f", such as {default}" if default else ""
        return "" if all(isinstance(v, types) for v in value) else f"must be {what}{such_as}"
    return ""


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _not_negative(value: float) -> bool:
    return 0 <= value < math.inf
