"""Evaluates a run's checkpoint: python experiments/evaluate.py --workdir=runs/lenet5 --split=test"""

from cnn_research.commands import evaluate

if __name__ == "__main__":
    evaluate.run()
