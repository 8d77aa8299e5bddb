"""Whose is what: which indices of a tensor belong to which example of the batch."""

from clars.norms.owners.following import Following
from clars.norms.owners.labels import Labels, Unknown
from clars.norms.owners.pattern import PLAIN, Pattern, read

__all__ = ["PLAIN", "Following", "Labels", "Pattern", "Unknown", "read"]
