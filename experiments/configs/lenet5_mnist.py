"""LeNet-5 on MNIST."""

from cnn_research.config import base_config


def get_config():
    config = base_config()
    config.model.name = "lenet5"
    config.dataset.name = "mnist"
    config.dataset.mean = (0.1307,)
    config.dataset.std = (0.3081,)
    config.augment = "shift(1)"
    config.batch_size = 128
    config.duration = "12ep"
    config.optimizer.learning_rate = 0.05
    config.schedule.warmup = "5%"
    return config
