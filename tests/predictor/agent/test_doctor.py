"""The doctor against folders in the kernel's formats, a served answer, and this very host."""

import errno
import json
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from predictor.agent.connection import Identity
from predictor.agent.doctor import NOT_TOLD, examine, judge_anchor, own_anchor, read_anchor
from predictor.agent.runtimes.base import RuntimeSpec
from predictor.agent.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from predictor.kits import anchor_item
from service.version import VERSION

LEVELS = ("ok", "warn", "bad")
CPUS = "sys/devices/system/cpu"


class Root:
    """A folder that looks like ``/`` to the doctor; what `meanwhile` says changes as it watches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.later: dict[str, str] = {}
        self.write(
            {
                "proc/stat": stat(user=1000, idle=9000, steal=0),
                "proc/loadavg": "0.10 0.20 0.30 1/321 4711\n",
                "proc/vmstat": "nr_free_pages 100\npswpin 10\npswpout 20\n",
                "proc/meminfo": meminfo(available_kib=6_000_000),
                "proc/self/status": "Name:\tpython\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
                "proc/self/cgroup": "0::/\n",
            }
        )

    def write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def meanwhile(self, texts: dict[str, str]) -> None:
        self.later |= texts

    def examine(self, *, threads: int = 1, environment: dict[str, str] | None = None) -> dict:
        """The findings by check; the runtime is one that does not exist, to be quick."""
        found = examine(
            RuntimeSpec("none such", threads),
            None,
            self.folder,
            root=self.folder,
            environment=environment or {},
            wait=lambda _: self.write(self.later),
        )
        checks = [finding.check for finding in found]
        assert len(checks) == len(set(checks))
        assert all(finding.level in LEVELS for finding in found)
        assert all(finding.advice for finding in found if finding.level != "ok")
        return {finding.check: finding for finding in found}


def stat(*, user: int, idle: int, steal: int, cores: int = 4) -> str:
    """``/proc/stat``: user nice system idle iowait irq softirq steal guest guest_nice."""
    numbers = f"{user} 0 500 {idle} 10 0 5 {steal} 0 0"
    rows = [f"cpu  {numbers}", *(f"cpu{i} {numbers}" for i in range(cores))]
    return "\n".join([*rows, "intr 12345 0 0", "ctxt 99", "btime 1700000000", ""])


def process_stat(pid: int, name: str, user_ticks: int, system_ticks: int) -> str:
    """``/proc/PID/stat``; fields 14 and 15 are its ticks."""
    ids = f"1 {pid} {pid} 0 -1 4194560 100 0 0 0"
    return f"{pid} ({name}) R {ids} {user_ticks} {system_ticks} 0 0 20 0 1 0 7 0 0\n"


def meminfo(available_kib: int) -> str:
    return f"MemTotal:        8000000 kB\nMemFree:  100 kB\nMemAvailable: {available_kib} kB\n"


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path)


# -- what the kernel tells -------------------------------------------------------------


def test_a_quiet_host_is_all_well_but_for_the_runtime_that_does_not_exist(root):
    found = root.examine()
    assert {check for check, finding in found.items() if finding.level != "ok"} == {"runtime"}
    assert "onnxruntime-cpu" in found["runtime"].found  # names what there is
    assert "anchor" not in found


def test_a_system_without_proc_and_sys_tells_nothing_and_is_not_blamed(tmp_path):
    found = examine(
        RuntimeSpec("none such"),
        None,
        tmp_path,
        root=tmp_path / "nowhere",
        environment={},
        wait=lambda _: None,
    )
    told = {finding.check: finding.found for finding in found if finding.level == "ok"}
    silent = {check for check, text in told.items() if text == NOT_TOLD}
    assert silent == {
        *("clock", "turbo", "load", "other processes", "processor quota", "processors"),
        *("temperature", "power", "memory", "steal", "throttling"),
    }
    assert [finding.check for finding in found if finding.level != "ok"] == ["runtime"]


def test_files_that_hold_something_else_are_told_and_hide_nothing(root):
    odd = ["proc/loadavg", "proc/self/status", "proc/meminfo", f"{CPUS}/cpufreq/boost"]
    root.write(dict.fromkeys(odd, "Cpus_allowed_list: x-y"))
    found = root.examine()
    assert found["load"].level == "warn"
    assert "could not be checked" in found["load"].found
    assert found["processors"].level == "warn"
    assert (found["memory"].found, found["turbo"].found) == (NOT_TOLD, NOT_TOLD)
    assert found["steal"].level == "ok"


@pytest.mark.parametrize(
    ("governor", "slowest", "fastest", "level"),
    [
        ("powersave", 800_000, 3_600_000, "warn"),
        ("schedutil", 600_000, 1_800_000, "warn"),
        ("performance", 800_000, 3_600_000, "ok"),
        ("userspace", 1_500_000, 1_500_000, "ok"),
    ],
)
def test_a_clock_that_follows_the_load_is_a_warning(root, governor, slowest, fastest, level):
    policy = f"{CPUS}/cpufreq/policy0"
    root.write(
        {
            f"{policy}/scaling_governor": f"{governor}\n",
            f"{policy}/scaling_min_freq": f"{slowest}\n",
            f"{policy}/scaling_max_freq": f"{fastest}\n",
        }
    )
    clock = root.examine()["clock"]
    assert clock.level == level
    assert governor in clock.found
    assert f"{fastest // 1000} MHz" in clock.found


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [
        ("intel_pstate/no_turbo", 0, "warn"),
        ("intel_pstate/no_turbo", 1, "ok"),
        ("cpufreq/boost", 1, "warn"),
        ("cpufreq/boost", 0, "ok"),
    ],
)
def test_turbo_is_a_warning_in_either_of_its_spellings(root, name, value, level):
    root.write({f"{CPUS}/{name}": f"{value}\n"})
    turbo = root.examine()["turbo"]
    assert turbo.level == level
    assert level == "ok" or f"write {1 - value}" in turbo.advice


@pytest.mark.parametrize(("load", "level"), [(0.3, "ok"), (3.9, "warn"), (9.0, "bad")])
def test_a_load_that_leaves_no_core_is_told(root, load, level):
    root.write({"proc/loadavg": f"{load:.2f} 1.00 0.90 2/300 99\n"})
    assert root.examine()["load"].level == level


def test_the_busiest_processes_are_named_with_what_they_use(root):
    ticks = os.sysconf("SC_CLK_TCK")
    root.write(
        {
            "proc/70/stat": process_stat(70, "tar (old) x", 5, 5),
            "proc/71/stat": process_stat(71, "idle one", 500, 500),
            f"proc/{os.getpid()}/stat": process_stat(os.getpid(), "pytest", 0, 0),
        }
    )

    def watch(_: float) -> None:
        # a second passes for the counters, whatever the clock on the wall says
        root.write(
            {
                "proc/70/stat": process_stat(70, "tar (old) x", 5 + 10 * ticks, 5),
                f"proc/{os.getpid()}/stat": process_stat(os.getpid(), "pytest", 99 * ticks, 0),
            }
        )

    found = examine(
        RuntimeSpec("none such"),
        None,
        root.folder,
        root=root.folder,
        environment={},
        wait=watch,
    )
    (others,) = (finding for finding in found if finding.check == "other processes")
    assert others.level == "bad"  # next to no time has passed for so many ticks
    assert "tar (old) x" in others.found
    assert "idle one" not in others.found
    assert "pytest" not in others.found


@pytest.mark.parametrize(("steal", "level"), [(0, "ok"), (20, "warn"), (120, "bad")])
def test_time_stolen_by_neighbours_is_told_as_a_share(root, steal, level):
    root.meanwhile({"proc/stat": stat(user=1000 + 80, idle=9000 + 920 - 20, steal=steal)})
    if steal == 120:
        root.meanwhile({"proc/stat": stat(user=1000 + 80, idle=9000 + 800, steal=120)})
    found = root.examine()["steal"]
    assert found.level == level
    assert steal != 120 or "12.0%" in found.found


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/app.slice/one\n",
                "sys/fs/cgroup/app.slice/one/cpu.max": "max 100000\n",
                "sys/fs/cgroup/app.slice/cpu.max": "150000 100000\n",
            },
            1.5,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_tightest_quota_is_found_in_both_versions_of_cgroups(root, files, quota):
    root.write(files)
    for threads in (1, 2):
        found = root.examine(threads=threads)["processor quota"]
        assert found.level == ("bad" if quota is not None and quota < threads else "ok")
        assert found.found.startswith("none" if quota is None else f"{quota:g} processors")


def test_fewer_processors_than_threads_is_bad(root):
    root.write({"proc/self/status": "Cpus_allowed_list:\t0,2-3\n"})
    assert root.examine(threads=3)["processors"].level == "ok"
    refused = root.examine(threads=4)["processors"]
    assert (refused.level, refused.found) == ("bad", "3 allowed for 4 threads")


def test_cores_of_two_kinds_are_told_with_the_command_that_pins(root):
    capacities = {0: 446, 1: 446, 2: 1024, 3: 1024}
    root.write({f"{CPUS}/cpu{n}/cpu_capacity": f"{c}\n" for n, c in capacities.items()})
    found = root.examine()["processors"]
    assert found.level == "warn"
    assert "taskset -c 2,3 " in found.advice


@pytest.mark.parametrize(("degrees", "level"), [(45, "ok"), (78, "warn"), (86, "bad")])
def test_the_temperature_is_judged_by_the_zones_own_limit(root, degrees, level):
    zone = "sys/class/thermal/thermal_zone1"
    root.write(
        {
            "sys/class/thermal/thermal_zone0/type": "acpitz\n",
            "sys/class/thermal/thermal_zone0/temp": "30000\n",
            f"{zone}/type": "cpu-thermal\n",
            f"{zone}/temp": f"{degrees}000\n",
            f"{zone}/trip_point_0_type": "passive\n",
            f"{zone}/trip_point_0_temp": "85000\n",
            f"{zone}/trip_point_1_type": "active\n",
            f"{zone}/trip_point_1_temp": "40000\n",
        }
    )
    found = root.examine()["temperature"]
    assert found.level == level
    assert f"{degrees} °C at cpu-thermal" in found.found


def test_throttling_in_the_past_is_a_warning_and_now_is_bad(root):
    counter = f"{CPUS}/cpu0/thermal_throttle/core_throttle_count"
    root.write({counter: "0\n"})
    assert root.examine()["throttling"].level == "ok"
    root.write({counter: "7\n"})
    assert root.examine()["throttling"].level == "warn"
    root.meanwhile({counter: "9\n"})
    now = root.examine()["throttling"]
    assert (now.level, now.found) == ("bad", "2 times while it was examined")


@pytest.mark.parametrize(("flags", "level"), [("0", "ok"), ("50000", "warn"), ("50005", "bad")])
def test_the_flags_of_a_raspberry_pi_are_read_as_hexadecimal(root, flags, level):
    root.write({"sys/devices/platform/soc/soc:firmware/get_throttled": f"{flags}\n"})
    throttling = root.examine()["throttling"]
    assert throttling.level == level
    assert level == "ok" or f"0x{flags}" in throttling.found


@pytest.mark.parametrize(
    ("status", "charge", "level"),
    [("Discharging", 90, "warn"), ("Charging", 12, "warn"), ("Full", 100, "ok")],
)
def test_a_battery_that_is_used_or_low_is_a_warning(root, status, charge, level):
    battery, mouse = "sys/class/power_supply/BAT0", "sys/class/power_supply/mouse"
    root.write(
        {
            "sys/class/power_supply/AC/type": "Mains\n",
            f"{battery}/type": "Battery\n",
            f"{battery}/status": f"{status}\n",
            f"{battery}/capacity": f"{charge}\n",
            f"{mouse}/type": "Battery\n",
            f"{mouse}/scope": "Device\n",
            f"{mouse}/status": "Discharging\n",
        }
    )
    power = root.examine()["power"]
    assert power.level == level
    assert power.found == f"battery {status.lower()}, {charge} %"


def test_little_memory_and_swapping_are_told(root):
    assert root.examine()["memory"].level == "ok"
    root.write({"proc/meminfo": meminfo(available_kib=300_000)})
    assert root.examine()["memory"].level == "warn"
    root.write({"proc/meminfo": meminfo(available_kib=100_000)})
    assert root.examine()["memory"].level == "bad"
    root.write({"proc/meminfo": meminfo(available_kib=6_000_000)})
    root.meanwhile({"proc/vmstat": "pswpin 10\npswpout 520\n"})
    swapping = root.examine()["memory"]
    assert swapping.level == "warn"
    assert "500 pages" in swapping.found


# -- this process ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, "ok"),
        ({"OMP_NUM_THREADS": "1"}, "ok"),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "3"}, "warn"),
        ({"OPENBLAS_NUM_THREADS": "64"}, "bad"),
        ({"OMP_NUM_THREADS": "4,2"}, "ok"),  # nested levels; nothing is concluded
    ],
)
def test_more_threads_than_asked_for_are_told(root, environment, level):
    found = root.examine(environment=environment)["thread variables"]
    assert found.level == level
    assert all(name in found.found for name in environment)


def test_a_state_folder_is_not_made_but_its_place_is_tried(root):
    state = root.folder / "not" / "there"
    found = examine(RuntimeSpec("none such"), None, state, root=root.folder, wait=lambda _: None)
    (folder,) = (finding for finding in found if finding.check == "state folder")
    assert folder.level == "ok"
    assert not state.parent.exists()
    assert not list(root.folder.glob(".doctor-*"))


def test_a_state_folder_that_cannot_be_written_is_bad(root, monkeypatch):
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    # root may write anywhere, so the system's refusal has to be played
    monkeypatch.setattr("predictor.agent.doctor.tempfile.NamedTemporaryFile", refuse)
    found = root.examine()["state folder"]
    assert found.level == "bad"
    assert "Read-only file system" in found.found


# -- the runtime and the anchor --------------------------------------------------------


def test_the_anchor_that_comes_along_is_the_one_that_tasks_are_measured_beside():
    assert own_anchor() == anchor_item().build()


def test_this_very_host_is_examined_with_its_real_runtime(tmp_path):
    found = {
        finding.check: finding for finding in examine(RuntimeSpec(), None, tmp_path, seconds=0.3)
    }
    assert found["runtime"].level == "ok"
    assert "CPUExecutionProvider, 1 thread" in found["runtime"].found
    assert {"quiet", "drift", "steal", "load", "memory", "processors"} <= set(found)
    assert not any("could not be checked" in finding.found for finding in found.values())


def test_an_anchor_that_the_runtime_refuses_is_a_finding(tmp_path):
    found = examine(RuntimeSpec(), None, tmp_path, seconds=0.1, anchor=b"no model at all")
    (runtime,) = (finding for finding in found if finding.check == "runtime")
    assert runtime.level == "bad"
    assert "refused" in runtime.found
    assert not any(finding.check == "quiet" for finding in found)


def test_readings_of_the_anchor_are_medians_in_milliseconds():
    readings = read_anchor(OnnxRuntimeCpu().load(own_anchor()), seconds=0.1)
    assert len(readings) >= 3
    assert all(0.001 < reading < 100.0 for reading in readings)


@pytest.mark.parametrize(("busy_of_ten", "level"), [(0, "ok"), (4, "ok"), (7, "warn"), (10, "bad")])
def test_the_quiet_share_decides(busy_of_ten, level):
    # the first reading of a hundred is quiet in any case: there is always a best
    readings = [
        1.0 if i % 10 >= busy_of_ten or i % 30 == 0 else 1.5 + 0.1 * (i % 7) for i in range(300)
    ]
    quiet, drift = judge_anchor(readings)
    assert (quiet.check, quiet.level) == ("quiet", level)
    assert "1.0000 ms" in quiet.found
    assert drift.level == "ok"


def test_a_clock_that_slows_down_is_drift_and_not_only_noise():
    quiet, drift = judge_anchor([1.0 + 0.05 * i / 300 for i in range(300)])
    assert quiet.level == "ok"
    assert drift.level == "warn"
    assert "+3." in drift.found


# -- the API ---------------------------------------------------------------------------


class Answers(BaseHTTPRequestHandler):
    """An API of another hour, another version, or none at all."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status, body = self.server.pages.get(self.path, (404, {"detail": "no such page"}))
        content = json.dumps(body).encode()
        self.send_response_only(status)
        self.send_header("Date", format_datetime(datetime.now(UTC) + self.server.ahead, True))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def ask(tmp_path):
    """`ask({path: (status, body)}, ahead=timedelta())`: what the doctor says of such an API."""

    def asked(pages: dict, ahead: timedelta = timedelta()) -> dict:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.pages, server.ahead = pages, ahead
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            found = examine(
                RuntimeSpec("none such"), url, tmp_path, root=tmp_path, wait=lambda _: None
            )
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        return {finding.check: finding for finding in found}

    return asked


VERSION_PAGE = {"/version": (200, {"tailor": "9.9"})}


def test_an_api_that_answers_is_well(ask):
    found = ask(VERSION_PAGE)
    assert (found["API"].level, found["wall clock"].level) == ("ok", "ok")
    assert "9.9" in found["API"].found
    assert "enrolment" not in found  # nobody has enrolled


@pytest.mark.parametrize(
    ("status", "body", "level", "words"),
    [
        (200, {"name": "bench"}, "ok", "known as bench"),
        (401, {"detail": "revoked"}, "bad", "tailor agent enrol"),
        (426, {"detail": "0.0.9 is too old"}, "bad", "pip install -U"),
        (503, ["what"], "bad", "whoever runs the API"),
    ],
)
def test_an_identity_that_the_api_no_longer_takes_is_told(
    ask, tmp_path, status, body, level, words
):
    identity = Identity("http://api", "agt_1", "tla_1", "", {"tgt_1": RuntimeSpec()}, {})
    identity.save(tmp_path / "identity.json")
    enrolment = ask({**VERSION_PAGE, "/v1/agents/self": (status, body)})["enrolment"]
    assert enrolment.level == level
    assert words in enrolment.found + enrolment.advice


@pytest.mark.parametrize(("oldest", "level"), [("0.0.1", "ok"), (VERSION, "ok"), ("99.0", "bad")])
def test_an_agent_that_is_too_old_is_told(ask, oldest, level):
    found = ask({"/version": (200, {"tailor": "99.1", "oldest_agent": oldest})})["agent version"]
    assert found.level == level
    assert oldest in found.found


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_that_is_minutes_off_is_bad(ask, minutes):
    clock = ask(VERSION_PAGE, timedelta(minutes=minutes))["wall clock"]
    assert clock.level == "bad"
    assert ("behind" if minutes > 0 else "ahead of") in clock.found


def test_something_else_at_the_address_is_bad(ask):
    assert ask({"/version": (200, ["hello"])})["API"].level == "bad"
    assert ask({})["API"].level == "bad"


def test_an_address_where_nobody_answers_is_bad(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = examine(
        RuntimeSpec("none such"),
        f"http://127.0.0.1:{port}",
        tmp_path,
        root=tmp_path,
        wait=lambda _: None,
    )
    (answer,) = (finding for finding in found if finding.check == "API")
    assert answer.level == "bad"
    assert "--url" in answer.advice
