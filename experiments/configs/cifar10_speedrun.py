"""CIFAR-10 in the least time: a network and a recipe made for 94 % after eight epochs.

Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", in the form of its author's later record with Muon:
94.01 % (mean of 200 runs) in 2.59 s on an A100. What each part of it is worth stands in section 3 of the paper.

    python experiments/train.py --config=experiments/configs/cifar10_speedrun.py --workdir=runs/cifar10_speedrun \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

On a GPU or TPU add --config.precision=bfloat16. The network is evaluated once, at the end, by the record's six views;
`--config.eval_every=1ep --config.evaluation.flip=False --config.evaluation.shift=0` shows a curve, of single views.

The record sums the loss over a batch of 2,000 and has learning rates of 0.24 for the kernels, 0.053 for the biases and
0.67 for the last layer, whose products it divides by 256. Here the loss is a mean, and the network's own scale of the
last layer makes one rate of the latter two: 0.24 x 440 = 2,000 x 0.053. Their decay, 0.004 a step, passed through a
momentum of 0.85 there; here it stands outside: 0.24 x 440 x 2.5e-4 = 0.004 / (1 - 0.85). What else differs: the
whitening layer's bias learns to the end, not for three epochs; kernels are made orthogonal by five Newton-Schulz
steps, not three; shifted images repeat their edge, not its reflection; and the probabilities of the six views are
averaged, not their logits weighted.

Measured once, on images that had passed through JPEG: 0.9073 (RESULTS.md; its curve: docs/performance.md).

Needs cifar10 prepared as array_record; see docs/data.md. `:smoke` after the config's name trains two steps on generated
images.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "speednet"
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "shift(2)|alternating_flip"
    config.evaluation.flip = True
    config.evaluation.shift = 1
    config.batch_size = config.eval_batch_size = 2000
    config.duration = "8ep"
    config.loss.label_smoothing = 0.2
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.24
    config.optimizer.momentum = 0.6
    config.optimizer.renormalise = True
    config.optimizer.rest = "nesterov"
    config.optimizer.beta1 = 0.85
    config.optimizer.learning_rate_multipliers = ("bias|^output=440",)
    config.optimizer.weight_decay = 2.5e-4
    config.optimizer.decay = "all"
    config.optimizer.freeze = ("^whiten/kernel",)
    config.schedule.name = "linear"
    config.eval_every = config.checkpoint.every = "100%"
    config.log_every = "1ep"
    config.steps_per_call = 25  # an epoch
    return shrink(config, image_size=16) if is_smoke(mode) else config
