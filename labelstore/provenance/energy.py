"""Read the energy of CPU packages and GPUs, if the machine provides it.

CPUs: Linux' powercap counters (Intel RAPL, AMD too), which run over at a stated range. GPUs: NVML's counter since the
driver was loaded (Volta and later). The counters are for the whole machine, with everything that ran on it.
"""

import threading
import weakref
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
EVERY = 60.0  # seconds between looks at counters that run over (a quarter of an hour at 300 W)


class Meter:
    """Measures the energy since it was made, in joules."""

    def __init__(self) -> None:
        self._packages = _packages()
        self._last = {path: _read(path) for path in self._packages}
        self._spent = 0.0
        self._gpus = gpu_joules()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        if self._packages:
            self._look_again()

    def joules(self) -> float | None:
        """Return the energy so far; None if no counter can be read."""
        self._add()
        spent = self._spent if self._packages else None
        gpus = gpu_joules()
        if gpus is not None and self._gpus is not None:
            spent = (spent or 0.0) + gpus - self._gpus
        return spent

    def close(self) -> None:
        """Stop reading the counters."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _add(self) -> None:
        with self._lock:
            for path, (span, last) in ((p, (self._packages[p], self._last[p])) for p in self._packages):
                now = _read(path)
                if now is not None and last is not None:
                    self._spent += (now - last if now >= last else now + span - last) / 1e6
                self._last[path] = now if now is not None else last

    def _look_again(self) -> None:
        """Read again before a counter can have overflowed twice; end with the meter."""
        own = weakref.ref(self)

        def look() -> None:
            meter = own()
            if meter is not None and meter._timer is not None:
                meter._add()
                meter._look_again()

        self._timer = threading.Timer(EVERY, look)
        self._timer.daemon = True
        self._timer.start()


def _packages() -> dict[Path, int]:
    """Find the readable counters of CPU packages (on most systems only for root), with their range in microjoules."""
    found = {}
    for path in sorted(POWERCAP.glob("intel-rapl:[0-9]*/energy_uj")):
        if path.parent.name.count(":") == 1 and _read(path) is not None:
            found[path] = _read(path.with_name("max_energy_range_uj")) or 0
    return found


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def gpu_joules() -> float | None:
    """Read the joules of all GPUs since the driver was loaded; None if NVML is not installed or has no counter."""
    values = [mj for mj, _ in _nvml()]
    return sum(v for v in values if v is not None) / 1e3 if values and None not in values else None


def gpu_names() -> list[str]:
    """List the names of the GPUs from NVML."""
    return [name for _, name in _nvml()]


def _nvml() -> list[tuple[int | None, str]]:
    """Return (millijoules since the driver was loaded, name) of each GPU; empty without a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return []
    try:
        return [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> tuple[int | None, str]:
    import pynvml

    try:
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(device)
    except pynvml.NVMLError:  # lost, or not to be seen from here
        return None, "unknown"
    try:
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(device), name
    except pynvml.NVMLError:  # before Volta
        return None, name
