"""Describes a network layer by layer, or lists them all: python experiments/describe.py alexnet"""

from cnn_research.commands import describe

if __name__ == "__main__":
    describe.run()
