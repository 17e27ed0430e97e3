"""Configs for tests."""

from cnn_research.config import base_config, set_field


def changed(**fields):
    """The base config with fields set: `optimizer__name="sgd"`."""
    config = base_config()
    for field, value in fields.items():
        set_field(config, field.replace("__", "."), value)
    return config
