"""Training and evaluation as linear stories: devices, data, network, state, restore, steps, finish."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from cnn_research.errors import Diverged, Preempted, UserError
from cnn_research.training import metrics, parallel
from cnn_research.training import workdir as files
from cnn_research.training.checkpoints import Checkpoints, any_in
from cnn_research.training.divergence import Rollbacks, largest, require_finite
from cnn_research.training.feeds import Feed, open_feeds
from cnn_research.training.preemption import Preemption
from cnn_research.training.pretrained import read_run
from cnn_research.training.setup import Experiment
from cnn_research.training.state import TrainState, count_parameters, digest
from cnn_research.training.writers import Profiler, Progress, Writer
from cnn_research.validation import validate


def train(config: ConfigDict, workdir: epath.PathLike) -> dict[str, Any]:
    """Trains what the config says to its end, from the workdir's newest checkpoint if it has one.

    Args:
        config: of the experiment, with every field of `config.base_config()`.
        workdir: folder of the run; created if need be.

    Returns:
        What stands in results.json.

    Raises:
        UserError: a mistake in the config, the data or the workdir; nothing has been changed.
        Diverged: the loss or a parameter became NaN or infinite; the checkpoints before are good.
        Preempted: SIGTERM or Ctrl-C came, and the state has been saved.
    """
    parallel.initialise(config.compilation_cache, config.deterministic)
    workdir = files.locate(workdir)
    parallel.set_matmul_precision(config.matmul_precision)
    validate(config, parallel.device_count())
    files.check_same_run(workdir, config)

    # Data and network come before the workdir is touched: what can't be trained leaves no trace.
    train_split, eval_split, test_split = (config.dataset[f"{use}_split"] for use in ("train", "eval", "test"))
    feeds = open_feeds(config, (eval_split, test_split), train_split)
    experiment = Experiment(config, feeds[train_split])
    initial = experiment.initial_state(load_weights=not any_in(workdir / "checkpoints"))
    for split in (eval_split, test_split):
        experiment.check_evaluation(initial.network, feeds[split], experiment.input_shape)
    steps = experiment.train_step(), experiment.eval_step()

    with (
        files.full_disk_told(workdir),
        files.claim(workdir),
        Preemption() as preemption,  # outside: a signal that comes again must not end the last checkpoint's writing
        Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints,
    ):
        rollbacks, results = Rollbacks(config), None
        while results is None:
            try:
                results = _run(
                    config, workdir, experiment, feeds, initial, steps, checkpoints, preemption, rollbacks.count
                )
            except Diverged as error:
                rollbacks.go_back(error, checkpoints)
    if parallel.is_main():  # and only now: a run that has results has its last checkpoint on the disk
        with files.full_disk_told(workdir):
            files.write_json(workdir / "results.json", results)
    return results


def _run(
    config: ConfigDict,
    workdir: epath.Path,
    experiment: Experiment,
    feeds: Mapping[str, Feed],
    state: TrainState,
    steps: tuple[Callable, Callable],
    checkpoints: Checkpoints,
    preemption: Preemption,
    rollbacks: int,
) -> dict[str, Any]:
    """Goes from the newest checkpoint, or from the initial state, to the end. Returns the results.

    Args:
        config, workdir, experiment, feeds, checkpoints, preemption: of the run; feeds by split.
        state: the initial one.
        steps: the compiled train_step and eval_step.
        rollbacks: how many the checkpoint should know of; for each that it doesn't, the learning rate is lowered.
    """
    train_split, eval_split, test_split = (config.dataset[f"{use}_split"] for use in ("train", "eval", "test"))
    feed, total_steps, parameters = feeds[train_split], experiment.total_steps, count_parameters(state.params)
    p_train_step, p_eval_step = steps
    state, about = _beginning(config, experiment, state, checkpoints, rollbacks)
    first_step, plateau = int(state.step), experiment.plateau(about["plateau"])
    if first_step > total_steps:
        raise UserError(f"workdir {workdir} is at step {first_step}, past the {total_steps} of config.duration")
    files.describe(workdir, config)
    logging.info(
        f"{config.model.name}: {parameters:,} parameters, {config.precision} (matmul precision "
        f"{config.matmul_precision}). {config.dataset.name}: {feed.num_examples:,} images. "
        f"{parallel.device_count()} device(s): {jax.devices()[0].device_kind}. "
        f"Steps {first_step} to {total_steps} in {workdir}"
    )

    state = parallel.replicate(state)
    arrays = {split: parallel.replicate(feeds[split].arrays) for split in feeds}
    key = parallel.replicate(jax.random.key(config.seed))  # never changes: a step folds its own number into it
    step, pending, evaluation, peak = first_step, [], None, parallel.peak_flops()
    with (
        Writer(workdir, first_step, steps_per_epoch=feed.num_examples / config.batch_size) as writer,
        Progress(first_step, total_steps, config.batch_size, about) as progress,
        Profiler(workdir, experiment.profile) as profiler,
        closing(feed.train_batches(first_step, config.batch_size, parallel.share(config.batch_size))) as host_batches,
    ):
        calls = experiment.calls(first_step)
        batches = parallel.prefetch(host_batches, feed.prefetch, calls)

        def evaluate_on(split: str) -> dict[str, float]:
            values = evaluate_feed(p_eval_step, state.network, arrays[split], feeds[split], config.eval_batch_size)
            require_finite([values["loss"]], step, f"loss on {split!r}", checkpoints)
            writer.write(step, split, values)
            progress.evaluated(step, split, values)
            return values

        while step < total_steps and not about["stopped_early"]:
            profiler.before(step, pending)
            state, sums = p_train_step(state, arrays[train_split], next(batches), key)
            step += math.prod(sums["count"].shape[1:])  # of several steps in one call there are as many sums
            pending.append(sums)  # left on the devices, so that the host can run ahead of them
            parallel.limit_ahead(pending, feed.ahead)

            ending = step == total_steps
            leaving = preemption.reached() and not ending
            evaluating = ending or step % experiment.eval_every == 0
            saving = ending or leaving or step % experiment.save_every == 0
            if not (evaluating or saving or step % experiment.log_every == 0):
                continue

            sums = metrics.by_step(parallel.to_host(pending))  # waits until the devices have caught up
            values = metrics.means(sums) | metrics.latest(sums[-1])
            values |= progress.trained(step, values["loss"])
            if peak:
                operations = values["examples_per_second"] * experiment.flops_per_image
                values["fraction_of_peak"] = round(operations / peak / parallel.device_count(), 4)
            require_finite([s["loss"] for s in sums], step - len(sums) + 1, "training loss", checkpoints)
            writer.write(step, train_split, values)
            checkpoints.check()
            pending = []
            evaluation = evaluate_on(eval_split) if evaluating else None
            improved = evaluating and checkpoints.is_best(evaluation)
            if evaluating and not improved and experiment.early_stopping:
                about["stopped_early"] = step - checkpoints.best["step"] >= experiment.early_stopping
            if evaluating and plateau:
                scale = parallel.to_host(state.learning_rate_scale)
                scale *= plateau.evaluated(evaluation[config.checkpoint.best_metric])
                state = state.replace(learning_rate_scale=parallel.replicate(scale))
                about["plateau"] = plateau.state
            if saving or improved or about["stopped_early"]:
                host_state = parallel.to_host(state)
                # The loss would show it a step too late: it was computed before the update.
                require_finite([largest(host_state)], step, "parameters or optimizer state", checkpoints)
                about["skipped"] = parallel.union([*about["skipped"], *feed.skipped])
                writer.flush()
                checkpoints.save(host_state, about | progress.totals(), evaluation)
            progress.resume()
            if leaving:
                raise Preempted(f"preempted at step {step}")

        if about["stopped_early"]:
            logging.info(f"stopped at step {step}: no improvement since step {checkpoints.best['step']}")
        if evaluation is None:  # there was nothing left to train
            evaluation = evaluate_on(eval_split)
        # None where a run was preempted before its first evaluation and its duration then cut to that step.
        best = checkpoints.best or {"step": step, **evaluation}
        # What is reported are the weights at the end; the best ones were chosen by looking at eval_split.
        test = evaluation if test_split == eval_split else evaluate_on(test_split)
        totals = progress.totals()
        return {
            "model": config.model.name,
            "dataset": config.dataset.name,
            "parameters": parameters,
            "steps": step,
            "epochs": round(step * config.batch_size / feed.num_examples, 4),
            "train_seconds": totals["seconds"],
            "device_seconds": totals["device_seconds"],
            "examples_per_second": totals["examples_per_second"],
            "peak_memory_bytes": parallel.peak_memory(),
            "test": test,
            "skipped": _skipped(feeds.values(), about["skipped"]),
            "best": {name: best[name] for name in ("step", "accuracy")},
            "rollbacks": about["rollbacks"],
            "stopped_early": about["stopped_early"],
            "devices": parallel.device_count(),
            "platform": jax.default_backend(),
            "versions": files.versions(),
            "seed": config.seed,
            "digest": digest(parallel.to_host(state.network)),
        }


def _beginning(
    config: ConfigDict, experiment: Experiment, initial: TrainState, checkpoints: Checkpoints, rollbacks: int
) -> tuple[TrainState, dict[str, Any]]:
    """The state from which training goes on, and what its checkpoint says of itself (`Experiment.about`)."""
    state, about = checkpoints.restore_latest(like=initial) or (initial, experiment.about())
    if about["config"]["duration"] != config.duration:
        logging.info("duration is now %s: intervals and schedule are those of that length", config.duration)
    about["stopped_early"] &= about["config"]["early_stopping"] == config.early_stopping
    about["config"] = config.to_dict()
    if rollbacks > about["rollbacks"]:
        factor = config.rollback_factor ** (rollbacks - about["rollbacks"])
        state = state.replace(learning_rate_scale=np.float32(state.learning_rate_scale * factor))
        about["rollbacks"] = rollbacks
    return state, about


def evaluate(
    workdir: epath.PathLike,
    split: str = "",
    checkpoint: str = "latest",
    data_dir: str | None = None,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run; neither its optimizer nor its training set is needed.

    The final weights on the run's own test_split, by the run's own protocol, rewrite "test" in results.json, and
    nothing else there.

    Args:
        workdir: folder of the run.
        split: of the run's dataset, such as "train" or "test[:50%]"; "" = its dataset.test_split.
        checkpoint: latest | best, or a step.
        data_dir: where the dataset is now; None = where it was in training.
        protocol: fields of config.evaluation to use instead of the run's own, such as {"crops": "ten"}.

    Returns:
        {"loss", "accuracy", "top5", "num_examples"}, and what was evaluated: {"split", "step"}.

    Raises:
        UserError: the folder holds no run or no checkpoint, the split can't be read, or the protocol doesn't fit.
    """
    workdir = files.locate(workdir)
    config = files.load_config(workdir)
    parallel.initialise(config.compilation_cache, config.deterministic)
    parallel.set_matmul_precision(config.matmul_precision)
    if data_dir is not None:
        config.dataset.data_dir = data_dir
    own = config.evaluation.to_dict()
    config.evaluation.update(protocol or {})
    if config.evaluation.to_dict() != own:
        validate(config)
    split = split or config.dataset.test_split
    step, variables, about = read_run(workdir, checkpoint)
    feed = open_feeds(config, (split,))[split]
    experiment = Experiment(config, feed)
    experiment.check_evaluation(variables, feed, trained_on=about["dataset"]["image_shape"])
    p_eval_step, variables = experiment.eval_step(), parallel.replicate(variables)
    values = evaluate_feed(p_eval_step, variables, parallel.replicate(feed.arrays), feed, config.eval_batch_size)
    results = files.read_json(workdir / "results.json")
    same = split == config.dataset.test_split and config.evaluation.to_dict() == own
    if results and same and step == results["steps"] and parallel.is_main():
        files.write_json(workdir / "results.json", results | {"test": values})
    return values | {"split": split, "step": step}


def evaluate_feed(p_eval_step: Callable, variables: Any, arrays: Any, feed: Feed, batch_size: int) -> dict[str, float]:
    """Evaluates a network on every example of a feed, each exactly once, but for those that the feed had to skip.

    Args:
        p_eval_step: from `Experiment.eval_step`.
        variables: {"params", "batch_stats"}, replicated.
        arrays: the feed's, replicated.
        feed: of the split.
        batch_size: global; rounded up to what the devices can share. The result doesn't depend on it.

    Returns:
        {"loss", "accuracy", "top5", "num_examples"}.

    Raises:
        RuntimeError: an example was missed or counted twice, which would be a defect of this package.
    """
    batch_size = parallel.round_up(batch_size)
    share = parallel.share(batch_size)
    sums, left_out = [], 0
    for number, batch in enumerate(feed.eval_batches(batch_size, share)):
        examples = np.arange(number * batch_size, (number + 1) * batch_size)[share]
        left_out += int(np.sum((examples < feed.num_examples) & ~batch["mask"]))
        sums.append(p_eval_step(variables, arrays, parallel.shard(batch)))
        parallel.limit_ahead(sums, feed.ahead)
    values = metrics.means(parallel.to_host(s) for s in sums)
    if left_out > len(feed.skipped) or values["num_examples"] + parallel.total(left_out) != feed.num_examples:
        counted = f"{values['num_examples']} examples of {feed.num_examples}, {len(feed.skipped)} of which were skipped"
        raise RuntimeError(f"evaluation counted {counted}")
    return values


def _skipped(feeds: Iterable[Feed], before: Sequence[str]) -> dict[str, Any]:
    """The images that could not be read, also before a restart: how many, and the paths of the first of them."""
    paths = parallel.union([*before, *(path for feed in feeds for path in feed.skipped)])
    return {"images": len(paths), "paths": paths[:100]}
