"""Runs of seconds, on images that are generated or come with scikit-learn."""

from pathlib import Path

from configs_for_tests import changed

from cnn_research.training import loop

TINY = {
    "model__name": "convnet",
    "model__filters": (4, 8),
    "model__dense": (16,),
    "model__batch_norm": "after_conv",
    "dataset__cache": "",
    "batch_size": 64,
    "eval_batch_size": 128,
    "duration": "40st",
    "eval_every": "10st",
    "log_every": "5st",
    "optimizer__name": "adam",
    "optimizer__learning_rate": 0.01,
    "compilation_cache": "",
}
# Grey ones of 8 x 8 pixels in ten classes; coloured ones of 24 x 24 in four.
GREY = {"dataset__name": "digits"}
COLOURED = {"dataset__name": "shapes:24", "dataset__train_split": "train[:512]", "dataset__eval_split": "test[:200]"}
COLOURED |= {"dataset__test_split": "test[:200]"}


def train(workdir: Path, **fields) -> Path:
    """Trains a tiny run; returns its folder."""
    loop.train(changed(**TINY | fields), workdir)
    return workdir
