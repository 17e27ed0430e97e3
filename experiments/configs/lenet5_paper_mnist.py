"""LeNet-5 as it was published, on MNIST: LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86(11), 1998.

    python experiments/train.py --config=experiments/configs/lenet5_paper_mnist.py --workdir=runs/lenet5_paper_mnist \\
        --config.dataset.data_dir=path/to/tensorflow_datasets

Published: 0.95 % test error without distorted images (section III-B). Test accuracy over seeds: RESULTS.md.

From the paper: the network to the parameter, radial basis outputs with drawn codes, pixels from -0.1 (background) to
1.175, the criterion with the rubbish class (equation 9), 20 passes, no augmentation. What differs: it takes single
images in the order of a stochastic diagonal Levenberg-Marquardt method, here batches of 16 and Adam, which scales steps
by parameter too; and it names no j. All were chosen on parts of the training set. First a j of 1, 10 or 40 after five
passes over 6,400 images: with 40, as without a rubbish class, units stay where they are linear. Then the others, by the
error on the last fifth after ten passes over the rest, of one seed each (which varies by 0.1 %): batches of 64 1.30 to
1.48 % (rates of 0.002 and 0.005, j of 3 and 10, decoupled decay of 0.02 and 0.1); of 16 with a j of 10 1.25 % at 0.002,
1.30 % at 0.001 and 1.27 % with a decay of 0.1; of 8 or 16 with a smaller j, or more decay, 1.28 to 1.68 %. Needs mnist
prepared as array_record.
"""

from cnn_research.config import base_config, is_smoke, shrink


def get_config(mode: str = ""):
    config = base_config()
    config.model.name = "lenet5_paper"
    config.dataset.name = "mnist"
    config.dataset.mean = (0.1 / 1.275,)  # background at -0.1, ink at 1.175
    config.dataset.std = (1 / 1.275,)
    config.batch_size = 16
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.002
    config.schedule.warmup = "5%"
    config.loss.name = "map"
    return shrink(config, image_size=28) if is_smoke(mode) else config
