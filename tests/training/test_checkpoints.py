import asyncio
import gc
import json
import logging
import random
import shutil
import time

import jax
import numpy as np
import optax
import pytest

from cnn_research.config import CHOICES, base_config
from cnn_research.errors import UserError
from cnn_research.models import registry
from cnn_research.training import parallel
from cnn_research.training.checkpoints import Checkpoints, Damaged, any_in
from cnn_research.training.optimizers import create_optimizer
from cnn_research.training.pretrained import read_run
from cnn_research.training.schedules import create_schedule
from cnn_research.training.state import TrainState, create_state, digest

ABOUT = {
    "version": "0.0",
    "config": {"seed": 1, "schedule": {"boundaries": ["50%"]}, "model": {"filters": None}},
    "dataset": {"classes": ["null", "ä ß 零"], "mean": [0.1307], "image_shape": [28, 28, 1]},
    "seconds": 1.25,
    "examples_per_second": None,
}


def config(keep=1, best_metric="accuracy"):
    config = base_config().checkpoint
    config.update(keep=keep, best_metric=best_metric)
    return config


def tiny(step):
    """A state whose arrays tell its step."""
    return TrainState(
        step=np.int32(step).reshape(()),
        params={"dense": {"kernel": np.full((2, 3), step, np.float32)}},
        batch_stats={},
        opt_state=(),
    )


def scores(accuracy=0.5, top5=0.5, loss=1.0):
    return {"loss": loss, "accuracy": accuracy, "top5": top5, "num_examples": 10}


def steps_on_disk(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def save_all(folder, config, saves):
    with Checkpoints(folder, config) as checkpoints:
        for step, metrics in saves:
            checkpoints.save(tiny(step), ABOUT, metrics)


# ------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("keep", "metric", "saves", "kept", "best"),
    [
        (1, "accuracy", [0.1, 0.9, 0.5, 0.4], [2, 4], 2),
        (1, "accuracy", [0.1, 0.2, 0.3], [3], 3),
        (2, "accuracy", [0.9, 0.1, 0.2, 0.3], [1, 3, 4], 1),
        (3, "accuracy", [0.9, 0.1, 0.2, 0.3], [1, 2, 3, 4], 1),
        (2, "accuracy", [0.5, 0.1, 0.9], [1, 2, 3], 3),  # 1 was the best when 2 was saved
        (2, "accuracy", [0.5, 0.1, 0.9, 0.3], [3, 4], 3),
        (1, "loss", [0.9, 0.1, 0.5, 0.4], [2, 4], 2),
        (1, "loss", [-0.5, 0.1, 0.5], [1, 3], 1),
        (1, "top5", [0.2, 0.9, 0.5], [2, 3], 2),
        # Of equals the first is the best.
        (1, "accuracy", [0.9, 0.9, 0.1], [1, 3], 1),
        (1, "loss", [0.3, 0.3, 0.9], [1, 3], 1),
        (1, "accuracy", [0.0, 0.0], [1, 2], 1),
        # Saved between two evaluations: never the best, and not kept for ever.
        (1, "accuracy", [0.5, None, None], [1, 3], 1),
        (1, "accuracy", [None, None, None], [3], None),
        (1, "loss", [None, 0.7, None, 0.8, None], [2, 5], 2),
        (1, "accuracy", [None, 0.5], [2], 2),
    ],
)
def test_newest_and_best_are_kept_and_nothing_else(tmp_path, keep, metric, saves, kept, best):
    values = [None if value is None else scores(**{metric: value}) for value in saves]
    save_all(tmp_path / "c", config(keep, metric), list(enumerate(values, start=1)))
    assert steps_on_disk(tmp_path / "c") == kept
    with Checkpoints(tmp_path / "c", config(keep, metric)) as checkpoints:
        assert checkpoints.latest_step == len(saves)
        assert checkpoints.best == (None if best is None else {"step": best, **values[best - 1]})
        for step in kept:
            assert (checkpoints.restore_network(step)["params"]["dense"]["kernel"] == step).all()


@pytest.mark.parametrize(
    ("metric", "value", "is_best"),
    [
        ("accuracy", 0.6, True),
        ("accuracy", 0.5, False),
        ("accuracy", 0.4, False),
        ("loss", 0.4, True),
        ("loss", 0.6, False),
    ],
)
def test_is_best_of_a_run_that_goes_on(tmp_path, metric, value, is_best):
    new = scores(**{metric: value})
    with Checkpoints(tmp_path / "c", config(best_metric=metric)) as checkpoints:
        assert checkpoints.best is None and checkpoints.latest_step is None and checkpoints.is_best(new)
        checkpoints.save(tiny(1), ABOUT, scores(**{metric: 0.5}))
        assert checkpoints.is_best(new) == is_best
    with Checkpoints(tmp_path / "c", config(best_metric=metric)) as checkpoints:
        assert checkpoints.is_best(new) == is_best
        checkpoints.save(tiny(2), ABOUT, new)
        assert checkpoints.best["step"] == (2 if is_best else 1)
    assert steps_on_disk(tmp_path / "c") == ([2] if is_best else [1, 2])


def test_keep_may_change_between_runs(tmp_path):
    save_all(tmp_path / "c", config(keep=3), [(k, scores()) for k in (1, 2, 3)])
    save_all(tmp_path / "c", config(keep=1), [(4, scores(0.1))])
    assert steps_on_disk(tmp_path / "c") == [1, 4]


@pytest.mark.parametrize(
    ("given", "opened"),
    [("runs/c", "{here}/runs/c"), ("/runs/c", "/runs/c"), ("gs://bucket/runs/c", "gs://bucket/runs/c")],
)
def test_folder(tmp_path, monkeypatch, given, opened):
    """Local or not: what orbax is asked to open. There is no bucket here to really do it with."""

    class Asked(Exception):
        pass

    def manager(directory, **_):
        raise Asked(str(directory))

    monkeypatch.setattr("cnn_research.training.checkpoints.ocp.CheckpointManager", manager)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Asked) as asked:
        Checkpoints(given, config(), read_only=True)
    assert str(asked.value) == opened.format(here=tmp_path)


def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_all("runs/c", config(), [(1, None)])
    assert steps_on_disk(tmp_path / "runs" / "c") == [1]


# --------------------------------------------------------------------------------- a whole state and back


def real_state(optimizer_name, **fields):
    """A state in the middle of a training, so that nothing in it is zero."""
    settings = base_config().optimizer
    settings.update(name=optimizer_name, weight_decay=0.1, **fields)
    optimizer = create_optimizer(settings, create_schedule("cosine", 0.1, total_steps=10, warmup_steps=2))
    model = registry.create_model("convnet", 3, filters=(2,), batch_norm="after_conv", dense=())
    state = create_state(model, optimizer, 0, (4, 4, 1))
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == np.int32:
            return np.array(7, np.int32)
        return rng.normal(size=leaf.shape).astype(leaf.dtype)

    return state, jax.tree.map(fill, state)


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        where = jax.tree_util.keystr(path)
        assert isinstance(a, (np.ndarray, np.generic)) and a.dtype == e.dtype and a.shape == e.shape, where
        np.testing.assert_array_equal(a, e, err_msg=where)


FREEZING = {"freeze": ("conv",), "lookahead_steps": 2}  # and what the slow weights of the others are kept in


@pytest.mark.parametrize(
    ("optimizer", "fields"),
    [*((name, {}) for name in CHOICES["optimizer.name"]), ("sgd", FREEZING), ("adam", FREEZING), ("muon", FREEZING)],
    ids=str,
)
def test_restore(tmp_path, optimizer, fields):
    like, state = real_state(optimizer, **fields)
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(state, ABOUT, scores())
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        restored, about = checkpoints.restore(7, like)
        assert checkpoints.about(7) == about == ABOUT | {"best": {"step": 7, **scores()}}
        network = checkpoints.restore_network(7)
    assert_equal(restored, state)
    assert_equal(network, state.variables)
    # What a resumed run does with it first.
    assert_equal(parallel.to_host(parallel.replicate(restored)), state)


def test_network_is_restored_in_a_process_that_knows_nothing_else(tmp_path):
    _, state = real_state("adam")
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(state, ABOUT, None)
    shutil.rmtree(tmp_path / "c" / "7" / "training")
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        assert_equal(checkpoints.restore_network(7), state.variables)
        assert checkpoints.about(7) == ABOUT | {"best": None}
        assert checkpoints.best is None


def test_network_without_batch_statistics(tmp_path):
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(tiny(3), ABOUT, None)
        assert_equal(checkpoints.restore(3, tiny(0))[0], tiny(3))
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        assert checkpoints.restore_network(3)["batch_stats"] == {}


def test_saved_from_eight_devices(tmp_path):
    """The state comes from all devices; what is on the disk names none of them."""
    like, state = real_state("momentum")
    step = parallel.pmap_step(lambda state: jax.tree.map(lambda x: x + 1, state), donate_state=True)
    replicated = step(parallel.replicate(state))
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(parallel.to_host(replicated), ABOUT, None)
        for _ in range(3):  # training goes on while it is written, in the memory that the state was in
            replicated = step(replicated)
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        restored, _ = checkpoints.restore(8, like)
    assert_equal(restored, jax.tree.map(lambda x: (x + 1).astype(x.dtype), state))
    assert not list((tmp_path / "c").rglob("*sharding*"))
    device_state = jax.device_put(restored, jax.devices()[5])  # any one device
    assert_equal(jax.tree.map(np.asarray, device_state), restored)


def test_another_network_is_not_restored(tmp_path):
    _, state = real_state("sgd")
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(state, ABOUT, None)
        other = registry.create_model("convnet", 5, filters=(2,), batch_norm="after_conv", dense=())
        with pytest.raises(Damaged, match="checkpoint 7 can't be read"):
            checkpoints.restore(7, create_state(other, optax.sgd(0.1), 0, (4, 4, 1)))


# -------------------------------------------------------------------------------------- what a kill leaves


@pytest.mark.parametrize("saved", [2, 3], ids=["written again", "skipped"])
def test_half_written_checkpoint_is_not_seen_and_cleaned_away(tmp_path, saved):
    folder = tmp_path / "c"
    save_all(folder, config(), [(1, scores())])
    half = folder / "2.orbax-checkpoint-tmp"  # the name under which orbax writes, until all is there
    shutil.copytree(folder / "1", half)
    shutil.rmtree(half / "network")
    with Checkpoints(folder, config()) as checkpoints:
        assert checkpoints.latest_step == 1 and checkpoints.best["step"] == 1
        checkpoints.save(tiny(saved), ABOUT, scores(0.9))  # waits until the cleaning is over
    with Checkpoints(folder, config()) as checkpoints:
        assert checkpoints.latest_step == saved
        assert_equal(checkpoints.restore(saved, tiny(0))[0], tiny(saved))
    assert steps_on_disk(folder) == [saved]


def test_reading_disturbs_no_run_that_is_writing(tmp_path, caplog):
    folder = tmp_path / "c"
    save_all(folder, config(), [(1, scores())])
    half = folder / "2.orbax-checkpoint-tmp"
    shutil.copytree(folder / "1", half)
    before = sorted(folder.rglob("*"))
    with Checkpoints(folder, config(), read_only=True) as checkpoints:
        assert checkpoints.latest_step == 1 and checkpoints.best["step"] == 1
        assert checkpoints.about(1)["seconds"] == 1.25
        assert_equal(checkpoints.restore_network(1), tiny(1).variables)
    assert sorted(folder.rglob("*")) == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_any_in(tmp_path):
    folder = tmp_path / "c"
    assert not any_in(folder) and not folder.exists()
    save_all(folder, config(), [(1, None)])
    assert any_in(folder)
    (folder / "1").rename(folder / "1.orbax-checkpoint-tmp")
    assert not any_in(folder)
    (folder / "1.orbax-checkpoint-tmp").rename(folder / "1")
    shutil.rmtree(folder / "1" / "network")
    assert any_in(folder)  # damaged: to be told, not to be begun anew


def test_reading_creates_nothing(tmp_path):
    with Checkpoints(tmp_path / "c", config(), read_only=True) as checkpoints:
        assert checkpoints.latest_step is None and checkpoints.best is None
    assert not list(tmp_path.iterdir())


def test_nothing_is_lost_when_the_block_is_left_by_an_exception(tmp_path):
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(tiny(4), ABOUT, None)
        raise KeyboardInterrupt
    assert steps_on_disk(tmp_path / "c") == [4]


def test_metrics_keep_every_digit(tmp_path):
    metrics = scores(accuracy=1 / 3, loss=2.302585092994046)
    save_all(tmp_path / "c", config(), [(1, metrics)])
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        assert checkpoints.best == {"step": 1, **metrics}


# ------------------------------------------------------------------------------------------- what is damaged


def flip(path, where=0.5):
    """Turns one byte in the middle of a file into another."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0xFF
    path.write_bytes(content)


def cut(path, where=0.5):
    path.write_bytes(path.read_bytes()[: int(where * path.stat().st_size)])


def edit(path):
    """JSON that is still JSON, of other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 2.5}))


def arrays(part):
    """The file that holds a part's arrays."""
    return lambda step: next((step / part / "d").iterdir())


DAMAGE = {
    "arrays of the network cut short": (arrays("network"), cut),
    "arrays of the network emptied": (arrays("network"), lambda path: cut(path, 0)),
    "arrays of the network changed": (arrays("network"), flip),
    "arrays of the network gone": (arrays("network"), lambda path: path.unlink()),
    "arrays of the optimizer changed": (arrays("training"), flip),
    "index of the arrays cut short": (lambda step: step / "network" / "manifest.ocdbt", cut),
    "index of the arrays gone": (lambda step: step / "network" / "manifest.ocdbt", lambda path: path.unlink()),
    "metadata of the optimizer gone": (lambda step: step / "training" / "_METADATA", lambda path: path.unlink()),
    "metadata of the optimizer cut short": (lambda step: step / "training" / "_METADATA", cut),
    "metadata of the network cut short": (lambda step: step / "network" / "_METADATA", cut),
    "network gone": (lambda step: step / "network", shutil.rmtree),
    "optimizer gone": (lambda step: step / "training", shutil.rmtree),
    "about cut short": (lambda step: step / "about" / "metadata", cut),
    "about changed": (lambda step: step / "about" / "metadata", edit),
    "about gone": (lambda step: step / "about", shutil.rmtree),
    "everything gone": (
        lambda step: step,
        lambda step: [shutil.rmtree(path) for path in step.iterdir() if path.is_dir()],
    ),
}


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    """A folder with a good checkpoint of step 6 and one of step 7, and what is in them."""
    folder = tmp_path_factory.mktemp("two") / "c"
    like, seven = real_state("momentum")
    six = jax.tree.map(lambda leaf: leaf - 1, seven)
    with Checkpoints(folder, config(keep=2)) as checkpoints:
        checkpoints.save(six, ABOUT, scores(0.9))
        checkpoints.save(seven, ABOUT, scores(0.1))
    return folder, like, six, seven


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_noticed_and_the_one_before_used(two_saved, tmp_path, caplog, name):
    folder, like, six, _ = two_saved
    folder = shutil.copytree(folder, tmp_path / "c")
    find, damage = DAMAGE[name]
    damage(find(folder / "7"))
    caplog.set_level(logging.WARNING)
    with Checkpoints(folder, config(keep=2)) as checkpoints:
        state, about = checkpoints.restore_latest(like)
        assert_equal(state, six)
        assert about["best"]["step"] == checkpoints.best["step"] == checkpoints.latest_step == 6
        (told,) = [
            record.getMessage() for record in caplog.records if "using checkpoint 6 instead" in record.getMessage()
        ]
        assert "checkpoint 7" in told and str(folder) in told and "\n" not in told
        # Step 7 comes again, and is saved again.
        checkpoints.save(jax.tree.map(lambda leaf: leaf + 1, six), ABOUT, scores(0.2))
    assert steps_on_disk(folder) == [6, 7] and (tmp_path / "damaged_checkpoint_7").is_dir()
    with Checkpoints(folder, config(keep=2)) as checkpoints:
        assert int(checkpoints.restore_latest(like)[0].step) == 7


@pytest.mark.parametrize("name", [name for name in DAMAGE if "optimizer" not in name])
def test_evaluation_notices_it_too_and_changes_nothing(two_saved, tmp_path, name):
    folder, _, six, _ = two_saved
    folder = shutil.copytree(folder, tmp_path / "c")
    find, damage = DAMAGE[name]
    damage(find(folder / "7"))
    before = sorted(tmp_path.rglob("*"))
    with Checkpoints(folder, config(), read_only=True) as checkpoints:
        step, network = checkpoints.restore_latest_network()
        assert step == 6
        assert_equal(network, six.variables)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("use", ["restore_latest", "restore_latest_network", "restore_best_network"])
def test_nothing_is_begun_anew_where_no_checkpoint_is_whole(two_saved, tmp_path, use):
    folder, like, _, _ = two_saved
    folder = shutil.copytree(folder, tmp_path / "c")
    for step in folder.iterdir():
        flip(arrays("network")(step))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught, Checkpoints(folder, config()) as checkpoints:
        getattr(checkpoints, use)(*[like] * (use == "restore_latest"))
    assert str(folder) in str(caught.value) or "checkpoint 6" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


class LateLoop(asyncio.SelectorEventLoop):
    """Lets more than one array fail before it stops, which is otherwise a matter of luck."""

    turns = 0  # how far those that failed later still come: to a task's end, or not as far

    def stop(self):
        time.sleep(0.1)
        for _ in range(self.turns):
            self.call_soon(lambda: None)  # a turn without anything to do would wait for it
            self._run_once()
        super().stop()


def test_of_many_damaged_arrays_one_is_told(tmp_path, monkeypatch):
    arrays = np.random.default_rng(0).normal(size=(20, 99, 99)).astype(np.float32)
    state = tiny(1).replace(params={str(number): array for number, array in enumerate(arrays)})
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        checkpoints.save(state, ABOUT, None)
    # All but the largest, of the arrays themselves: none of the arrays can be opened.
    files = [path for path in (tmp_path / "c/1/network").rglob("d/*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_size)[:-1]:
        content = np.fromfile(path, np.uint8)
        content[100::500] ^= 0xFF
        content.tofile(path)

    def read():
        with Checkpoints(tmp_path / "c", config(), read_only=True) as checkpoints:
            for LateLoop.turns in range(3):
                with pytest.raises(Damaged, match="checkpoint 1 can't be read"):
                    checkpoints.restore(1, state)
                gc.collect()

    told = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    asyncio_logger = logging.getLogger("asyncio")
    monkeypatch.setattr(asyncio, "new_event_loop", LateLoop)
    monkeypatch.setattr(asyncio_logger, "handlers", [handler])
    read()
    assert not told


@pytest.mark.parametrize(
    ("reason", "is_told"),
    [
        # What TensorStore says of a damaged array, shortened; whether several fail at once is a matter of luck above.
        (
            'DATA_LOSS: Error opening "zarr" driver: Error reading "x/.zarray" in OCDBT database at local file "y"',
            False,
        ),
        ("of somebody else", True),
    ],
)
def test_of_failures_that_nobody_waited_for_those_of_others_are_told(reason, is_told, caplog):
    async def fail():
        raise ValueError(reason)

    async def leave():
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(leave())
    assert ("Task exception was never retrieved" in caplog.text and reason in caplog.text) == is_told
    assert is_told or not caplog.text


def test_none_is_none(tmp_path):
    like, _ = real_state("sgd")
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        assert checkpoints.restore_latest(like) is None
        assert checkpoints.restore_latest_network() is None and checkpoints.restore_best_network() is None
        assert checkpoints.restore_network_at(1) is None


@pytest.mark.full
@pytest.mark.parametrize("damage", [cut, flip, lambda path, _: path.unlink()], ids=["cut", "flip", "delete"])
def test_whatever_happens_to_any_file_no_wrong_state_is_restored(two_saved, tmp_path, damage):
    """Each file of a checkpoint in turn, at a random place."""
    source, like, six, seven = two_saved
    places, noticed = random.Random(0), 0
    files = sorted(path.relative_to(source) for path in (source / "7").rglob("*") if path.is_file())
    for number, file in enumerate(files):
        folder = shutil.copytree(source, tmp_path / str(number))
        damage(folder / file, places.random())
        with Checkpoints(folder, config(keep=2)) as checkpoints:
            state, _ = checkpoints.restore_latest(like)
        expected = {6: six, 7: seven}[int(state.step)]
        assert_equal(state, expected)
        noticed += int(state.step) == 6
        print(file, "->", int(state.step))
    assert noticed >= 5


def test_checkpoints_of_older_versions_have_no_digests(two_saved, tmp_path):
    source, like, _, seven = two_saved
    folder = shutil.copytree(source, tmp_path / "c")
    path = folder / "7" / "about" / "metadata"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "digests"}))
    with Checkpoints(folder, config()) as checkpoints:
        assert_equal(checkpoints.restore_latest(like)[0], seven)


def test_digest_of_the_network_is_that_of_the_results(two_saved):
    folder, _, _, seven = two_saved
    digests = json.loads((folder / "7" / "about" / "metadata").read_text())["digests"]
    assert digests["network"] == digest(seven.variables) and set(digests) == {"network", "training", "about"}


@pytest.mark.parametrize("keep", [1, 2])
def test_what_a_kill_left_half_deleted_goes(tmp_path, keep):
    """The run was killed while the checkpoint before the last was deleted, and has nothing left to save."""
    folder = tmp_path / "c"
    save_all(folder, config(keep=3), [(1, None), (2, None), (3, None)])
    shutil.rmtree(folder / "1" / "network")
    with Checkpoints(folder, config(keep)) as checkpoints:
        assert int(checkpoints.restore_latest(tiny(0))[0].step) == 3
    assert steps_on_disk(folder) == [2, 3][-keep:]


def test_processes_that_see_different_checkpoints_stop(tmp_path, monkeypatch):
    save_all(tmp_path / "c", config(), [(1, None)])
    monkeypatch.setattr(parallel, "agree", lambda text: False)
    with Checkpoints(tmp_path / "c", config()) as checkpoints, pytest.raises(UserError, match="storage that all"):
        checkpoints.restore_latest(tiny(0))


@pytest.mark.parametrize("which", ["latest", "best", "1"])
@pytest.mark.parametrize("sees_any", [True, False])
def test_processes_that_read_different_networks_stop(tmp_path, monkeypatch, which, sees_any):
    """Also the one that sees none: the others would wait for its word."""
    if sees_any:
        save_all(tmp_path / "checkpoints", config(), [(1, scores(0.5))])
    monkeypatch.setattr(parallel, "agree", lambda text: False)
    with pytest.raises(UserError, match="storage that all"):
        read_run(tmp_path, which)


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    save_all(tmp_path / "c", config(), [(1, scores(0.5))])
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    with Checkpoints(tmp_path / "c", config()) as checkpoints:
        assert int(checkpoints.restore_latest(tiny(0))[0].step) == 1
        checkpoints.save(tiny(2), ABOUT, scores(0.9))
        assert checkpoints.best["step"] == 2 and not checkpoints.is_best(scores(0.8))  # as the one that writes
    assert sorted(tmp_path.rglob("*")) == before


def test_the_latest_is_forgotten_unless_it_is_the_only_one(tmp_path):
    with Checkpoints(tmp_path, config(keep=2)) as checkpoints:
        for step, accuracy in ((1, 0.5), (2, 0.9)):
            checkpoints.save(tiny(step), ABOUT, scores(accuracy))
        checkpoints.wait()
        assert (checkpoints.latest_step, checkpoints.best["step"]) == (2, 2)
        checkpoints.forget_latest()
        assert (checkpoints.latest_step, checkpoints.best["step"]) == (1, 1)
        checkpoints.forget_latest()
        assert checkpoints.latest_step == 1
    assert steps_on_disk(tmp_path) == [1]


@pytest.mark.parametrize("newest", ["forgotten", "damaged"])
@pytest.mark.parametrize("reopened", [False, True])
def test_who_goes_back_finds_the_best_of_that_time(tmp_path, newest, reopened):
    saves = [(1, scores(0.5)), (2, scores(0.4)), (3, scores(0.9))]
    if reopened:
        save_all(tmp_path, config(keep=2), saves[:2])
    with Checkpoints(tmp_path, config(keep=2)) as checkpoints:
        for step, metrics in saves[2 * reopened :]:
            checkpoints.save(tiny(step), ABOUT, metrics)
        if newest == "forgotten":
            checkpoints.wait()
            checkpoints.forget_latest()
            assert not (tmp_path / "3").exists()  # not a moment later: other processes look at once
    if newest == "damaged":
        shutil.rmtree(tmp_path / "3" / "network")
    with Checkpoints(tmp_path, config(keep=2)) as checkpoints:
        assert int(checkpoints.restore_latest(tiny(0))[0].step) == 2
        assert checkpoints.best["step"] == 1
        assert (checkpoints.restore_best_network()[1]["params"]["dense"]["kernel"] == 1).all()
