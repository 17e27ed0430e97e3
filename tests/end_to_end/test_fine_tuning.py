"""A run that starts from another run's weights, as people launch it."""

import json
import shutil


def test_from_one_run_to_another(script, reference, results, read_rows, tmp_path):
    earlier = shutil.copytree(reference, tmp_path / "earlier")
    flags = [
        *script.tiny, f"--config.init.weights={earlier}", f"--workdir={tmp_path / 'run'}", "--config.duration=20st",
        "--config.optimizer.freeze=^conv,^norm", "--config.freeze_batch_stats=True",
        "--config.optimizer.learning_rate_multipliers=^dense=0.1",
    ]  # fmt: skip
    script.run("train", *flags)
    before, after = (read_rows(workdir, "train")[0]["loss"] for workdir in (reference, tmp_path / "run"))
    assert after < before - 0.5, "it begins where the other ended"
    # What goes on from its own checkpoint needs the weights no more.
    shutil.rmtree(earlier)
    script.run("train", *flags, "--config.duration=30st")
    assert results(tmp_path / "run")["steps"] == 30
    _, err = script.run("train", *flags, f"--workdir={tmp_path / 'other'}", code=2)
    assert err.splitlines()[-1].startswith("error: config.init.weights=") and not (tmp_path / "other").exists()


def test_what_is_frozen_must_exist(script, tmp_path):
    _, err = script.run(
        "train", *script.tiny, "--config.optimizer.freeze=^convolution1", f"--workdir={tmp_path}", code=2
    )
    assert "'^convolution1' is found in no parameter's path" in err and "conv1" in err
    assert json.dumps(sorted(tmp_path.iterdir())) == "[]"
