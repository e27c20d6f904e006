"""The one exception that stands for a fault in what the user gave: a file, a key, a value, a request.

The command line prints it as one line and exits with code 2; anything else is a defect of ours and keeps
its traceback. Not here: recovery, logging.
"""


class InputError(ValueError):
    """What is wrong, where (path, line, key), with which value, and the remedy, in one line."""


def needs_extra(package: str, extra: str) -> InputError:
    """The error for an optional package that is not installed."""
    return InputError(f"this needs the package {package}; in babyllama's folder: pip install -e '.[{extra}]'")


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and everything so far is saved; the message says how to go on. Exit code 130."""
