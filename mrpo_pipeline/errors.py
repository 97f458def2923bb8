"""Errors that end a command, by exit code."""


class UserError(Exception):
    """Invalid input of the user (exit code 2).

    The message is one paragraph: the file or flag, what was found there, what was expected, what to do.
    """


class RunError(Exception):
    """The work failed while running (exit code 1). The message states what is kept and how to resume."""


class NothingLeftError(RunError, UserError):
    """No pair is left to work with (exit code 1): the input may be invalid, or the settings exclude all pairs."""


class ProcessDiedError(RunError):
    """A worker process ended or was killed; the work may succeed in another one."""
