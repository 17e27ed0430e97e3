"""Trains the network of a config, or goes on where the workdir's last checkpoint stands."""

import shlex

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from cnn_research.commands import hosts, launch
from cnn_research.errors import UserError
from cnn_research.training import loop, parallel
from cnn_research.training.writers import duration


def run() -> None:
    """Runs the command."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Name or file of the experiment; single fields are set by --config.batch_size=256.",
        lock_config=True,
    )
    flags.DEFINE_string("workdir", None, "Folder of the run: results, metrics, checkpoints.")
    flags.DEFINE_bool("preview", False, "Train nothing; say what it would cost, from a few timed steps.")
    hosts.define_flags()
    launch.run(main, required=("config",))


def main() -> None:
    """Trains, and says at the end what came out and where it is; or says beforehand what it would cost."""
    if not flags.FLAGS.workdir and not flags.FLAGS.preview:
        raise UserError("--workdir must be given; --help shows all flags")
    hosts.connect()
    config = launch.given_config()
    if flags.FLAGS.preview:
        return _preview(config)
    workdir = flags.FLAGS.workdir.rstrip("/") or "/"
    results = loop.train(config, workdir)
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
        + (f" ({rate:,.0f} images/s; {results['device_seconds']:,.1f} device-seconds)" if rate else ""),
        "on": f"{results['devices']} {results['platform']} device(s)",
        "digest": results["digest"][:16],
        "results": f"{workdir}/results.json",
        "metrics": f"{workdir}/metrics.jsonl, or: tensorboard --logdir {shlex.quote(workdir)}",
        "checkpoints": f"{workdir}/checkpoints",
        "report": _report(workdir) if config.report else _report_command(workdir),
    }
    _print(rows)


def _report(workdir: str) -> str:
    """Writes the report and returns where it is. A finished run is one, whatever goes wrong with its report."""
    if parallel.is_connected():  # the other processes have left, and some questions all would have to answer
        return f"of several processes none writes it: {_report_command(workdir)}"
    from cnn_research.report.page import write_report  # takes a second

    try:
        return str(write_report([workdir]))
    except Exception as error:
        if not isinstance(error, UserError):  # a defect of ours, whose place should be known
            logging.exception("the report could not be written")
        return f"could not be written ({error}); to try again: {_report_command(workdir)}"


def _report_command(workdir: str) -> str:
    return f"{launch.sibling('report')} --workdir={shlex.quote(workdir)}"


def _preview(config: ConfigDict) -> None:
    from cnn_research.training.preview import preview

    parallel.initialise(config.compilation_cache, config.deterministic)
    cost = preview(config)
    if not parallel.is_main():
        return
    peak, together, held = cost["fraction_of_peak"], cost["steps_per_call"], cost["memory_bytes"]
    _print(
        {
            "network": f"{cost['model']}, {cost['parameters']:,} parameters",
            "a step": f"{cost['flops_per_step'] / 1e9:,.2f} GFLOPs ({cost['compiled_flops_per_step'] / 1e9:,.2f} as "
            f"compiled), {1e3 * cost['step_seconds']:,.1f} ms, {cost['examples_per_second']:,.0f} images/s"
            + (f", {100 * peak:.1f} % of the peak" if peak else ""),
            "memory": (f"{held / 2**20:,.0f} MiB a device for a step, the feed's images included; " if held else "")
            + f"{cost['checkpoint_bytes'] / 2**20:,.1f} MiB a checkpoint",
            "length": f"{cost['steps']:,} steps, {cost['epochs']:g} epochs, {cost['evaluations']:,} evaluations of "
            f"{cost['evaluation_seconds']:,.1f} s",
            "time": f"{duration(cost['total_seconds'])}, {duration(cost['device_seconds'])} of one device"
            + (f", or less: the run makes {together} steps a call, here timed one by one" if together > 1 else ""),
            "on": f"{cost['devices']} device(s): {cost['device_kind']}",
        }
    )


def _print(rows: dict[str, str]) -> None:
    print("\n" + "\n".join(f"  {name:<14} {value}" for name, value in rows.items()) + "\n")
