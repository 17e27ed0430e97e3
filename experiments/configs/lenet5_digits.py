"""LeNet-5 on the handwritten digits that ship with scikit-learn: the first run of a fresh clone.

LeCun et al. 1998; 1,437 scans of 8x8 for training, 360 for testing, upscaled to the network's 32x32.

    python experiments/train.py --config=experiments/configs/lenet5_digits.py --workdir=runs/lenet5_digits

Test accuracy over seeds: RESULTS.md (one image is 0.0028). The recipe was chosen on a quarter of the training set.
Time: 20 s for the 40 epochs on 2 cores of a CPU.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
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
    return shrink(config, image_size=8) if is_smoke(mode) else config
