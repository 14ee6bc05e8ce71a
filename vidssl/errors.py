"""What can go wrong through a user's hand, one class per kind; the command line prints the sentence and exits with 2."""

from __future__ import annotations

__all__ = ["BankError", "CheckpointError", "DataError", "DeviceError", "RecipeError", "VidsslError"]


class VidsslError(Exception):
    """A mistake a user can mend: the text says what was given, what is allowed and what to type."""


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
