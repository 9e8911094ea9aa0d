"""How many optimizer steps a second a run makes, between looks."""

import time


class Pace:
    """Counts steps and the seconds spent on them; what comes between `pause` and `go_on` does not count."""

    def __init__(self, step: int) -> None:
        self._step, self._seconds, self._since = step, 0.0, time.perf_counter()

    def go_on(self) -> None:
        """Steps are made from now on."""
        self._since = time.perf_counter()

    def pause(self) -> None:
        """No steps are made until `go_on`."""
        self._seconds += time.perf_counter() - self._since

    def look(self, step: int) -> float:
        """Steps a second since the last look; `step` is how many there have been in all."""
        now = time.perf_counter()
        seconds, steps = self._seconds + now - self._since, step - self._step
        self._step, self._seconds, self._since = step, 0.0, now
        return steps / max(seconds, 1e-9)
