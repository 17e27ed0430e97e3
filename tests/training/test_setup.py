import pytest

from cnn_research.config import base_config
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError
from cnn_research.training.setup import Experiment


def experiment(split, warmup):
    config = base_config()
    config.dataset.image_size = 28
    config.batch_size, config.duration, config.schedule.warmup = 10, "2ep", warmup
    return Experiment(config, ResidentFeed(open_source("digits", split), image_size=28))


def test_a_warmup_longer_than_training_is_refused_before_anything_is_initialised():
    assert experiment("test[:50]", "10st").initial_state().step == 0
    with pytest.raises(UserError, match=r"config\.schedule\.warmup='11st' is 11 steps, more than the 10 of .*'2ep'"):
        experiment("test[:50]", "11st").initial_state()


def test_evaluation_asks_for_no_schedule():
    experiment("test[:50]", "11st").eval_step()
