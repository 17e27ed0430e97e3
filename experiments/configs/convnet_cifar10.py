"""The tutorials' generic network, four stages of convolution with batch normalisation, on CIFAR-10.

A small network (164,634 parameters) that a CPU can train. Needs cifar10 prepared as array_record; see docs/data.md.

    python experiments/train.py --config=experiments/configs/convnet_cifar10.py --workdir=runs/convnet_cifar10 \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Test accuracy: RESULTS.md, of images that had passed through JPEG once, which costs some points. No published figure:
the network is ours. Time: 5 minutes for the 12 epochs on 2 cores of a CPU.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "convnet"
    config.model.filters = (16, 32, 64, 128)
    config.model.batch_norm = "after_conv"
    config.model.dense = (128,)
    config.model.dropout_rate = 0.2
    config.dataset.name = "cifar10"
    config.dataset.mean = (0.4914, 0.4822, 0.4465)
    config.dataset.std = (0.2470, 0.2435, 0.2616)
    config.augment = "pad_and_crop(4)|flip"
    config.batch_size = 128
    config.duration = "12ep"
    config.optimizer.learning_rate = 0.05
    config.optimizer.weight_decay = 5e-4
    config.schedule.warmup = "5%"
    return shrink(config, image_size=16) if is_smoke(mode) else config
