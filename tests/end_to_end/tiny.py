"""A run of seconds that has everything in it: batch normalisation, dropout, augmentation, a schedule."""

from cnn_research.config import base_config


def get_config():
    config = base_config()
    config.model.name = "convnet"
    config.model.filters = (4, 8)
    config.model.batch_norm = "after_conv"
    config.model.dense = (16,)
    config.model.dropout_rate = 0.1
    config.dataset.name = "digits"
    config.augment = "shift(1)|flip"
    config.batch_size = 32
    config.duration = "120st"
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.01
    config.schedule.warmup = "10%"
    config.log_every = "10st"
    config.eval_every = "40st"
    config.checkpoint.every = "20st"
    return config
