"""Prepares TFDS datasets as array_record: downloads them with TensorFlow, or converts what is there as tfrecord."""

import importlib.util
import json
import os
import struct
from collections.abc import Iterator

from absl import logging
from tqdm import tqdm

from cnn_research.data import folder, shapes
from cnn_research.data import tfds as tfds_source
from cnn_research.errors import UserError


def prepare(name: str, data_dir: str = "", output_dir: str = ""):
    """Makes a dataset readable, if it isn't already.

    Can be interrupted at any moment and repeated: what is whole has its final name, and nothing else does.

    Args:
      name: of a TFDS dataset: "mnist", "mnist:3.0.1", "dataset/config:1.0.0".
      data_dir: folder of prepared datasets; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      output_dir: where a conversion is written, if not beside the files that it reads.

    Returns:
      The `epath.Path` of the prepared dataset.

    Raises:
      UserError: TensorFlow is missing where it is needed, or the dataset is unknown, can't be downloaded, read or
        written.
    """
    if name == "digits" or shapes.is_shapes(name) or name.startswith(folder.PREFIX):
        raise UserError(f"{name!r} needs no preparation: it can be trained on as it is.")
    found = tfds_source.locate(name, data_dir)
    try:
        if found.folder is None:
            return _download(name, found.root)
        stored_as = tfds_source.stored_as(found.folder)
        if stored_as == "tfrecord":
            return _convert(found.folder, found.root, output_dir)
    except OSError as error:
        raise UserError(f"Preparing {name!r} in {output_dir or found.root} failed: {error}") from error
    if stored_as != "array_record":
        raise UserError(f"{name!r} in {found.folder} is stored as {stored_as}, which can't be converted.")
    logging.info("%s is prepared already: %s", name, found.folder)
    return found.folder


def _download(name: str, root):
    # TFDS would find out only after it has downloaded everything.
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f"Preparing {name!r} needs TensorFlow (reading it doesn't): pip install 'tensorflow>=2.20'")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.fspath(root), file_format="array_record")
        builder.download_and_prepare()  # writes into another folder and renames that; shows its own progress
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(f"TFDS knows no dataset {name!r}: {str(error).splitlines()[0]}") from None
    except AssertionError as error:  # what has to be downloaded by hand, such as ImageNet; TFDS says how
        raise UserError(f"Preparing {name!r}: {error}") from None
    except tfds.download.DownloadError as error:
        raise UserError(f"Downloading {name!r} failed: {error}") from None
    return tfds_source.locate(name, os.fspath(root)).folder


def _convert(folder, root, output_dir: str):
    """Copies the records of every shard as they are; needs no TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from etils import epath

    target = epath.Path(output_dir).expanduser() / folder.relative_to(root) if output_dir else folder
    target.mkdir(parents=True, exist_ok=True)
    builder = tfds.builder_from_directory(folder)
    shards = [
        (epath.Path(path), length)
        for split in builder.info.splits.values()
        for path, length in zip(split.filepaths, split.shard_lengths, strict=True)
    ]
    logging.info("converting %s to array_record in %s", folder, target)
    with tqdm(total=sum(length for _, length in shards), unit=" records", delay=1, disable=None) as bar:
        for path, length in shards:
            shard = target / path.name.replace(".tfrecord-", ".array_record-")
            if not (shard.exists() and _count(shard) == length):  # else an interrupted conversion came this far
                temporary = shard.with_name(f"{shard.name}.incomplete-{os.getpid()}")
                # Groups of one record: random access then unpacks nothing that it doesn't need.
                writer = array_record_module.ArrayRecordWriter(os.fspath(temporary), "group_size:1")
                try:
                    for record in _read_tfrecord(path):
                        writer.write(record)
                        bar.update()
                    writer.close()
                    if _count(temporary) != length:
                        raise UserError(f"{path} has {_count(temporary)} records, but should have {length}.")
                    temporary.replace(shard)
                finally:
                    if writer.is_open():
                        writer.close()
                    temporary.unlink(missing_ok=True)
            else:
                bar.update(length)
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "array_record"}
    for file in folder.iterdir():  # names of labels, and whatever else belongs to it
        if target != folder and file.is_file() and ".tfrecord-" not in file.name and file.name != "dataset_info.json":
            file.copy(target / file.name, overwrite=True)
    temporary = target / f"dataset_info.json.incomplete-{os.getpid()}"
    temporary.write_text(json.dumps(info, indent=2))
    temporary.replace(target / "dataset_info.json")  # last: from now on it is prepared
    if target == folder:
        logging.info("the files %s/*.tfrecord-* are no longer needed and may be removed", folder)
    return target


def _count(shard) -> int:
    """Returns the number of records of an array_record file, 0 if it can't be read."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(shard))
    except (RuntimeError, ValueError):
        return 0
    try:
        return reader.num_records()
    finally:
        reader.close()


def _read_tfrecord(path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file: each is its length (8 bytes, little-endian), a checksum of that (4), the
    data, and a checksum of the data (4). The checksums are not looked at: Python takes a second for a few megabytes.

    https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details

    Raises:
      UserError: the file is cut short, compressed, or something else.
    """
    size = path.stat().length
    with path.open("rb") as file:
        done = 0
        while done < size:
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            done += 12 + length + 4
            if done > size:
                raise UserError(f"{path} is no whole TFRecord file: it ends within a record, or is compressed.")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)
