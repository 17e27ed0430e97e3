"""Prepares a TFDS dataset, once: python experiments/prepare.py mnist --data_dir=path/to/tensorflow_datasets"""

from cnn_research.commands import prepare

if __name__ == "__main__":
    prepare.run()
