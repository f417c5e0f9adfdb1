"""Job rows: complete, honest about energy and memory, without secrets."""

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from labelstore.provenance import energy
from labelstore.provenance import record as provenance
from labelstore.store.label_store import LabelStore


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "s.duckdb")


def job(store: LabelStore) -> dict:
    with store.read() as con:
        cursor = con.execute("SELECT * FROM provenance ORDER BY job DESC LIMIT 1")
        names = [column[0] for column in cursor.description]
        return dict(zip(names, cursor.fetchall()[0], strict=True))


def test_a_job_row_is_complete(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["/some/where/msft", "data", "add", "x", "--api-key", "s3cret", "http://me:pw@host/v1"]
    )
    with provenance.recorded(store, "test"):
        ballast = bytes(80_000_000)
        del ballast
    row = job(store)
    assert row["command"] == "msft data add x --api-key *** http://***@host/v1"
    assert row["status"] == "done"
    assert row["seconds"] > 0
    assert row["peak_memory_mb"] > 76
    assert row["code_version"].startswith("0.") or "+" in row["code_version"]
    libraries, hardware = json.loads(row["libraries"]), json.loads(row["hardware"])
    assert {"python", "duckdb", "torch", "numpy"} <= libraries.keys()
    assert {"cpu", "cores", "memory_gb", "os", "kernel", "architecture"} <= hardware.keys()
    assert len(row["job_key"]) == 32


def test_work_that_ends_before_all_is_done_is_partial(store: LabelStore) -> None:
    with provenance.recorded(store, "test") as recorded:
        recorded.partial = True
    assert job(store)["status"] == "partial"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (ValueError(), "failed")]
)
def test_how_it_ended_is_told(store: LabelStore, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), provenance.recorded(store, "test"):
        raise error
    assert job(store)["status"] == status


@pytest.mark.test_all
def test_memory_of_a_process_that_the_job_ran_counts(store: LabelStore) -> None:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with provenance.recorded(store, "test"):
        subprocess.run([sys.executable, "-c", f"x = b'x' * {own + 100_000_000}"], check=True)
    assert job(store)["peak_memory_mb"] > own / 2**20 + 90


# -------------------------------------------------------------------------------------------------------- energy
@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, one with a part of its own, counting to a thousand joules."""
    root = tmp_path / "powercap"
    for name, value in (("intel-rapl:0", 900), ("intel-rapl:1", 100), ("intel-rapl:0:0", 1)):
        (root / name).mkdir(parents=True)
        (root / name / "max_energy_range_uj").write_text("1000000000\n")
        count(root / name, value)
    monkeypatch.setattr(energy, "POWERCAP", root)
    monkeypatch.setattr(pynvml, "CDLL", no_library)
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    return root


def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def count(package: Path, joules: float) -> None:
    (package / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_energy_is_that_of_all_packages_also_where_counters_run_over(powercap: Path) -> None:
    meter = energy.Meter()
    assert meter.joules() == 0
    count(powercap / "intel-rapl:0", 950)
    count(powercap / "intel-rapl:1", 130)
    assert meter.joules() == pytest.approx(80)
    count(powercap / "intel-rapl:0", 20)
    assert meter.joules() == pytest.approx(80 + 70)
    count(powercap / "intel-rapl:0:0", 500)
    assert meter.joules() == pytest.approx(150), "a part of a package is in the package"
    meter.close()


def test_a_counter_that_runs_over_again_and_again_is_looked_at_in_between(
    powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "EVERY", 0.02)
    meter = energy.Meter()
    for k in range(
        1, 9
    ):  # each time further than half a range: two looks too few would lose a thousand joules
        before = meter._spent
        count(powercap / "intel-rapl:0", (900 + 600 * k) % 1000)
        while meter._spent == before:
            pass
    assert meter.joules() == pytest.approx(8 * 600)
    meter.close()


def test_a_meter_that_is_forgotten_stops(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "EVERY", 0.01)
    meter = energy.Meter()
    timer = meter._timer
    del meter
    gc.collect()
    assert timer is not None
    timer.join(10)
    assert not timer.is_alive()


def test_a_machine_that_does_not_tell_has_no_energy(powercap: Path, store: LabelStore) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1"):
        (powercap / name / "energy_uj").unlink()
    meter = energy.Meter()
    assert meter.joules() is None
    assert energy.gpu_joules() is None
    assert energy.gpu_names() == []
    with provenance.recorded(store, "test"):
        pass
    assert job(store)["energy_joules"] is None


def gpus(monkeypatch: pytest.MonkeyPatch, millijoules: list[int | None]) -> None:
    """NVML of a machine with these counters; None is a GPU without one."""

    def energy_of(device: int) -> int:
        if (told := millijoules[device]) is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return told

    for name, answer in (
        ("nvmlInit", lambda: None),
        ("nvmlShutdown", lambda: None),
        ("nvmlDeviceGetCount", lambda: len(millijoules)),
        ("nvmlDeviceGetHandleByIndex", lambda index: index),
        ("nvmlDeviceGetName", lambda device: f"GPU {device}"),
        ("nvmlDeviceGetTotalEnergyConsumption", energy_of),
    ):
        monkeypatch.setattr(pynvml, name, answer)


def test_gpus_count_too(powercap: Path, monkeypatch: pytest.MonkeyPatch, store: LabelStore) -> None:
    millijoules: list[int | None] = [5_000, 7_000]
    gpus(monkeypatch, millijoules)
    assert energy.gpu_names() == ["GPU 0", "GPU 1"]
    assert energy.gpu_joules() == 12.0
    with provenance.recorded(store, "test"):
        millijoules[:] = [65_000, 8_000]
        count(powercap / "intel-rapl:0", 910)
    assert job(store)["energy_joules"] == pytest.approx(61 + 10)
    millijoules[:] = [5_000, None]
    assert energy.gpu_joules() is None, "half of it is not told as the whole"
