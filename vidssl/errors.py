"""What can go wrong, one class per kind; the command line prints the sentence and exits with 2.

`final` says whether beginning again would meet the same thing: a mistake of the user is final, a disk that does not answer
is not, and Ray Train's retries are for the latter alone.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BankError",
    "BusyError",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DiskFullError",
    "OurFault",
    "RecipeError",
    "StorageError",
    "VidsslError",
]


class VidsslError(Exception):
    """A mistake a user can mend: the text says what was given, what is allowed and what to type.

    Attributes:
        final: Whether the same command would meet it again.
    """

    final: ClassVar[bool] = True


class RecipeError(VidsslError):
    """A recipe, key or value that is not allowed (unknown key, infeasible cascade, impossible combination)."""


class DataError(VidsslError):
    """Videos, shards or a manifest that are missing, changed, unreadable or too few."""


class DeviceError(VidsslError):
    """A device or resource asked for that this machine or cluster does not have."""


class BankError(VidsslError):
    """An embedding bank or snapshot that does not fit what is asked of it."""


class CheckpointError(VidsslError):
    """A run directory or checkpoint that is missing, damaged or belongs to another recipe."""


class BusyError(VidsslError):
    """Somebody else is working in that folder."""


class StorageError(VidsslError):
    """A disk, a store or the bank cannot be reached or written now; it was tried again before this was said."""

    final: ClassVar[bool] = False


class DiskFullError(StorageError):
    """A disk is full: trying again does not help, making room does."""

    final: ClassVar[bool] = True


class OurFault(VidsslError):
    """An error in our own code; the text says that nothing of the user's is to blame, and what to report."""
