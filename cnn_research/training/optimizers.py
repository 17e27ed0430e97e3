"""Optimizers, from their names in the config."""

import functools
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from cnn_research.training import parameters, transforms

# Those whose papers add the decay to the gradient; the others' are decoupled.
COUPLED = ("sgd", "momentum", "nesterov", "adam", "rmsprop", "lars")


def create_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of `config.optimizer`.

    Gradients are clipped, and a coupled decay is added to them. Of the sum the named optimizer makes a direction, to
    which a decoupled decay is added (Loshchilov & Hutter 2019); all of it is multiplied by the learning rate. So the
    rate stands outside all momenta, as in PyTorch, and an update is proportional to it:

        sgd         the gradient
        momentum    Sutskever et al. 2013: v = momentum v + g
        nesterov    the same, and then g + momentum v
        adam        Kingma & Ba 2015; adamw with a decoupled decay (Loshchilov & Hutter 2019)
        nadamw      Dozat 2016, with a decoupled decay
        rmsprop     Hinton 2012: g / (sqrt(mean of squares, over beta2) + epsilon), then momentum
        lamb        You et al. 2020: Adam's direction with its decay, times ||w|| / ||direction|| for each kernel w
        lars        You et al. 2017: see `transforms.scale_by_lars`, then momentum
        lion        Chen et al. 2023: the sign of beta1 m + (1 - beta1) g, then m = beta2 m + (1 - beta2) g
        muon        Jordan et al. 2024: nesterov's direction, see `transforms.orthogonalise`, for the kernels of all but
                    the last layer; `config.rest` for that and for all biases and scales

    lamb's decoupled decay joins the direction before its norm is taken, as in the paper. What isn't meant to decay
    (`config.decay`) has no such ratio in lars and lamb, as in their authors' code. Adaptive clipping (Brock et al.
    2021) is of every layer; the paper spares the last. Around all this stands lookahead, and around that freezing.

    Args:
        config: `config.optimizer`.
        schedule: number of updates made -> learning rate.

    Returns:
        An optimizer whose `update(gradients, state, params, learning_rate_scale=1.0)` multiplies the learning rate of
        this one update by a float32 scalar. Its `init` raises a UserError where a pattern of the config is found in no
        parameter's path.
    """
    decays = parameters.kernels if config.decay == "kernels" else functools.partial(jax.tree.map, lambda _: True)
    coupled = config.decay_kind == "coupled" or (config.decay_kind == "auto" and config.name in COUPLED)
    decay = [optax.add_decayed_weights(config.weight_decay, decays)] if config.weight_decay else []
    multipliers = functools.partial(parameters.multipliers, texts=config.learning_rate_multipliers)
    ratio = [optax.masked(optax.scale_by_trust_ratio(), decays)] if config.name == "lamb" else []
    optimizer = optax.chain(
        *_clip(config),
        # lars decays by itself, as the decay counts in its ratio.
        *(decay if coupled and config.name != "lars" else []),
        *_direction(config, lars_decay=config.weight_decay if coupled else 0.0, adapted=decays),
        *([] if coupled else decay),
        *ratio,
        transforms.scale_by_learning_rate(schedule, multipliers),
        *([optax.masked(transforms.renormalise(), parameters.hidden_kernels)] if config.renormalise else []),
    )
    if config.lookahead_steps:
        optimizer = transforms.lookahead(optimizer, config.lookahead_steps, config.lookahead_alpha)
    if config.freeze:
        optimizer = transforms.freeze(optimizer, functools.partial(parameters.frozen, patterns=config.freeze))

    def init(params: Any) -> Any:
        parameters.check_patterns(params, config.freeze, config.learning_rate_multipliers)
        return optimizer.init(params)

    return optax.GradientTransformationExtraArgs(init, optimizer.update)


def _clip(config: ConfigDict) -> list[optax.GradientTransformation]:
    return {
        "none": lambda: [],
        "global_norm": lambda: [optax.clip_by_global_norm(config.clip_threshold)],
        "value": lambda: [optax.clip(config.clip_threshold)],
        "adaptive": lambda: [optax.adaptive_grad_clip(config.clip_threshold)],
    }[config.clip]()


def _direction(
    config: ConfigDict, *, lars_decay: float, adapted: transforms.Mask
) -> list[optax.GradientTransformation]:
    """What the named optimizer makes of gradients: a direction of ascent."""
    momentum = functools.partial(optax.trace, config.momentum)
    adam = functools.partial(optax.scale_by_adam, config.beta1, config.beta2, config.epsilon)
    rest = {"adam": adam, "nesterov": functools.partial(optax.trace, config.beta1, nesterov=True)}[config.rest]

    def others(params: Any) -> Any:
        return jax.tree.map(lambda is_hidden: not is_hidden, parameters.hidden_kernels(params))

    return {
        "sgd": lambda: [],
        "momentum": lambda: [momentum()],
        "nesterov": lambda: [momentum(nesterov=True)],
        "adam": lambda: [adam()],
        "adamw": lambda: [adam()],
        "nadamw": lambda: [adam(nesterov=True)],
        "rmsprop": lambda: [optax.scale_by_rms(config.beta2, config.epsilon, eps_in_sqrt=False), momentum()],
        "lamb": lambda: [adam()],
        "lars": lambda: [transforms.scale_by_lars(config.trust_coefficient, lars_decay, adapted), momentum()],
        "lion": lambda: [optax.scale_by_lion(config.beta1, config.beta2)],
        "muon": lambda: [
            optax.masked(optax.chain(momentum(nesterov=True), transforms.orthogonalise()), parameters.hidden_kernels),
            optax.masked(rest(), others),
        ],
    }[config.name]()
