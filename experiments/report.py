"""Writes a run's report: python experiments/report.py --workdir=runs/lenet5_digits; of several runs their comparison"""

from cnn_research.commands import report

if __name__ == "__main__":
    report.run()
