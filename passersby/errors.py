"""The one exception that means: the input is wrong, and the person who gave it can mend it."""


class InputError(ValueError):
    """Bad input. The message is one line that names the offending value and the way out.

    Jobs print it as `error: ...` and exit with code 2; nothing that was finished before is lost.
    """
