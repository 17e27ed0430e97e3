"""Reports from the command line."""

import re

import pytest


def test_a_run_writes_its_report(script, tmp_path):
    workdir = tmp_path / "run"
    out, _ = script.run("train", *script.tiny, f"--workdir={workdir}", "--config.report=True")
    path = re.search(r"^  report +(.*)$", out, re.MULTILINE)[1]
    assert path == str(workdir / "report.html")
    assert "--config.report=True" in (workdir / "report.html").read_text()


def test_a_run_says_how_to_get_its_report(script, tmp_path, reference):
    out, _ = script.run("train", *script.tiny, f"--workdir={reference}")
    assert re.search(rf"python \S*experiments/report\.py --workdir={reference}\n", out)
    assert not (reference / "report.html").exists()


def test_a_report_that_fails_spoils_no_run(script, tmp_path, reference, results):
    """Its place is taken by a folder."""
    workdir = tmp_path / "run"
    (workdir / "report.html").mkdir(parents=True)
    out, err = script.run("train", *script.tiny, f"--workdir={workdir}", "--config.report=True")
    assert f"{workdir}/report.html cannot be written" in out and "Traceback" not in err
    assert results(workdir)["digest"] == results(reference)["digest"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--workdir={tmp}"], ["{tmp} holds no run"]),
        (["--workdir={run}", "--split=validation"], ["validation", "train", "test"]),
        (["--workdir={run}", "--output={tmp}/missing/x.html"], ["{tmp}/missing/x.html cannot be written"]),
    ],
)
def test_mistakes(script, tmp_path, reference, flags, words):
    places = {"tmp": tmp_path, "run": reference}
    _, err = script.run("report", *[flag.format(**places) for flag in flags], code=2)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and all(word.format(**places) in errors[0] for word in words), err
