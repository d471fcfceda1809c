"""What the deployment files promise, held against the tree they build from; no engine needed."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

from service.cli.main import app
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
SCRIPTS = sorted(DOCKER.glob("*.sh"))
UNITS = sorted((DOCKER / "systemd").glob("*.service"))
FINAL = ("api", "worker", "worker-cuda", "agent")
NOT_SETTINGS = {"TAILOR_SECRETS", "TAILOR_API_KEY", "TAILOR_URL"}
BUILD_TOOLS = re.compile(r"apt-get|gcc|build-essential|pip \S*install\b(?<!uninstall)")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
        env={**os.environ, **environment},
    )


def fields(names: set[str]) -> set[str]:
    """The settings that environment variables set."""
    return {name.removeprefix("TAILOR_").lower() for name in names - NOT_SETTINGS}


def tool(name: str) -> Path:
    """A tool of the development extra, which has it for x86-64 Linux alone."""
    if not (BIN / name).exists():
        pytest.skip(f"{name} is not to be had on this platform")
    return BIN / name


# -- the Dockerfile --------------------------------------------------------------------


class Stage:
    """A stage of the Dockerfile: where it comes from and its instructions, in order."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.instructions: list[tuple[str, str]] = []

    def all(self, name: str) -> list[str]:
        return [arguments for found, arguments in self.instructions if found == name]


def stages() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        name, _, arguments = line.partition(" ")
        if name == "FROM":
            base, _, alias = arguments.partition(" AS ")
            stage = found[alias] = Stage(base)
        elif found:
            stage.instructions.append((name, arguments))
    return found


STAGES = stages()


def chain(name: str) -> list[Stage]:
    """The stages that an image is made of, its own last."""
    stage = STAGES[name]
    return [*(chain(stage.base) if stage.base in STAGES else []), stage]


def instructions(image: str, name: str) -> list[str]:
    return [arguments for stage in chain(image) for arguments in stage.all(name)]


def environment(image: str) -> dict[str, str]:
    pairs = (pair for line in instructions(image, "ENV") for pair in line.split())
    return dict(pair.split("=", 1) for pair in pairs)


def test_the_linter_has_nothing_to_say():
    linted = run(tool("hadolint"), DOCKER / "Dockerfile")
    assert linted.returncode == 0, linted.stdout


def test_every_image_is_a_stage_and_ends_as_a_numeric_user():
    for image in FINAL:
        assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", instructions(image, "USER")[-1])
        after = [name for stage in chain(image) for name, _ in stage.instructions]
        assert "RUN" not in after[after.index("USER") :]


def test_bases_are_pinned_by_one_argument():
    assert {stage.base for stage in STAGES.values()} <= {"${BASE}", *STAGES}
    text = (DOCKER / "Dockerfile").read_text()
    (base,) = re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)
    assert f"${{BASE:-{base}}}" in (DOCKER / "compose.yaml").read_text()


def test_final_images_have_no_build_tools():
    for image in FINAL:
        commands = "\n".join(instructions(image, "RUN"))
        assert not BUILD_TOOLS.search(commands)
        assert re.search(r"pip uninstall .*\bpip\b", commands)
        assert "--without-pip" in STAGES["build"].all("RUN")[0]  # nor does the copied environment


def test_every_image_says_how_it_is_found_healthy_stopped_and_labelled():
    for image in FINAL:
        assert instructions(image, "HEALTHCHECK")
        assert instructions(image, "STOPSIGNAL") == ["SIGTERM"]
        assert "org.opencontainers.image.title" in instructions(image, "LABEL")[0]
    assert STAGES["agent"].all("HEALTHCHECK") == ["NONE"]
    port = environment("api")["TAILOR_PORT"]
    assert f":{port}/readyz" in instructions("api", "HEALTHCHECK")[0]
    assert instructions("api", "EXPOSE") == [port]


def test_each_image_installs_its_own_extra():
    installed = {
        name.removesuffix("-dependencies"): re.findall(r"'\.\[(\w+)\]'", " ".join(stage.all("RUN")))
        for name, stage in STAGES.items()
        if name.endswith("-dependencies")
    }
    assert installed == {"api": ["api"], "worker": ["worker"], "agent": ["agent"]}
    for image in installed:
        assert any(f"--from={image}-dependencies" in line for line in STAGES[image].all("COPY"))
        install = " ".join(STAGES[f"{image}-dependencies"].all("RUN"))
        assert install.count(" install ") == install.count(" install -c constraints.txt ")


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps `path` out; the patterns it uses are names and negations."""
    kept_out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!")
        if pattern == "*" or path == pattern or path.startswith(f"{pattern}/"):
            kept_out = not line.startswith("!")
    return kept_out


def copied() -> set[str]:
    lines = [line for stage in STAGES.values() for line in stage.all("COPY")]
    return {part for line in lines if "--from" not in line for part in line.split()[:-1]}


def test_what_is_copied_exists_and_is_not_ignored():
    assert copied()
    for source in copied():
        assert (ROOT / source).exists()
        assert not ignored(source)


def test_what_the_wheel_needs_is_copied_and_secrets_cannot_be():
    assert {"migrations", "predictor", "search_core", "service", "README.md"} <= copied()
    for kept_out in ("docker/.env", "docker/secrets/db_password", ".git/config", ".tailor/api-key"):
        assert ignored(kept_out)


def test_what_an_image_is_given_by_default_is_a_setting():
    for image in FINAL:
        names = {name for name in environment(image) if name.startswith("TAILOR_")}
        assert names
        assert fields(names) <= set(Settings.model_fields)


# -- commands --------------------------------------------------------------------------


def exists(arguments: list[str]) -> bool:
    """Whether the command line has this command."""
    command = typer.main.get_command(app)
    for name in arguments:
        command = command.commands.get(name)
        if command is None:
            return False
    return not hasattr(command, "commands") or command.invoke_without_command


def test_the_commands_that_are_started_exist():
    started = [json.loads(instructions(image, "CMD")[-1]) for image in FINAL]
    started += [s["command"] for s in compose()["services"].values() if s.get("command")]
    started += [line.split()[1:] for unit in UNITS for line in lines_of(unit, "ExecStart")]
    assert len(started) >= 9
    for arguments in started:
        assert exists(arguments), arguments


def lines_of(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


# -- compose ---------------------------------------------------------------------------


@cache
def compose(*more: str, **environment: str) -> dict:
    """The model that Compose itself makes of the files."""
    files = [part for name in ("compose.yaml", *more) for part in ("-f", DOCKER / name)]
    command = (tool("docker-compose"), *files, "--env-file", DOCKER / ".env.example")
    told = run(*command, "--profile", "*", "config", "--format", "json", **environment)
    assert told.returncode == 0, told.stderr
    assert not told.stderr, told.stderr
    return json.loads(told.stdout)


def test_compose_reads_the_files():
    assert set(compose()["services"]) == {"db", "migrate", "api", "worker", "agent"}
    cuda = compose("compose.cuda.yaml")["services"]["worker"]
    assert cuda["build"]["target"] == "worker-cuda"
    (device,) = cuda["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_every_container_is_confined():
    for name, service in compose()["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["deploy"]["resources"]["limits"]["memory"]
        assert service["deploy"]["resources"]["limits"]["pids"]
        assert not service.get("privileged")
        assert service.get("user", "10001:10001") not in {"0", "0:0", "root"}
        assert ("stop_grace_period" in service) == (name != "migrate")
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")


def test_only_the_api_is_published_and_on_loopback():
    services = compose()["services"]
    published = {name: s["ports"] for name, s in services.items() if s.get("ports")}
    (port,) = published.pop("api")
    assert not published
    assert port["host_ip"] == "127.0.0.1"
    assert str(port["target"]) == environment("api")["TAILOR_PORT"]
    assert compose()["networks"]["store"]["internal"]
    assert set(services["db"]["networks"]) == set(services["worker"]["networks"]) == {"store"}


def test_images_are_pinned_or_built_from_a_stage():
    for name, service in compose()["services"].items():
        if "build" in service:
            assert service["build"]["target"] in FINAL
            assert (ROOT / service["build"]["dockerfile"]).exists()
        else:
            assert re.fullmatch(r"postgres:\d+\.\d+-\w+", service["image"]), name


def test_the_store_is_migrated_before_anything_uses_it():
    services = compose()["services"]
    assert services["db"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    assert services["migrate"]["depends_on"]["db"]["condition"] == "service_healthy"
    for name in ("api", "worker"):
        condition = services[name]["depends_on"]["migrate"]["condition"]
        assert condition == "service_completed_successfully"
    assert services["worker"]["deploy"]["replicas"] == 2


def test_passwords_come_as_files_and_data_lies_in_named_volumes():
    model = compose()
    assert set(model["volumes"]) == {"database", "files", "agent"}
    for name, service in model["services"].items():
        given = service.get("environment") or {}
        assert not [value for value in given.values() if value and "@" in value]
        has_url = name in {"migrate", "api", "worker"}
        secrets = {secret["source"] for secret in service.get("secrets", [])}
        assert ("tailor_database_url" in secrets) == has_url
        assert (given.get("TAILOR_SECRETS") == "/run/secrets") == has_url
        assert all(mount["type"] == "volume" for mount in service["volumes"]) or name == "migrate"


def test_what_compose_sets_is_a_setting():
    for service in compose()["services"].values():
        names = {name for name in service.get("environment") or {} if name.startswith("TAILOR_")}
        assert fields(names) <= set(Settings.model_fields)


def test_the_example_environment_shows_every_variable_with_its_default():
    files = [DOCKER / "compose.yaml", DOCKER / "compose.cuda.yaml"]
    read = "".join(file.read_text() for file in files)
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", read))
    used = {name: value for name, value in used.items() if name not in {"SECRETS", "WORKER_CPUS"}}
    shown = dict(re.findall(r"^#(\w+)=(.*)$", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    assert set(used) <= set(shown)
    first = dict(reversed(re.findall(r"\$\{(\w+):-([^}]*)\}", files[0].read_text())))
    assert {name: shown[name] for name in first.keys() & shown.keys() - {"PUBLIC_URL"}} == {
        name: value for name, value in first.items() if name in shown and name != "PUBLIC_URL"
    }


# -- scripts and units -----------------------------------------------------------------


def test_the_shell_has_nothing_to_say_of_the_scripts():
    checked = run(tool("shellcheck"), *SCRIPTS)
    assert checked.returncode == 0, checked.stdout
    assert len(SCRIPTS) == 3


def test_init_writes_one_password_for_both_and_keeps_what_is_there(tmp_path):
    place = tmp_path / "docker"
    shutil.copytree(DOCKER, place, ignore=shutil.ignore_patterns(".env", "secrets"))
    first = run("sh", place / "init.sh")
    assert first.returncode == 0, first.stderr
    password = (place / "secrets" / "db_password").read_text()
    assert len(password) == 48
    url = (place / "secrets" / "tailor_database_url").read_text()
    assert url == f"postgresql+psycopg://tailor:{password}@db:5432/tailor"
    assert (place / "secrets").stat().st_mode & 0o777 == 0o700
    assert password not in first.stdout + first.stderr
    (place / ".env").write_text("TAG=mine\n")
    assert run("sh", place / "init.sh").returncode == 0
    assert (place / "secrets" / "db_password").read_text() == password
    assert (place / ".env").read_text() == "TAG=mine\n"


def test_lock_adds_todays_digest_once(tmp_path):
    place = tmp_path / "docker"
    shutil.copytree(DOCKER, place, ignore=shutil.ignore_patterns(".env", "secrets"))
    registry = tmp_path / "docker-cli"  # what answers where the registries are reached
    registry.mkdir()
    (registry / "docker").write_text(f"#!/bin/sh\necho sha256:{'0' * 64}\n")
    (registry / "docker").chmod(0o755)
    path = f"{registry}:{os.environ['PATH']}"
    for _ in range(2):
        locked = run("sh", place / "lock.sh", PATH=path)
        assert locked.returncode == 0, locked.stderr
    lines = (place / ".env").read_text().splitlines()
    (base,) = [line for line in lines if line.startswith("BASE=")]
    assert re.fullmatch(rf"BASE=python:[\w.-]+@sha256:{'0' * 64}", base)
    assert len([line for line in lines if line.startswith("POSTGRES=postgres:")]) == 1
    (registry / "docker").write_text("#!/bin/sh\necho no such tag >&2\n")
    assert run("sh", place / "lock.sh", PATH=path).returncode != 0


def test_systemd_reads_the_units(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here")
    for unit in UNITS:  # an instance for the template, and a program that is there
        text = unit.read_text().replace("/opt/tailor/bin/tailor", shutil.which("true"))
        (tmp_path / unit.name.replace("@", "@1")).write_text(text)
    verified = run("systemd-analyze", "verify", *sorted(tmp_path.iterdir()))
    assert verified.returncode == 0, verified.stderr
    assert not verified.stderr


def test_units_confine_what_they_start():
    assert len(UNITS) == 4
    for unit in UNITS:
        given = unit.read_text()
        assert lines_of(unit, "User") == ["tailor"]
        assert lines_of(unit, "ProtectSystem") == ["strict"]
        assert lines_of(unit, "NoNewPrivileges") == ["yes"]
        assert lines_of(unit, "CapabilityBoundingSet") == [""]
        names = set(re.findall(r"^Environment=(TAILOR_\w+)", given, re.MULTILINE))
        assert fields(names) <= set(Settings.model_fields)


def test_every_yaml_file_is_read_the_same_without_anchors():
    for path in DOCKER.glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["services"]


# -- secrets ---------------------------------------------------------------------------


def test_a_setting_may_stand_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "tailor_database_url").write_text("postgresql+psycopg://a:b@c/d\n")
    monkeypatch.setenv("TAILOR_SECRETS", str(tmp_path))
    assert Settings().database_url == "postgresql+psycopg://a:b@c/d"
    monkeypatch.setenv("TAILOR_DATABASE_URL", "sqlite:////elsewhere")
    assert Settings().database_url == "sqlite:////elsewhere"


def test_a_folder_of_secrets_that_is_missing_is_said(tmp_path, monkeypatch):
    from pydantic_settings import SettingsError

    monkeypatch.setenv("TAILOR_SECRETS", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="TAILOR_SECRETS"):
        Settings()
