"""Writes a trained network to a file that needs neither this package nor Flax, only JAX."""

from pathlib import Path

from absl import flags

from cnn_research import export
from cnn_research.commands import launch, network
from cnn_research.errors import UserError


def run() -> None:
    """Runs the command."""
    network.define_flags()
    flags.adopt_module_key_flags(network)  # so that --help shows them
    flags.DEFINE_string("output", "network.zip", "The file to write.")
    launch.run(main)


def main() -> None:
    """Writes the file, and prints the lines that load it."""
    predictor = network.given_network()
    content = export.export_stablehlo(predictor)
    path = Path(flags.FLAGS.output).expanduser()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"--output={path}: can't be written: {error.strerror or error}") from None
    shape, count = ", ".join(map(str, predictor.image_shape)), len(predictor.classes)
    print(f"# {path}: {predictor.name}, {len(content) / 1e6:,.1f} MB, for {', '.join(export.PLATFORMS)}. To load it:\n")
    print(export.LOADER)
    print(f"about, network = load({str(path)!r})")
    print(f'network(images)["probabilities"]  # of uint8[N, {shape}]; about["classes"] are their {count} names')
