"""The only exception for wrong input, which the person who gave it can correct."""


class InputError(ValueError):
    """Wrong input. The message is one line that names the wrong value and the way out.

    Jobs print it as `error: ...` and exit with code 2. Work that was finished before is not lost.
    """
