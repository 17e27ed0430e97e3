"""LeNet-5 on the handwritten digits that ship with scikit-learn."""

from cnn_research.config import base_config


def get_config():
    config = base_config()
    config.model.name = "lenet5"
    config.model.dropout_rate = 0.3
    config.dataset.name = "digits"
    config.dataset.image_size = 32
    config.dataset.mean = (0.3,)
    config.dataset.std = (0.35,)
    config.augment = "shift(2)"
    config.batch_size = 64
    config.duration = "40ep"
    config.optimizer.learning_rate = 0.05
    config.schedule.warmup = "5%"
    config.loss.label_smoothing = 0.1
    return config
