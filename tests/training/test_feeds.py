import logging

import pytest

from cnn_research.config import base_config
from cnn_research.data.resident import ResidentFeed
from cnn_research.data.sources import open_source
from cnn_research.data.streaming import StreamingFeed
from cnn_research.errors import UserError
from cnn_research.training import feeds, parallel
from cnn_research.training.feeds import open_feeds


def test_splits_of_different_classes_or_channels(monkeypatch):
    def mixed(name, split, data_dir):
        return open_source("digits" if split.startswith("test") else "shapes", split)

    monkeypatch.setattr(feeds, "open_source", mixed)
    config = base_config()
    with pytest.raises(UserError, match=r"config\.dataset: classes of 'test\[:5\]' are .*, but of 'train\[:5\]' "):
        open_feeds(config, ("test[:5]",), "train[:5]")


@pytest.mark.parametrize(
    ("memory", "fields", "kind"),
    [
        (4 * 60 * 28 * 28, {}, ResidentFeed),  # 40 + 20 images, of which a quarter holds as many
        (4 * 60 * 28 * 28 - 4, {}, StreamingFeed),
        (4 * 60 * 28 * 28 - 4, {"feed": "resident"}, ResidentFeed),
        (2**40, {"feed": "streaming"}, StreamingFeed),
        (2**40, {"train_crop": "random_resized_crop"}, StreamingFeed),
    ],
)
def test_the_feed_is_chosen_by_size(monkeypatch, caplog, memory, fields, kind):
    monkeypatch.setattr(parallel, "device_memory", lambda: memory)
    config = base_config()
    config.dataset.image_size = 28
    config.dataset.update(fields)
    with caplog.at_level(logging.INFO, logger="absl"):
        opened = open_feeds(config, ("test[:20]",), "train[:40]")
    assert {type(feed) for feed in opened.values()} == {kind}
    assert ("dataset.feed=auto: " in caplog.text) == ("feed" not in fields)


def test_evaluation_alone_needs_no_streaming_for_crops():
    config = base_config()
    config.dataset.image_size, config.dataset.train_crop = 28, "random_resized_crop"
    assert type(open_feeds(config, ("test[:20]",))["test[:20]"]) is ResidentFeed
