import json
import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource

from cnn_research.data import prepare, sources
from cnn_research.errors import UserError

ROOT = Path(__file__).parents[2]


def framed(record: bytes) -> bytes:
    """A record of a TFRecord file; nothing looks at the checksums."""
    return struct.pack("<Q", len(record)) + b"1234" + record + b"5678"


@pytest.fixture
def as_tfrecord(prepare_tfds, tmp_path):
    """A data_dir whose dataset is stored as TFDS does by default, and what its records are."""
    import tensorflow_datasets as tfds
    from PIL import Image

    features = {"image": tfds.features.Image(shape=(4, 5, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
    rng = np.random.default_rng(0)

    def examples(count):
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            yield {"image": image, "label": number % 2}

    folder = Path(prepare_tfds(str(tmp_path), "drawn", {"train": examples(20), "test": examples(6)}, features))
    expected = {}
    for split in ("train", "test"):
        (shard,) = folder.glob(f"*-{split}.array_record-*")
        source = ArrayRecordDataSource([str(shard)])
        expected[split] = source.__getitems__(range(len(source)))
        tfrecord = shard.with_name(shard.name.replace("array_record", "tfrecord"))
        tfrecord.write_bytes(b"".join(map(framed, expected[split])))
        shard.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    return tmp_path, folder, expected


def records_of(source):
    return source.records.__getitems__(range(len(source)))


def test_converts_what_is_stored_as_tfrecord(as_tfrecord):
    data_dir, folder, expected = as_tfrecord
    with pytest.raises(UserError, match="cnn-research prepare drawn --data_dir="):
        sources.open_source("drawn", "train", str(data_dir))
    assert prepare.prepare("drawn", str(data_dir)) == folder
    for split, records in expected.items():
        source = sources.open_source("drawn", split, str(data_dir))
        assert records_of(source) == records
        assert source.classes == ("a", "b") and source[1]["image"].shape == (4, 5, 3)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    prepare.prepare("drawn", str(data_dir))  # nothing is left to do
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not [path for path in before if "incomplete" in path.name]


def test_converts_into_another_folder(as_tfrecord, tmp_path_factory):
    data_dir, folder, expected = as_tfrecord
    before = {path: path.read_bytes() for path in folder.iterdir()}
    other = tmp_path_factory.mktemp("other")
    assert prepare.prepare("drawn", str(data_dir), str(other)) == other / "drawn" / "1.0.0"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert records_of(sources.open_source("drawn", "test", str(other))) == expected["test"]


def test_goes_on_after_an_interruption(as_tfrecord, monkeypatch):
    data_dir, folder, expected = as_tfrecord
    read = prepare._read_tfrecord

    def interrupted(path):
        for number, record in enumerate(read(path)):
            if "test" in path.name and number == 3:
                raise KeyboardInterrupt
            yield record

    splits = list(expected)
    monkeypatch.setattr(prepare, "_read_tfrecord", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("drawn", str(data_dir))
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"
    assert not list(folder.glob("*test.array_record*")), "half a file must have no name that is read"
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record-*")}
    (folder / "drawn-train.array_record-00000-of-00001.incomplete-1").write_bytes(b"of a process that was killed")
    monkeypatch.setattr(prepare, "_read_tfrecord", read)
    prepare.prepare("drawn", str(data_dir))
    assert all(path.stat().st_mtime_ns == time for path, time in done.items()), "what was whole is not done again"
    for split in splits:
        assert records_of(sources.open_source("drawn", split, str(data_dir))) == expected[split]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-3], "ends within a record"),
        (lambda data: data[:5], "ends within a record"),
        (lambda data: b"\x1f\x8b" + data, "compressed"),
        (lambda data: b"", "has 0 records, but should have 20"),
        (lambda data: data + framed(b"one more"), "has 21 records, but should have 20"),
    ],
)
def test_a_damaged_file_is_named(as_tfrecord, damage, says):
    data_dir, folder, _ = as_tfrecord
    (shard,) = folder.glob("*-train.tfrecord-*")
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError) as error:
        prepare.prepare("drawn", str(data_dir))
    assert str(shard) in str(error.value) and says in str(error.value)
    assert json.loads((folder / "dataset_info.json").read_text())["fileFormat"] == "tfrecord"


def run_script(*arguments, code=0, **kwargs):
    command = [sys.executable, str(ROOT / "experiments" / "prepare.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_script_converts(as_tfrecord):
    data_dir, folder, _ = as_tfrecord
    assert f"drawn is ready: {folder}" in run_script("drawn", f"--data_dir={data_dir}")
    assert len(sources.open_source("drawn", "train", str(data_dir))) == 20


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorflow" else object())
    with pytest.raises(UserError) as error:
        prepare.prepare("mnist", str(tmp_path))
    assert "'mnist' needs TensorFlow" in str(error.value) and "pip install 'tensorflow>=2.20'" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_script_without_a_name(tmp_path):
    output = run_script(f"--data_dir={tmp_path}", code=2)
    assert "error: which dataset?" in output and "Traceback" not in output


def test_the_command_in_the_message_prepares(tmp_path):
    """Run as it stands, on a registered dataset that needs no download, with a package that passes for TensorFlow."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("")
    (tmp_path / "sitecustomize.py").write_text("import drawn")  # registers it
    (tmp_path / "drawn.py").write_text(
        "import tensorflow_datasets as tfds\n"
        "from PIL import Image\n"
        "class Drawn(tfds.core.GeneratorBasedBuilder):\n"
        "    VERSION = tfds.core.Version('1.0.0')\n"
        "    def _info(self):\n"
        "        label = tfds.features.ClassLabel(names=['dark', 'light'])\n"
        "        features = {'image': tfds.features.Image(shape=(4, 4, 1)), 'label': label}\n"
        "        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))\n"
        "    def _split_generators(self, dl_manager):\n"
        "        return {'train': self._generate_examples()}\n"
        "    def _generate_examples(self):\n"
        "        yield 0, {'image': Image.new('L', (4, 4), 200), 'label': 'light'}\n"
    )
    data_dir = str(tmp_path / "data")
    with pytest.raises(UserError) as error:
        sources.open_source("drawn", "train", data_dir)
    program, command, *arguments = shlex.split(str(error.value).split("once with: ")[1])
    assert (program, command) == ("cnn-research", "prepare")

    run_script(*arguments, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    source = sources.open_source("drawn", "train", data_dir)
    assert source.classes == ("dark", "light") and source[0]["label"] == 1
    np.testing.assert_array_equal(source[0]["image"], np.full((4, 4, 1), 200, np.uint8))
