"""What the options of all trainings are checked for."""

from passersby.errors import InputError


def flag(name: str) -> str:
    """An option's name as it is typed."""
    return name.replace("_", "-")


def require(condition: bool, message: str) -> None:
    """Raises InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)
