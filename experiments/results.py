"""Keeps results, makes RESULTS.md: python experiments/results.py --add=WORKDIR; --check for CI"""

from cnn_research.commands import results

if __name__ == "__main__":
    results.run()
