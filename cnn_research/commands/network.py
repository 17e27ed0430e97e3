"""The flags of commands that use a trained network: which one, of a run or of a published file."""

from absl import flags

from cnn_research.data.resize import HOW
from cnn_research.errors import UserError
from cnn_research.inference import Predictor, read_classes


def define_flags() -> None:
    """Defines --workdir, --checkpoint, --model, --weights, --classes, --resize and --batch_size."""
    flags.DEFINE_string("workdir", None, "Folder of a run, whose network is used.")
    flags.DEFINE_string("checkpoint", "latest", "Of the run: latest, best or a step.")
    flags.DEFINE_string("model", None, "Instead of a run: the name of a network, with --weights.")
    flags.DEFINE_string("weights", None, "Of --model: a .pth or .safetensors file of torchvision's or timm's.")
    flags.DEFINE_string("classes", None, "Of --model: a text file with the name of each class on a line of its own.")
    flags.DEFINE_enum("resize", None, HOW, "What brings images to the network's size, if not what the run says.")
    flags.DEFINE_integer("batch_size", 0, "Images that are computed at once; 0 = as many as in evaluation, which "
                         "gives its logits to the bit, but no more than a million pixels.", lower_bound=0)  # fmt: skip


def given_network() -> Predictor:
    """Makes the network that the flags ask for.

    Raises:
        UserError: they ask for none or for two, or it can't be had.
    """
    given = flags.FLAGS
    resizing = {"resizing": given.resize} if given.resize else {}
    if bool(given.workdir) == bool(given.model):
        raise UserError("a network must be given: --workdir of a run, or --model and --weights")
    if given.workdir:
        if given.weights or given.classes:
            raise UserError("--weights and --classes belong to --model: a run has its own")
        return Predictor.from_workdir(given.workdir, given.checkpoint, **resizing, batch_size=given.batch_size)
    if not given.weights:
        raise UserError(f"--model={given.model} needs --weights: a .pth or .safetensors file")
    classes = read_classes(given.classes) if given.classes else ()
    return Predictor.from_zoo(given.model, given.weights, classes, **resizing, batch_size=given.batch_size)
