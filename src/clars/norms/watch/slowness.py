"""What the slow exact rule is used for, and what it costs."""

import time
import warnings

TOLD_AFTER = 10  # backward passes


class Slowness:
    """Warns once of layers that are measured by the slow exact rule, and tells after some steps what they take.

    Attributes:
        layers: their names, with the function in which each uses its parameters.
    """

    def __init__(self) -> None:
        self.layers: dict[str, str] = {}
        self._new: list[str] = []
        self._seconds = 0.0
        self._passes = 0
        self._began = 0.0

    def add(self, layer: str, function: str) -> None:
        """Note that a layer is measured so."""
        if layer not in self.layers:
            self.layers[layer] = function
            self._new.append(layer)

    def warn(self) -> None:
        """Warn of layers that are new."""
        if self._new:
            named = ", ".join(f"{name!r} ({self.layers[name]})" for name in self._new)
            self._new = []
            warnings.warn(
                f"No fast rule measures {named}: an exact one is used that takes a backward pass of the layer for each "
                "example. uncovered='refuse' has such layers refused.",
                stacklevel=4,
            )

    def took(self, seconds: float) -> None:
        """Add what a call has taken."""
        self._seconds += seconds

    def end_pass(self) -> None:
        """Note that a backward pass begins; after some, tell the share of the time."""
        if not self.layers:
            return
        self._passes += 1
        if self._passes == 2:  # the first one, and what it warms up, do not count
            self._began, self._seconds = time.perf_counter(), 0.0
        elif self._passes == TOLD_AFTER + 2:
            share = self._seconds / max(1e-9, time.perf_counter() - self._began)
            warnings.warn(
                f"The slow exact rule took {share:.0%} of the time of the last {TOLD_AFTER} steps, for "
                f"{len(self.layers)} layers.",
                stacklevel=2,
            )
