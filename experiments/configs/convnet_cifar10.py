"""The tutorials' generic network, four stages of convolution, on CIFAR-10."""

from cnn_research.config import base_config


def get_config():
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
    return config
