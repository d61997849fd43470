"""What the command lines share: one line for a user's mistake, and the exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from absl import flags

from instanas_tf.errors import InstanasError

EXIT_CODES = (
    "Exit codes: 0 done, 2 usage or bad input, 4 device, 5 model, runtime or disk, "
    "6 unparsable output, 130 interrupted."
)


def run(
    name: str,
    main: Callable[..., None],
    argv: Sequence[str],
    usage: str,
    values: flags.FlagValues,
    takes_words: bool = False,
) -> int:
    """Parses flags, runs a command and turns errors into one line and an exit code.

    Args:
        name: of the command, in front of the line.
        main: the command; gets the parsed flags, and all words beside them if it takes any.
        argv: with the program's name first.
        usage: shown by `--help` above the flags.
        values: the command's flags.
        takes_words: whether the command takes words that are no flags, such as files.

    Returns:
        The exit code.
    """
    if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
        lines = [
            f"  --{key}: {values[key].help} (default: {values[key].default!r})"
            for key in sorted(values)
            if not key.startswith("config.")
        ]
        text = "\n".join(["Flags:", *lines])
        sys.stdout.write(f"{usage.strip()}\n\n{EXIT_CODES}\n\n{text}\n")
        return 0
    signal.signal(signal.SIGTERM, _terminated)
    try:
        words = values(list(argv))[1:]
        if words and not takes_words:
            return _fail(name, f"unexpected argument {words[0]!r}; see --help", 2)
        main(values, *([words] if takes_words else []))
    except flags.Error as error:
        return _fail(name, f"{error}; see --help", 2)
    except InstanasError as error:
        return _fail(name, str(error), error.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(name, f"{error.strerror or error}{where}; mend that and run it again", 5)
    except KeyboardInterrupt:
        return _fail(name, "interrupted; run the same command again to go on", 130)
    return 0


def _terminated(number: int, frame: object) -> None:
    """Ends the process by unwinding it, so that temporary files go."""
    sys.exit(128 + number)


def _fail(name: str, message: str, code: int) -> int:
    """Writes one line to stderr and returns the code."""
    line = " ".join(message.split())
    sys.stderr.write(f"{name}: {line}\n")
    return code


def table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    """An aligned text table: the first column to the left, the others to the right."""
    lines = [list(map(str, row)) for row in ([header] if header else [])] + [
        list(map(str, row)) for row in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
