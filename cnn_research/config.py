"""Every setting of an experiment: its unit, its allowed values, its default.

An experiment config is a short diff of `base_config()`; the command line overrides both (`--config.batch_size=256`).
`validation.validate` runs before anything is compiled and reports every problem at once.
"""

import json
import re
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from cnn_research.errors import UserError, suggest

# The values that a field with a closed list may take. The code that reads the field has one branch for each.
CHOICES = {
    "init.checkpoint": ("latest", "best"),
    "init.head": ("keep", "new"),
    "dataset.feed": ("auto", "resident", "streaming"),
    "dataset.train_crop": ("none", "random_resized_crop"),
    "dataset.worker_kind": ("threads", "processes"),
    "dataset.on_error": ("stop", "skip"),
    "dataset.resize": ("stretch", "crop"),
    "dataset.interpolation": ("nearest", "bilinear", "bicubic"),
    "evaluation.crops": ("centre", "ten"),
    "optimizer.name": (
        *("sgd", "momentum", "nesterov", "adam", "adamw", "nadamw"),
        *("rmsprop", "lamb", "lars", "lion", "muon"),
    ),
    "optimizer.decay": ("kernels", "all"),
    "optimizer.rest": ("adam", "nesterov"),
    "optimizer.decay_kind": ("auto", "coupled", "decoupled"),
    "optimizer.clip": ("none", "global_norm", "value", "adaptive"),
    "schedule.name": (
        *("constant", "step", "piecewise", "exponential", "cosine", "linear"),
        *("polynomial", "one_cycle", "warm_restarts", "plateau"),
    ),
    "loss.name": ("softmax_cross_entropy", "sigmoid", "hinge", "squared_error", "focal", "map"),
    "precision": ("float32", "bfloat16", "float16"),
    "matmul_precision": ("default", "high", "highest"),
    "on_divergence": ("stop", "rollback"),
    "batch_norm": ("global", "local"),
    "checkpoint.best_metric": ("accuracy", "top5", "loss"),
}

# Fields that may change when a run is resumed: they say how long, where and how often, not what is trained.
RESUMABLE = (
    "duration",
    "dataset.data_dir",
    "dataset.feed",
    "dataset.workers",
    "dataset.worker_kind",
    "dataset.on_error",
    "dataset.cache",
    "eval_batch_size",
    "log_every",
    "eval_every",
    "steps_per_call",
    "early_stopping",
    "on_divergence",
    "rollback_factor",
    "max_rollbacks",
    "profile",
    "checkpoint.every",
    "checkpoint.keep",
    "report",
    "compilation_cache",
    "deterministic",
)


def base_config() -> ConfigDict:
    """Returns the locked configuration that every experiment starts from."""
    config = ConfigDict()
    config.seed = 0  # integer in [0, 2**32): initial parameters, order of the data, augmentation, dropout

    # Fields of the networks. None = the network's own default; setting one that the named network lacks is an error.
    # A field "for each stage" takes one value for all stages or one for each.
    config.model = ConfigDict()
    config.model.name = "lenet5"  # any of registry.list_models()
    config.model.activation = placeholder(str)  # relu | prelu | leaky_relu | sigmoid | tanh | scaled_tanh | gelu
    config.model.kernel_init = placeholder(str)  # paper (alexnet, zfnet, vgg: as theirs) | he | xavier | lecun
    # Probability in [0, 1) of dropping a unit: of a hidden dense layer; googlenet, resnet: of the averaged features;
    # densenet: of every convolution's output but the first's.
    config.model.dropout_rate = placeholder(float)
    config.model.pool = placeholder(tuple)  # for each stage: max | average | sum | none
    config.model.filters = placeholder(tuple)  # convnet: output channels of each stage
    config.model.kernel_size = placeholder(tuple)  # convnet, for each stage: pixels
    config.model.stride = placeholder(tuple)  # convnet, for each stage: pixels
    config.model.padding = placeholder(tuple)  # convnet, for each stage: pixels on every side, or same | valid
    config.model.pool_size = placeholder(tuple)  # convnet, for each stage: pixels
    config.model.pool_stride = placeholder(tuple)  # convnet, for each stage: pixels
    config.model.batch_norm = placeholder(str)  # convnet: none | after_conv | after_pool
    config.model.dense = placeholder(tuple)  # convnet: units of each hidden fully-connected layer; () for none
    config.model.stem = placeholder(str)  # resnet18 to 152: imagenet (7x7/2, max pool) | cifar (3x3, for small images)
    config.model.stride_in_1x1 = placeholder(bool)  # resnet50, 101, 152: stride where the paper has it, not torchvision
    config.model.shortcut = placeholder(str)  # resnet, where shapes change: A (zeros) | B (1x1 convolution)
    config.model.zero_init_residual = placeholder(bool)  # resnet: every block starts as its shortcut
    config.model.squeeze_excitation = placeholder(bool)  # resnet: after every residual
    config.model.stochastic_depth_rate = placeholder(float)  # resnet: probability in [0, 1) of dropping the last block
    config.model.auxiliary_heads = placeholder(bool)  # googlenet: two more classifiers, in training only
    config.model.remat = placeholder(bool)  # densenet: less memory in training, for some recomputation

    # What training starts from, unless it goes on from a checkpoint of its own.
    config.init = ConfigDict()
    # Folder of an earlier run, or a .pth or .safetensors file of torchvision's or timm's; "" = initial values alone.
    config.init.weights = ""
    config.init.checkpoint = "latest"  # of an earlier run: latest | best
    # Of the layer whose units are the classes. With another number of classes it is new in any case.
    config.init.head = "keep"  # keep | new

    config.dataset = ConfigDict()
    # digits | shapes, "shapes:96" of 96x96 pixels | folder:PATH: images in a folder for each class or a labels.csv
    # | a TFDS dataset prepared as array_record: "mnist", "cifar10:3.0.2"
    config.dataset.name = "digits"
    # Folder of prepared TFDS datasets, "" = TFDS_DATA_DIR or ~/tensorflow_datasets; a folder's PATH is relative to it.
    config.dataset.data_dir = ""
    config.dataset.train_split = "train"  # a split or a part of one: "train[:90%]", "train[500:]"
    config.dataset.eval_split = "test"  # watched during training; the best checkpoint is chosen on it
    config.dataset.test_split = "test"  # results.json reports the final weights on it
    # resident: the whole set lives in device memory as uint8; streaming: images are decoded whenever they are needed;
    # auto: resident if that takes at most a quarter of a device's memory
    config.dataset.feed = "auto"  # auto | resident | streaming
    config.dataset.image_size = 0  # pixels: images are resized to this square; 0 = as they are
    config.dataset.resize = "stretch"  # to that square: stretch | crop (shorter side to image_size, central square)
    config.dataset.interpolation = "bilinear"  # of that resize: nearest | bilinear | bicubic
    # In training, in place of dataset.resize; streaming only. Of 8-100 % of the area, with an aspect ratio of 3/4-4/3.
    config.dataset.train_crop = "none"  # none | random_resized_crop
    config.dataset.on_error = "stop"  # an image that can't be read: stop | skip (and list it in results.json)
    config.dataset.workers = -1  # streaming: how many decode at once; 0 = in the loop's own thread, -1 = one a core
    config.dataset.worker_kind = "threads"  # streaming: threads | processes (in training; evaluation has threads)
    config.dataset.cache = "~/.cache/cnn_research/data"  # resident: folder for decoded sets, up to 10 GB; "" = none
    config.dataset.mean = (0.0,)  # of the pixels scaled to [0, 1], one value or one a channel; subtracted
    config.dataset.std = (1.0,)  # likewise, > 0; divided by

    # What the network sees of an evaluation image; softmax probabilities are averaged over the views.
    config.evaluation = ConfigDict()
    config.evaluation.image_size = 0  # pixels: as dataset.image_size, for evaluation; 0 = dataset.image_size
    config.evaluation.crop_size = 0  # pixels: square crops of the images; 0 = whole images
    config.evaluation.crops = "centre"  # centre | ten (corners, centre, mirrored: Krizhevsky et al. 2012)
    config.evaluation.flip = False  # mirrored views too
    config.evaluation.shift = 0  # pixels: views moved by so many up and left, and down and right, too

    # Applied to training images from left to right, for example "pad_and_crop(4)|flip"; "" = none. What there is:
    # pad_and_crop(pixels), shift(pixels), random_crop(size), random_resized_crop(size), resize(size), flip,
    # alternating_flip, color_jitter(brightness, contrast, saturation, hue), lighting(std), cutout(size),
    # random_erasing(probability), randaugment(num_ops, magnitude), trivialaugment
    config.augment = ""
    # Of pairs of augmented images and their labels: mixup(alpha), cutmix(alpha), "mixup(0.2)|cutmix(1)" (each image
    # draws one of them); "" = none. The training accuracy then counts the label of the first image of a pair.
    config.mix = ""

    config.batch_size = 128  # images a step over all devices together
    config.eval_batch_size = 512  # likewise in evaluation; changes no result
    config.duration = "20ep"  # of training: "20ep" epochs, "5000st" steps, "1000000ex" examples

    # What each optimizer computes stands in training/optimizers.py.
    config.optimizer = ConfigDict()
    # sgd | momentum | nesterov | adam | adamw | nadamw | rmsprop | lamb | lars | lion | muon
    config.optimizer.name = "nesterov"
    config.optimizer.learning_rate = 0.05  # > 0: the schedule's peak
    config.optimizer.momentum = 0.9  # momentum, nesterov, rmsprop, lars, muon: in [0, 1)
    # In [0, 1): adam, adamw, nadamw, lamb, lion, and what learns the rest beside muon; beta2 also of rmsprop.
    config.optimizer.beta1 = 0.9
    config.optimizer.beta2 = 0.999
    config.optimizer.epsilon = 1e-8  # > 0: of all that have a beta2 but lion
    config.optimizer.trust_coefficient = 0.001  # lars: > 0
    config.optimizer.rest = "adam"  # beside muon, for biases and the last layer: adam | nesterov (of momentum beta1)
    # muon: before each update its kernels are scaled to the size that an update has at a learning rate of 1. That rate
    # is then the share of a kernel that a step changes. For kernels whose scale a normalisation takes away again.
    config.optimizer.renormalise = False
    config.optimizer.weight_decay = 0.0  # >= 0
    # coupled (added to the gradient) | decoupled (the weights shrink by learning rate x decay)
    # | auto (coupled for sgd, momentum, nesterov, adam, rmsprop, lars; decoupled for adamw, nadamw, lamb, lion, muon)
    config.optimizer.decay_kind = "auto"
    # What decays, and has a trust ratio in lars and lamb: kernels (no biases, no norms) | all parameters
    config.optimizer.decay = "kernels"
    # Of gradients: none | global_norm (of all together) | value (of each) | adaptive (Brock et al. 2021, by unit)
    config.optimizer.clip = "none"
    config.optimizer.clip_threshold = 1.0  # > 0: a norm, a magnitude; adaptive: gradient over weight, such as 0.01
    # Parameters by regular expressions, searched for in paths such as "conv1/kernel": "^conv1/" is one layer.
    config.optimizer.freeze = ()  # of what is not trained: ("^conv1/", "^layer1"); all but the head: ("^(?!output)",)
    config.optimizer.learning_rate_multipliers = ()  # > 0, such as ("^output=10", "bias=2"); of several the first
    config.optimizer.lookahead_steps = 0  # slow weights follow after this many (Zhang et al. 2019), say 5; 0 = none
    config.optimizer.lookahead_alpha = 0.5  # in (0, 1]: how far they follow

    config.schedule = ConfigDict()
    # constant | step | piecewise | exponential | cosine | linear | polynomial | one_cycle | warm_restarts
    # | plateau (constant, until config.checkpoint.best_metric has stopped getting better)
    config.schedule.name = "cosine"
    config.schedule.warmup = "0st"  # linear: a duration or "5%" of training; one_cycle: its rise, say "30%"
    config.schedule.boundaries = ("50%", "75%")  # step, piecewise: durations or percents, from the start of training
    config.schedule.multipliers = (0.1, 0.01)  # piecewise, >= 0: of the peak, one from each boundary on
    config.schedule.factor = 0.1  # in (0, 1]. step: at each boundary; exponential: in each period; plateau: each time
    config.schedule.period = "10%"  # exponential, warm_restarts (the first one): a duration or a percentage
    config.schedule.period_multiplier = 1.0  # warm_restarts, >= 1: how much longer than the one before each period is
    config.schedule.power = 2.0  # polynomial: > 0
    # Fraction of the peak, in [0, 1], at which cosine, linear, polynomial and every one of the warm_restarts end, and
    # below which exponential and plateau don't go.
    config.schedule.end = 0.0
    config.schedule.patience = 5  # plateau, >= 1: evaluations in a row without a new best, after which the rate falls

    # What each loss computes stands in training/losses.py.
    config.loss = ConfigDict()
    # softmax_cross_entropy | sigmoid | hinge | squared_error | focal | map (LeCun et al. 1998, for lenet5_paper)
    config.loss.name = "softmax_cross_entropy"
    config.loss.gamma = 2.0  # focal, >= 0: how little what is right already counts
    config.loss.rubbish = 10.0  # map, >= 0: the distance from all classes' codes at which an image belongs to none
    config.loss.class_weights = (1.0,)  # >= 0, one value or one a class: an example's loss counts so much
    config.loss.auxiliary_weight = 0.3  # >= 0: of each auxiliary head's loss (googlenet; Szegedy et al. 2015)
    config.loss.label_smoothing = 0.0  # in [0, 1): probability mass spread evenly over all classes; not for hinge

    # Of the computation; parameters, statistics, logits and loss are float32 in any case. float16 is for GPUs without
    # bfloat16: the loss is scaled, and an update whose gradient overflows is left out.
    config.precision = "float32"  # float32 | bfloat16 | float16
    # Of float32 products, for devices that have coarser, faster ones: default is their own choice (bfloat16 on a TPU,
    # TF32 on newer GPUs), high takes three passes of it, highest is float32.
    config.matmul_precision = "default"  # default | high | highest
    config.batch_norm = "global"  # batch statistics over all devices (the same result on 1 or 8) | local: of each alone

    # With optimizer.freeze: whether batch normalisation with a frozen scale uses its running statistics in training too
    # and leaves them as they are; else it normalises by, and collects, the statistics of the batches.
    config.freeze_batch_stats = False

    # How many steps one call of the compiled function makes, as far as nothing (log_every, eval_every,
    # checkpoint.every) is to be done in between: without the host, where steps are short. SIGTERM waits for its end.
    # With the resident feed on a GPU or TPU; a CPU's loops are slow, and there it is 1.
    config.steps_per_call = 1

    # Into how many parts, one after the other, a device's share of a batch is cut, for batches that don't fit into its
    # memory. The gradient is the whole batch's, but batch normalisation sees one part at a time.
    config.accumulation = 1
    # Of moving averages of the parameters and batch statistics, in [0, 1), say 0.999; they are then what is evaluated
    # and reported. Lower in the first steps. 0 = none.
    config.ema_decay = 0.0
    # When a loss or parameter becomes NaN or infinite. rollback: go on from the last checkpoint with the learning rate
    # times rollback_factor, at most max_rollbacks times.
    config.on_divergence = "stop"  # stop | rollback
    config.rollback_factor = 0.5  # in (0, 1)
    config.max_rollbacks = 3  # >= 1
    # Stop when evaluations have not improved checkpoint.best_metric for this long, such as "10ep"; "0st" = never.
    config.early_stopping = "0st"

    config.checkpoint = ConfigDict()
    config.checkpoint.every = "1ep"  # interval: epochs, steps, examples or percent of training
    # How many of the newest to keep, >= 1; the best is kept besides. With 2, one that storage damages costs an interval
    # of training; with 1, possibly all of it.
    config.checkpoint.keep = 2
    config.checkpoint.best_metric = "accuracy"  # on dataset.eval_split: accuracy | top5 (highest) | loss (lowest)

    config.log_every = "50st"  # interval of the training metrics; divergence is noticed here
    config.eval_every = "1ep"  # interval of evaluation on dataset.eval_split
    # Write WORKDIR/report.html at the end, in the time of an evaluation and some ten seconds; experiments/report.py
    # does it at any time.
    config.report = False
    # On a GPU: the same seed on the same machine gives the same bits. Its price: algorithms are no longer chosen by
    # timing them, so that steps may take considerably longer, and operations without a deterministic one fail to
    # compile. CPUs and TPUs are deterministic anyway, for nothing.
    config.deterministic = False
    # Record a profile for TensorBoard in WORKDIR/profile, of the steps between two durations: "100st:110st"; "" = none.
    config.profile = ""
    # XLA's persistent compilation cache, so that the second start need not compile; "" = none.
    config.compilation_cache = "~/.cache/cnn_research/xla"
    return config.lock()


# --------------------------------------------------------------------------------------------- smoke runs


def is_smoke(mode: str) -> bool:
    """Reads the mode that a config file's `get_config` is given, "smoke" in --config=file.py:smoke.

    Raises:
        UserError: it is neither "smoke" nor absent.
    """
    if mode not in ("", "smoke"):
        raise UserError(f"there is no mode {mode!r} of this experiment, only 'smoke'.{suggest(mode, ['smoke'])}")
    return mode == "smoke"


def shrink(config: ConfigDict, image_size: int) -> ConfigDict:
    """Makes an experiment a smoke run: two steps and an evaluation on generated images, on any machine, in seconds.

    What decides which code runs stays as it is: network, augmentation, loss, optimizer, schedule, evaluation protocol.
    Sizes in pixels are the config's own to scale, to the smallest that the network takes.

    Args:
        config: of the experiment, changed in place and returned.
        image_size: pixels of the generated images.
    """
    config.dataset.name = f"shapes:{image_size}"
    config.dataset.train_split = "train[:32]"
    config.dataset.eval_split = config.dataset.test_split = "test[:24]"  # the last batch of two is padded
    config.batch_size = config.eval_batch_size = 16
    config.duration = config.eval_every = config.checkpoint.every = "2st"
    config.log_every = "1st"
    config.schedule.boundaries = ("1st",) * len(config.schedule.boundaries)
    return config


# ----------------------------------------------------------------------------------------------- durations

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ep|st|ex|%)")


def to_steps(text: str, *, batch_size: int, num_examples: int, total_steps: int | None = None) -> int:
    """Converts a duration to a number of steps, to the nearest and at least 1 unless the duration is zero.

    Args:
        text: "20ep" epochs, "5000st" steps, "1000000ex" examples or "10%" of `total_steps`.
        batch_size: images a step.
        num_examples: images an epoch.
        total_steps: the length of training; None where a percentage makes no sense.

    Raises:
        UserError: no unit, an unknown unit, or a percentage without `total_steps`.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or (match[2] == "%" and total_steps is None):
        percent = "" if total_steps is None else ', "10%" (of training)'
        examples = f'"20ep" (epochs), "5000st" (steps), "1000000ex" (examples){percent}'
        raise UserError(f"{text!r} is not a duration: a number and a unit are needed, such as {examples}")
    value, unit = float(match[1]), match[2]
    steps = {
        "ep": lambda: value * num_examples / batch_size,
        "st": lambda: value,
        "ex": lambda: value / batch_size,
        "%": lambda: value / 100 * total_steps,
    }[unit]()
    return max(1, round(steps)) if value > 0 else 0


def to_span(text: str, **sizes: int | None) -> tuple[int, int]:
    """Converts two durations with a colon between them, such as "100st:2ep", to the steps from which and until which.

    Args:
        text: of the span.
        **sizes: of `to_steps`.

    Raises:
        UserError: as `to_steps`; there aren't two durations; or the second isn't longer than the first.
    """
    parts = text.split(":")
    steps = [to_steps(part, **sizes) for part in parts]
    if len(steps) != 2 or steps[0] >= steps[1]:
        raise UserError(f'{text!r} is not a span: write the beginning and a later end, such as "100st:110st"')
    return steps[0], steps[1]


# ------------------------------------------------------------------------------------------------- fields


def get_field(config: ConfigDict, field: str) -> Any:
    """Returns the value of a field such as "optimizer.name"."""
    for part in field.split("."):
        config = config[part]
    return config


def set_field(config: ConfigDict, field: str, value: Any) -> None:
    """Sets a field such as "optimizer.name"."""
    *sections, name = field.split(".")
    (get_field(config, ".".join(sections)) if sections else config)[name] = value


def model_fields(config: ConfigDict) -> dict[str, Any]:
    """Returns the network fields that the configuration sets, for `registry.create_model`."""
    return {k: v for k, v in config.model.to_dict().items() if k != "name" and v is not None}


# ----------------------------------------------------------------------------------------- to and from JSON


def to_json(config: ConfigDict) -> str:
    """Returns the configuration as JSON text, readable and complete; `from_json` gives it back equal."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote. Fields that did not exist then take their default.

    Raises:
        UserError: a field that no longer exists or has a value of another type, or text that is not JSON.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"config.json is not readable as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"config.json holds {type(values).__name__}, not an object of fields")
    config = base_config()
    known = flatten(config.to_dict())
    for field, value in flatten(values).items():
        if field not in known:
            raise UserError(f"config.json has a field {field!r} that this version doesn't.{suggest(field, known)}")
        try:
            set_field(config, field, _tuples(value))  # JSON knows lists only
        except TypeError as error:
            raise UserError(f"config.json: {field}={value!r}: {error}") from None
    return config


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lists the fields in which two runs are different experiments, as "field: old -> new"."""
    old, new = flatten(old.to_dict()), flatten(new.to_dict())
    changed = [k for k in new if old[k] != new[k] and k not in RESUMABLE]
    changed.sort(key=lambda k: k != "model.name")  # that it is another network says most
    return [f"{k}: {old[k]!r} -> {new[k]!r}" for k in changed]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns {"a": {"b": 1}} into {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
