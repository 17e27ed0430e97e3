"""What a config may hold, checked before anything is read or compiled, all problems at once."""

import math
from typing import Any

from ml_collections import ConfigDict

from cnn_research.config import CHOICES, base_config, flatten, get_field, model_fields, set_field, to_span, to_steps
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
    require(_positive(config.optimizer.learning_rate), "optimizer.learning_rate", "must be above 0")
    require(0 <= config.optimizer.weight_decay < math.inf, "optimizer.weight_decay", "must be at least 0")
    require(0 <= config.loss.auxiliary_weight < math.inf, "loss.auxiliary_weight", "must be at least 0")
    require(_positive(config.optimizer.epsilon), "optimizer.epsilon", "must be above 0")
    for field in ("optimizer.momentum", "optimizer.beta1", "optimizer.beta2", "loss.label_smoothing"):
        require(0 <= get_field(config, field) < 1, field, "must be at least 0 and below 1")
    require(0 < config.schedule.factor <= 1, "schedule.factor", "must be above 0 and at most 1")

    require(config.accumulation >= 1, "accumulation", "must be at least 1")
    shares = num_devices * max(1, config.accumulation)
    if config.batch_size >= 1 and config.batch_size % shares:
        below = config.batch_size // shares * shares
        nearest = " or ".join(str(b) for b in (below, below + shares) if b > 0)
        parts = f" and {config.accumulation} parts of accumulation" if config.accumulation > 1 else ""
        require(False, "batch_size", f"cannot be split over {num_devices} devices{parts} evenly; {nearest} can")
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
    for boundary in config.schedule.boundaries:
        attempt("schedule.boundaries", to_steps, boundary, **size, total_steps=1000)

    if problems:
        raise UserError("\n".join(problems))


def _type_problem(value: Any, default: Any) -> str:
    """What is wrong with a value's type beyond what ConfigDict refuses by itself: None, and the elements of a tuple."""
    if default is None:  # a network's field; the network itself checks it
        return ""
    if value is None:
        return f"must be set, for example to {default!r}"
    if isinstance(default, tuple):
        what, types = ("numbers", (int, float)) if isinstance(default[0], float) else ("texts", str)
        return "" if all(isinstance(v, types) for v in value) else f"must be {what}, such as {default}"
    return ""


def _positive(value: float) -> bool:
    return value > 0 and math.isfinite(value)
