"""Runs a sweep: python experiments/sweep.py --config=FILE --workdir=runs/seeds --grid=seed=0,1,2"""

from cnn_research.commands import sweep

if __name__ == "__main__":
    sweep.run()
