"""MNIST to a test accuracy of 99 % in the least time, from the start of the process on a CPU.

    python experiments/train.py --config=experiments/configs/mnist_speedrun.py --workdir=runs/mnist_speedrun \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

A network whose three small convolutions a CPU computes fast, with batch normalisation behind the pooling, where it
costs least; Muon, with which one epoch is enough; one evaluation and one checkpoint, at the end.
In the spirit of tuomaso/train_mnist_fast on GitHub, whose one epoch takes 0.76 s on a GPU. No published figure: the
network is ours. Measured: RESULTS.md, and beside PyTorch docs/performance.md.

Everything here was chosen on the last tenth of the training set. Needs mnist as array_record; see docs/data.md.
`--config.model.filters=32,64,128 --config.duration=6ep --config.optimizer.learning_rate=0.03` aims at 99.5 %.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "convnet"
    config.model.filters = (16, 32, 64)
    config.model.kernel_size = (5, 3, 3)
    config.model.padding = ("valid",)
    config.model.pool = ("max", "max", "none")
    config.model.batch_norm = "after_pool"
    config.model.dense = ()
    config.dataset.name = "mnist"
    config.dataset.mean = (0.1307,)
    config.dataset.std = (0.3081,)
    config.augment = "shift(1)"
    config.duration = "1ep"
    config.loss.label_smoothing = 0.1
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.02
    config.schedule.name = "one_cycle"
    config.schedule.warmup = "20%"
    config.eval_every = config.checkpoint.every = "100%"
    config.log_every = "25%"
    return shrink(config, image_size=28) if is_smoke(mode) else config
