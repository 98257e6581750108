"""The errors a person can act on.

Every error that reaches the command line says what is wrong, where, and how to fix it, in one
sentence.  Each child also inherits the builtin that a library caller would expect.
"""

from __future__ import annotations

import errno

# Full, read-only or failing disks, shares that went away, a machine out of handles or memory.
_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOLCK,
}


def is_of_machine(error: BaseException) -> bool:
    """Whether an error of the operating system says nothing about the file that was asked for."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _MACHINE


def shown(text: str, limit: int = 60) -> str:
    """Foreign text for a message: cut, and with nothing in it that a terminal would obey."""
    cut = text[:limit]
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode("ascii")


class SmearflowError(Exception):
    """Base of all errors that smearflow raises on purpose."""


class BadInput(SmearflowError, ValueError):
    """What a person handed in cannot be used; the command line prints it and exits with 2."""


class UnreadableImage(BadInput, OSError):
    """An image file is missing, truncated, or not an image of a supported kind."""

    def __new__(cls, *args: object) -> UnreadableImage:
        # Of two builtin parents the one with the larger layout has to make the object: what carries errors
        # between processes (tblib) calls this and not the class, and would lose the type otherwise.
        return OSError.__new__(cls, *args)


class InputChanged(UnreadableImage):
    """A file is gone, or another one than intake read: no verdict on what it holds, so it is not kept."""


class UnknownName(BadInput, KeyError):
    """A name is not registered; the message lists the names that are."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"{kind} '{name}' is not known; known are: {', '.join(sorted(known)) or 'none'}.")
        self._named = (kind, name, known)

    def __reduce__(self) -> tuple[type[UnknownName], tuple[str, str, list[str]]]:
        # An error crosses process borders; the default would rebuild it from its message alone.
        return (UnknownName, self._named)

    def __str__(self) -> str:
        return str(self.args[0])


class BadModelPackage(SmearflowError, OSError):
    """A model package is incomplete, altered, or does not fit the code that would load it."""
