"""Trains a network: python experiments/train.py --config=experiments/configs/lenet5_digits.py --workdir=runs/lenet5"""

from cnn_research.commands import train

if __name__ == "__main__":
    train.run()
