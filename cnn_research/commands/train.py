"""Trains the network of a config, or goes on where the workdir's last checkpoint stands."""

import shlex

from absl import flags
from ml_collections import config_flags

from cnn_research.commands import hosts, launch
from cnn_research.training import loop, parallel


def run() -> None:
    """Runs the command."""
    config_flags.DEFINE_config_file(
        "config", None, "File of the experiment; single fields are set by --config.batch_size=256.", lock_config=True
    )
    flags.DEFINE_string("workdir", None, "Folder of the run: results, metrics, checkpoints.")
    hosts.define_flags()
    launch.run(main, required=("config", "workdir"))


def main() -> None:
    """Trains, and says at the end what came out and where it is."""
    workdir = flags.FLAGS.workdir.rstrip("/") or "/"
    hosts.connect()
    results = loop.train(launch.given_config(), workdir)
    if not parallel.is_main():
        return
    test, best = results["test"], results["best"]
    rate = results["examples_per_second"]
    rows = {
        "network": f"{results['model']}, {results['parameters']:,} parameters",
        "data": f"{results['dataset']}, {test['num_examples']:,} test images",
        "test accuracy": f"{test['accuracy']:.4f} (top-5 {test['top5']:.4f}, loss {test['loss']:.4f})",
        "best": f"{best['accuracy']:.4f} at step {best['step']}",
        "trained": f"{results['epochs']:.1f} epochs, {results['steps']:,} steps in {results['train_seconds']:.1f} s"
        + (f" ({rate:,.0f} images/s)" if rate else ""),
        "on": f"{results['devices']} {results['platform']} device(s)",
        "digest": results["digest"][:16],
        "results": f"{workdir}/results.json",
        "metrics": f"{workdir}/metrics.jsonl, or: tensorboard --logdir {shlex.quote(workdir)}",
        "checkpoints": f"{workdir}/checkpoints",
    }
    print("\n" + "\n".join(f"  {name:<14} {value}" for name, value in rows.items()) + "\n")
