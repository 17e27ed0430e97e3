"""Writes a network for JAX alone: python experiments/export.py --workdir=runs/lenet5 --output=lenet5.zip"""

from cnn_research.commands import export

if __name__ == "__main__":
    export.run()
