"""The two ways a command ends badly."""


class UserError(Exception):
    """The user's input is wrong (exit code 2).

    The message is one paragraph for the person who can mend it: the file or flag, what was found there, what was
    expected, what to do.
    """


class RunError(Exception):
    """The work failed while running (exit code 1). The message says what is kept and how to go on."""


class NothingLeftError(RunError, UserError):
    """No pair is left to work with (exit code 1): the input may be wrong, or the settings leave all of it out."""


class ProcessDiedError(RunError):
    """A process that the work needs ended by itself or was killed: in another one the work may go through."""
