"""Says what images show, by a trained network: the most likely classes of each, as a table, JSON, CSV or pictures."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging
from tqdm import tqdm

from cnn_research.commands import launch, network
from cnn_research.data.image_files import find_images
from cnn_research.errors import UserError
from cnn_research.inference import Prediction

_TOLD = 20  # of images that can't be used; those after them are only counted


def run() -> None:
    """Runs the command."""
    network.define_flags()
    flags.adopt_module_key_flags(network)  # so that --help shows them
    flags.DEFINE_integer("top", 5, "How many classes are told.", lower_bound=1)
    flags.DEFINE_bool("json", False, "JSON instead of a table.")
    flags.DEFINE_bool("csv", False, "CSV instead of a table.")
    flags.DEFINE_string("cards", None, "Folder for a picture of each image with bars of the confidences.")
    launch.run(main, arguments=sys.maxsize)


def main(*images: str) -> None:
    """Prints the most likely classes of images, files, folders or patterns; with --cards, draws them too."""
    given = flags.FLAGS
    if given.json and given.csv:
        raise UserError("--json and --csv: choose one")
    paths = find_images(images)
    predictor = network.given_network()
    predictions, broken, draw = [], [], _card_writer(len(paths))

    def leave_out(error: UserError) -> None:
        broken.append(str(error))
        if len(broken) <= _TOLD:
            logging.warning("%s", error)

    bar = tqdm(total=len(paths), disable=not sys.stderr.isatty(), dynamic_ncols=True, unit=" images", leave=False)
    with bar:
        for prediction in predictor.stream(paths, on_error=leave_out):
            predictions.append(_as_dict(prediction))
            draw(prediction)
            bar.update(len(predictions) + len(broken) - bar.n)
    if given.json:
        print(json.dumps({"network": predictor.name, "images": predictions, "left_out": broken}, indent=2))
    elif given.csv:
        print(_as_csv(predictions), end="")
    elif predictions:
        print("\n".join(_as_table(predictions)))
    logging.info(f"{predictor.name}: {len(predictions):,} of {len(paths):,} images")
    if broken:  # what could be said has been said; the exit code says that it isn't all
        raise UserError(f"{len(broken):,} of {len(paths):,} images could not be used")


def _card_writer(count: int) -> Callable[[Prediction], None]:
    """Returns what draws a prediction, if --cards asks for it."""
    if not flags.FLAGS.cards:
        return lambda prediction: None
    from cnn_research.explain import cards, style  # matplotlib takes a second

    target, numbers = Path(flags.FLAGS.cards).expanduser(), iter(range(1, count + 1))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--cards={target}: {error.strerror}") from None

    def draw(prediction: Prediction) -> None:
        figure = cards.draw_card(prediction.image, prediction.top(flags.FLAGS.top))
        path = target / f"{next(numbers):0{len(str(count))}}_{Path(prediction.name).stem}.png"
        path.write_bytes(style.png(figure))

    return draw


def _as_dict(prediction: Prediction) -> dict:
    top = prediction.top(flags.FLAGS.top)
    named = [
        {"class": name, "index": int(index), "confidence": confidence}
        for (name, confidence), index in zip(top, prediction.ranking, strict=False)
    ]
    rest = float(prediction.confidences[prediction.ranking[len(top) :]].sum())
    return {"image": prediction.name, "top": named, "rest": rest}


def _as_csv(predictions: list[dict]) -> str:
    count = max((len(each["top"]) for each in predictions), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [column for place in range(1, count + 1) for column in (f"class_{place}", f"confidence_{place}")]
    writer.writerow(["image", *columns, "rest"])
    for each in predictions:
        pairs = [value for entry in each["top"] for value in (entry["class"], entry["confidence"])]
        writer.writerow([each["image"], *pairs, each["rest"]])
    return text.getvalue()


def _as_table(predictions: list[dict]) -> list[str]:
    """A line an image: its most likely classes, and what is left for all others."""
    rows = [
        [each["image"], *(f"{_percent(e['confidence'])} {e['class']}" for e in each["top"])] for each in predictions
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        + f"  {_percent(each['rest'])} others"
        for row, each in zip(rows, predictions, strict=True)
    ]


def _percent(share: float) -> str:
    return f"{100 * share:5.1f} %"
