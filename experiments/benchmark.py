"""Measures how fast the parts of an experiment are: python experiments/benchmark.py data --config=FILE"""

from cnn_research.commands import benchmark

if __name__ == "__main__":
    benchmark.run()
