"""The flags of a command that runs on several hosts, with one process on each."""

from absl import flags

from cnn_research.errors import UserError
from cnn_research.training import parallel


def define_flags() -> None:
    """Defines the flags; none is needed on one host, on Cloud TPU or under SLURM."""
    flags.DEFINE_string("coordinator_address", None, "On several hosts: HOST:PORT of process 0, any free port there.")
    flags.DEFINE_integer(
        "num_processes", None, "On several hosts: how many, with one process each. 1 = alone, whatever is detected."
    )
    flags.DEFINE_integer("process_id", None, "On several hosts: which of them this is, from 0.")
    flags.DEFINE_list("local_device_ids", None, "On several hosts: the GPUs of this process, such as 0,1; else all.")


def connect() -> None:
    """Joins the other hosts, if there are any. Must come before JAX is used.

    Raises:
        UserError: flags are missing or wrong, or the coordinator can't be reached.
    """
    given = flags.FLAGS
    ids = given.local_device_ids
    if ids and not all(text.strip().isdigit() for text in ids):
        raise UserError(f"--local_device_ids={','.join(ids)}: must be numbers, such as 0,1,2,3")
    parallel.connect(given.coordinator_address, given.num_processes, given.process_id, ids and [int(i) for i in ids])
