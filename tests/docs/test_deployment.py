"""The compose file, the image and the Makefile name only what exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nnsec import settings
from nnsec.adapters.declaration import declare
from nnsec.adapters.publisher import publisher
from nnsec.adapters.records import Out
from nnsec.adapters.tail import read_to_end
from tests.conftest import KAFKA_FOLDER
from workers.cli import app
from workers.embedded import Broker, free_port
from workers.fleet import COMMANDS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MONITOR = [name for name, service in SERVICES.items() if service["image"].startswith("nnsec")]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (ROOT / "docs/deployment.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def check_command(words: list[str]) -> None:
    """Parse a command line as `nnsec` would, without running it."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("nnsec", list(words))
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = command.make_context(name, words, parent=context)


def test_the_test_sees_a_wrong_command() -> None:
    """A command or option that does not exist does not pass."""
    check_command(["worker", "view"])
    for words in (["worker", "viewer"], ["stream", "--roles", "x"], ["nothing"]):
        with pytest.raises(Exception, match="No such"):
            check_command(words)


@pytest.mark.parametrize("name", MONITOR)
def test_processes_run_commands_that_exist(name: str) -> None:
    """Each service of ours is a command of the command line, but the one for single commands."""
    words = SERVICES[name]["command"]
    if words != ["--help"]:
        check_command(words)
        assert tuple(words) in COMMANDS.values()


@pytest.mark.parametrize("name", MONITOR)
def test_variables_are_a_configuration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variable is a known key, and with the image's own they make valid settings."""
    image = dict(re.findall(r"\b(NNSEC_\w+)=(\S+)", DOCKERFILE))
    environ = {**image, **SERVICES[name]["environment"]}
    monkeypatch.chdir(ROOT / "docs")
    found = settings.load(environ=environ)
    assert found.kafka.bootstrap_servers == "kafka:9092"
    assert found.redis.url == "redis://redis:6379/0"
    assert found.http.listen == "0.0.0.0:8080"
    assert "8080/readyz" in DOCKERFILE


@pytest.mark.parametrize("name", MONITOR)
def test_processes_have_few_rights_and_bounded_means(name: str) -> None:
    """Not root, nothing to write on but what is named, no capability, limited memory and CPUs."""
    service = SERVICES[name]
    assert not service["user"].startswith(("0", "root"))
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}
    assert "container_name" not in service
    assert "ports" not in service


def test_readiness_is_what_is_checked() -> None:
    """Processes are healthy when /readyz answers, and are started once Kafka is healthy."""
    for name in ("stream", "remediation", "view"):
        assert "/readyz" in SERVICES[name]["healthcheck"]["test"][-1]
        assert SERVICES[name]["depends_on"]["kafka"] == {"condition": "service_healthy"}
    for name in ("kafka", "redis"):
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


def test_kafka_is_reached_from_inside_and_from_the_host() -> None:
    """Each listener is advertised at the address where its clients are, and published for them."""
    kafka = SERVICES["kafka"]
    environ = kafka["environment"]
    listeners = dict(part.split("://") for part in environ["KAFKA_LISTENERS"].split(","))
    advertised = dict(
        part.split("://") for part in environ["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    protocols = dict(
        part.split(":") for part in environ["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    )
    assert listeners.keys() == protocols.keys() == advertised.keys() | {"CONTROLLER"}
    assert advertised["INSIDE"] == "kafka" + listeners["INSIDE"]
    address, host_port, container_port = kafka["ports"][0].split(":")
    assert advertised["HOST"] == f"localhost:{host_port}"
    assert (address, f":{container_port}") == ("127.0.0.1", listeners["HOST"])
    assert re.fullmatch(r"apache/kafka:\d+\.\d+\.\d+", kafka["image"])


@pytest.fixture
def host_listener(tmp_path: Path) -> Iterator[str]:
    """Address of Apache Kafka's listener for the host, configured as the compose file does."""
    home = Path(os.environ.get("KAFKA_HOME") or KAFKA_FOLDER)
    if not (home / "kafka").is_file():
        pytest.skip("Apache Kafka is not here: set KAFKA_HOME")
    inside, host, controller = free_port(), free_port(), free_port()
    environ = dict(SERVICES["kafka"]["environment"])
    for name in ("KAFKA_LOG_DIRS", "KAFKA_HEAP_OPTS"):  # of the image's file system and process
        del environ[name]
    environ["KAFKA_ADVERTISED_LISTENERS"] = (
        environ["KAFKA_ADVERTISED_LISTENERS"]
        .replace("localhost:9092", f"localhost:{host}").replace("kafka:9092", f"localhost:{inside}")
    )  # fmt: skip
    for name, text in environ.items():
        for old, new in ((":9092", inside), (":29092", host), (":9093", controller)):
            text = re.sub(rf"{old}\b", f":{new}", text)
        environ[name] = text
    properties = [
        f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={text}"
        for name, text in environ.items()
    ]
    with (tmp_path / "out").open("wb") as log:
        process = subprocess.Popen(
            [str(home / "kafka"), str(tmp_path / "k"), str(inside), str(controller), *properties],
            stdout=log, stderr=log, env=os.environ | {"KAFKA_HEAP": "256m"},
        )  # fmt: skip
    try:
        probe = Broker(tmp_path, host)
        probe._process = process
        probe.wait(60.0)
        yield f"localhost:{host}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.kafka
async def test_apache_kafka_takes_the_settings_and_serves_the_host(host_listener: str) -> None:
    """With the compose file's own settings a client on the host declares, sends and reads."""
    given = settings.parse({"kafka": {"bootstrap_servers": host_listener}})
    await declare(given, now=datetime.now(UTC))
    async with publisher(given) as publish:
        await publish(Out("inference.inputs", b"x", b"app-7"))
    found = [record async for record in read_to_end(given, ("inference.inputs",))]
    assert [(record.key, record.value) for record in found] == [(b"app-7", b"x")]


def test_only_remediation_has_a_secret_and_it_is_no_value() -> None:
    """The release key is a file outside the compose file, mounted into one service."""
    assert [name for name, service in SERVICES.items() if "secrets" in service] == ["remediation"]
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    path = SERVICES["remediation"]["environment"]["NNSEC_REMEDIATION__RELEASE_KEY"]
    assert path == f"/run/secrets/{SERVICES['remediation']['secrets'][0]}"


def test_what_is_named_is_defined() -> None:
    """Volumes, networks, configs and secrets of services are defined below."""
    for service in SERVICES.values():
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert {name for name in volumes if not name.startswith(".")} <= COMPOSE["volumes"].keys()
        assert set(service["networks"]) <= COMPOSE["networks"].keys()
        assert {one["source"] for one in service.get("configs", ())} <= COMPOSE["configs"].keys()
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
    used = {v.partition(":")[0] for s in SERVICES.values() for v in s.get("volumes", ())}
    assert COMPOSE["volumes"].keys() <= used


def test_the_image_runs_without_rights_and_takes_only_what_it_needs() -> None:
    """It ends as a user that is not root, copies only our packages, and the context has no more."""
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)[-1] == "10001:10001"
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert {name for names in copied for name in names.split()} == allowed
    assert all((ROOT / name).exists() for name in allowed)
    assert (ROOT / ".dockerignore").read_text().splitlines()[1] == "*"


def test_the_page_configures_and_commands_what_exists() -> None:
    """Its nnsec.toml is valid, every nnsec command in it parses, every file is mounted."""
    (toml,) = (text for kind, text in BLOCKS if kind == "toml")
    found = settings.parse(tomllib.loads(toml))
    mounted = {one["target"] for one in SERVICES["stream"]["configs"]}
    for path in (*found.trust.release_keys, *found.trust.operator_keys, "nnsec.toml"):
        assert f"/srv/nnsec/{path}" in mounted
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    commands = [shlex.split(line.split(" nnsec ", 1)[1]) for line in lines if " nnsec " in line]
    assert len(commands) == 4
    for words in commands:
        check_command(words)


def test_make_runs_commands_that_exist() -> None:
    """Each command of `nnsec` in the Makefile is one, and CI runs `make test`."""
    makefile = (ROOT / "Makefile").read_text()
    names = re.findall(r"\$\(BIN\)/nnsec (\w+)", makefile)
    there: Any = typer.main.get_command(app)
    assert names
    assert [name for name in names if name not in there.commands] == []
    assert "exec make test" in (ROOT / ".ci/run").read_text()
    goals = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert goals
    for goal in goals.group(1).split():
        assert re.search(rf"^{goal}:", makefile, re.MULTILINE)
