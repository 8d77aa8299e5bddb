"""The seed of a run, from which all its random choices follow."""

LARGEST = 2**32 - 1  # that NumPy takes


def problem(seed: object) -> str | None:
    """Return what is wrong with a seed, in words that follow its name; None for a whole number of 32 bits."""
    if type(seed) is int and 0 <= seed <= LARGEST:
        return None
    return f"{seed!r} is no seed: take a whole number from 0 to {LARGEST}"
