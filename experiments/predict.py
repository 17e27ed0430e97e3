"""Says what images show: python experiments/predict.py --workdir=runs/lenet5 'images/*.png' --top=4"""

from cnn_research.commands import predict

if __name__ == "__main__":
    predict.run()
