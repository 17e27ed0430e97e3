"""What the commands share: flags whose errors are for people, log lines on the console, exit codes."""

import ast
import logging
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import cnn_research
from cnn_research import config as configs
from cnn_research.commands.experiments import find_config
from cnn_research.errors import Diverged, Preempted, UserError, suggest
from cnn_research.training import parallel

FLAGS = flags.FLAGS
_PACKAGE = Path(cnn_research.__file__).parent
_unset: list[str] = []  # fields that the command line sets to None, which ml_collections refuses for most types


def run(main: Callable[..., None], required: Sequence[str] = (), arguments: int = 0) -> None:
    """Runs a command and exits: with 0 when done or preempted, 2 after a mistake of the user's, 3 when diverged, and
    as a shell says it after Ctrl-C (130) and where nobody reads the output any more (141).

    Args:
        main: the command; it reads FLAGS, and takes what is given besides flags.
        required: names of the flags that must be given.
        arguments: how many words besides flags may be given.
    """

    def parse(argv: list[str]) -> list[str]:
        try:
            expanded = FLAGS.read_flags_from_files(argv, force_gnu=False)  # --flagfile
            rest = FLAGS(_checked_overrides(expanded))
            if rest[1 + arguments :]:
                raise UserError(f"{rest[1 + arguments]!r} is not a flag; flags begin with --")
            missing = [f"--{name}" for name in required if not FLAGS[name].value]
            if missing:
                raise UserError(f"{' and '.join(missing)} must be given; --help shows all flags")
        except flags.Error as error:
            _leave(2, _as_errors(_mistake(error)))
        except UserError as error:
            _leave(2, _as_errors(error))
        except SystemExit:  # of --help, which absl reports as a failure
            sys.exit(0)
        return rest

    def guarded(argv: list[str]) -> None:
        _log_to_console()
        try:
            main(*argv[1:])
        except UserError as error:
            _leave(2, _as_errors(error))
        except Diverged as error:
            _leave(3, _as_errors(error))
        except Preempted as error:
            _leave(0, str(error))
        except KeyboardInterrupt:
            _leave(128 + signal.SIGINT, "interrupted")
        except Exception:
            if not parallel.is_connected():
                raise
            _leave(1, traceback.format_exc().rstrip())

    for flag in FLAGS.get_key_flags_for_module(main.__module__):  # --help shows those of the script, which defines none
        FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        app.run(guarded, flags_parser=parse)
    except (SystemExit, BrokenPipeError) as end:
        if not _is_unread(isinstance(end, BrokenPipeError)):
            raise
        sys.exit(getattr(end, "code", 0) or 128 + signal.SIGPIPE)


def _is_unread(failed: bool) -> bool:
    """Whether some of the output could not be written because its reader has left, as `head` does when it has enough.

    Args:
        failed: whether a pipe is known to be broken; it may be another one.
    """
    if sys.stdout is None:  # closed from the start
        return False
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        failed = True
    except OSError:  # a full disk: Python says so when it ends
        return False
    if not failed:
        return False
    poll = select.poll()
    poll.register(sys.stdout, 0)
    unread = bool(poll.poll(0))
    if unread:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still holds
    return unread


def sibling(name: str) -> str:
    """Returns how another command is started from where this one was: as a script beside it, or by the console's."""
    script = Path(sys.argv[0])
    return f"python {script.with_name(name)}.py" if script.suffix == ".py" else f"cnn-research {name}"


def given_config() -> ConfigDict:
    """Returns FLAGS.config with what the command line sets to None."""
    for field in _unset:
        configs.set_field(FLAGS.config, field, None)
    return FLAGS.config


def overridden_config(path: str, texts: Mapping[str, str]) -> ConfigDict:
    """Returns the config of a file with fields set as the command line would set them.

    Args:
        path: name or file of the config, with its mode after a colon if it is given one.
        texts: by field, such as {"optimizer.learning_rate": "0.1", "model.filters": "16,32"}.

    Raises:
        UserError: there is no such file or field, or a text can't be read as the field's type.
    """
    unset = []
    overrides = [f"--config.{field}={text}" for field, text in texts.items()]
    argv = _checked_overrides(["", f"--config={path}", *overrides], unset)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except flags.Error as error:
        raise _mistake(error) from None
    for field in unset:
        configs.set_field(values.config, field, None)
    return values.config


def _checked_overrides(argv: Sequence[str], unset: list[str] | None = None) -> list[str]:
    """Loads the config file and looks up each --config.x.y in it: ml_collections would answer with a traceback.

    Args:
        argv: a command line.
        unset: gets the fields that are set to None; by default those of this process's own command line.

    Returns:
        The arguments without fields that are set to None: `given_config` does that. In the others, a config's name has
        become the path of its file, and what is meant as several texts, such as max,average or 10ep,50%, is written as
        Python has it: ml_collections reads the first as one text and refuses the second.
    """
    argv, path, overrides, dropped = list(argv), None, [], set()
    unset = _unset if unset is None else unset
    for i, argument in enumerate(argv[1:], 1):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            path = find_config(value if equals else "".join(argv[i + 1 : i + 2]))
            argv[i : i + 2 - len(equals)] = [f"{name}={path}"] if equals else [name, path]
        elif name.lstrip("-").removeprefix("no").startswith("config.") and name.startswith("-"):
            overrides.append((name, i if equals else i + 1, name + equals if equals else ""))
    if path is None:
        return argv
    config = load_config(path)
    for name, place, before_value in overrides:
        field = name[name.index("config.") + len("config.") :]
        section = config
        for i, part in enumerate(field.split(".")):
            choices = list(section) if isinstance(section, ConfigDict) else []
            if part not in choices:
                where = ".".join(["config", *field.split(".")[:i]])
                listed = f"its fields are {', '.join(choices)}" if choices else "it is a single value"
                raise UserError(f"{name}: {where} has no field {part!r}.{suggest(part, choices)} ({listed})")
            parent, section = section, section[part]
        if isinstance(section, ConfigDict):
            example = f"--config.{field}.{next(iter(section))}="
            raise UserError(f"{name}: a section has no value of its own, only fields, such as {example}")
        if place < len(argv) and argv[place] == f"{before_value}None":
            unset.append(field)
            dropped.update({place, place if before_value else place - 1})
        elif parent.get_type(part) is tuple and place < len(argv):
            argv[place] = before_value + _quoted(argv[place].removeprefix(before_value))
    return [argument for i, argument in enumerate(argv) if i not in dropped]


def _quoted(text: str) -> str:
    try:
        ast.literal_eval(text)
        return text
    except (ValueError, SyntaxError):
        # Brackets around texts are a tuple's too, but none of a regular expression such as (a)|(b) may go.
        inside = re.fullmatch(r"\s*\(([^()]*)\)\s*", text)
        return repr(tuple(part.strip() for part in (inside[1] if inside else text).split(",") if part.strip()))


def load_config(path: str) -> ConfigDict:
    """Returns what the get_config() of a config, given by its name or its file, gives.

    Raises:
        UserError: there is no such config, or it can't be run; the message names the line.
    """
    path = find_config(path)
    file = Path(path.split(":", 1)[0])
    try:
        config = config_flags.config_flags.ConfigFileFlagParser("config").parse(path)
    except Exception as error:
        # Whatever the file does wrong, its author wants the line and the reason, not ml_collections' frames.
        cause = error.__context__ if "Error whilst parsing config file" in str(error) else error
        frames = [f for f in traceback.extract_tb(cause.__traceback__) if Path(f.filename).name == file.name]
        where = f"{file}, line {frames[-1].lineno}" if frames else str(file)
        reason = re.sub(r"Other fields present: .*}\"?", "", " ".join(str(cause).split()))
        raise UserError(f"{where}: {type(cause).__name__}: {reason}") from None
    fields = configs.flatten(configs.base_config().to_dict())
    if not isinstance(config, ConfigDict) or fields.keys() != configs.flatten(config.to_dict()).keys():
        raise UserError(f"{file}: get_config() must return a base_config() with some of its fields changed")
    return config


def _log_to_console() -> None:
    """Shows this package's log lines and everybody's warnings, above the progress bar."""

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING or Path(record.pathname).is_relative_to(_PACKAGE):
                tqdm.write(self.format(record), file=sys.stderr)

    absl_logging.set_verbosity(absl_logging.INFO)
    logging.getLogger().handlers = [Console()]


def _mistake(error: flags.Error) -> UserError:
    """What absl says of a flag; of one that is on or off it would show a tuple."""
    return UserError(re.sub(r"\('Non-boolean argument to boolean flag', .*\)$", "must be true or false", str(error)))


def _as_errors(error: Exception) -> str:
    return "\n".join(f"error: {line}" for line in str(error).splitlines())


def _leave(code: int, message: str) -> None:
    print(message, file=sys.stderr)
    if code and parallel.is_connected():
        parallel.disconnect()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
