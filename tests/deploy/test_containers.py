"""The image, the compose file and the Helm chart, as far as they can be judged without a Docker or a
cluster: by hadolint, the Compose specification, Helm, Kubernetes' schemas, and the gateway itself."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from conftest import Certificate
from gateway import ROOT, binary
from programs import DEPLOY, run, tool

DOCKER = DEPLOY / "docker"
CHART = DEPLOY / "kubernetes/wsgate"
TOKENS_AND_TLS = DEPLOY / "kubernetes/tokens-and-tls.yaml"

# The oldest that the chart is for, and the newest that there are schemas of.
KUBERNETES = ("1.27", "1.37")

EVERYTHING = (
    "--set=autoscaling.enabled=true",
    "--set=serviceMonitor.enabled=true",
    "--set=apiKey.value=secret",
    "--set=service.type=LoadBalancer",
    "--set=service.externalTrafficPolicy=Local",
    "--set-json=extraEnvFrom=[{\"secretRef\": {\"name\": \"more\"}}]",
    f"--values={TOKENS_AND_TLS}",
)


def check_settings(directory: Path, toml: str = "", **variables: str) -> str:
    """What the gateway itself says of settings, from a file and from the environment."""
    file = directory / "wsgate.toml"
    file.write_text(toml)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WSGATE_")}
    done = subprocess.run(
        [binary(), "check", "--config", file],
        env=clean | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_linter_finds_nothing_in_the_dockerfile() -> None:
    assert run(tool("hadolint"), DOCKER / "Dockerfile") == ""


def test_image_is_built_of_what_is_let_through_and_runs_as_nobody() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^USER 65532:65532$", dockerfile, re.MULTILINE)
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignore
    let_through = {line[1:] for line in ignore if line.startswith("!")}
    assert all((ROOT / path).exists() for path in let_through)
    workspace = {"Cargo.toml", "Cargo.lock", "src", "loadtest", "benches"}
    assert workspace <= let_through
    # Files that the sources take in as they are compiled, tests aside.
    for source in (ROOT / "src").rglob("*.rs"):
        for taken in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            path = (source.parent / taken).resolve().relative_to(ROOT)
            assert any(path.is_relative_to(one) for one in let_through), f"{source}: {path}"


def compose() -> dict:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_compose_file_is_one_by_the_specification() -> None:
    # By the merged form: the specification knows no merge keys of YAML.
    parsed = PyCompose.from_yaml(yaml.safe_dump(compose()))
    assert set(parsed.service_names()) == {
        *("gateway1", "gateway2", "certificate", "haproxy", "prometheus", "grafana"),
    }


def test_every_file_that_the_compose_file_mounts_is_there() -> None:
    file = compose()
    mounted = [
        volume.split(":")[0]
        for service in file["services"].values()
        for volume in service.get("volumes", [])
    ]
    for source in mounted:
        if source.startswith("."):
            assert (DOCKER / source).exists(), source
        else:
            assert source in file["volumes"], source


def test_gateway_and_balancer_of_the_compose_file_fit_each_other(tmp_path: Path) -> None:
    services = compose()["services"]
    gateway = services["gateway1"]
    variables = gateway["environment"] | {"WSGATE_API_KEY": "secret"}
    check_settings(tmp_path, **variables)
    balancer = services["haproxy"]["networks"]["inside"]["ipv4_address"]
    assert variables["WSGATE_TRUSTED_PROXIES"] == balancer
    for number in (1, 2):
        address = services[f"gateway{number}"]["networks"]["inside"]["ipv4_address"]
        assert services["haproxy"]["environment"][f"GATEWAY_{number}"] == f"{address}:8080"
    # Grace and duration of a drain by default, and the last closing handshakes.
    assert int(gateway["stop_grace_period"].removesuffix("s")) >= 5 + 20 + 10


def test_command_of_the_compose_file_makes_what_haproxy_takes(tmp_path: Path) -> None:
    service = compose()["services"]["certificate"]
    (command,) = service["command"]
    # To give it to another user takes root, which a test need not be.
    command = command.replace("/certificates", str(tmp_path)).replace("chown 99", "test -s")
    run(*service["entrypoint"], command)
    env = {"CERTIFICATE": str(tmp_path / "wsgate.pem")}
    run(tool("haproxy"), "-c", "-f", DEPLOY / "haproxy/haproxy.cfg", **env)


def rendered(*options: str) -> dict[tuple[str, str], dict]:
    """By kind and name, what the chart makes of these options."""
    text = run(tool("helm"), "template", "gateway", CHART, *options)
    found = [document for document in yaml.safe_load_all(text) if document]
    return {(document["kind"], document["metadata"]["name"]): document for document in found}


def test_helm_finds_nothing_wrong_with_the_chart() -> None:
    assert "0 chart(s) failed" in run(tool("helm"), "lint", "--strict", CHART)
    run(tool("helm"), "lint", "--strict", CHART, *EVERYTHING)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("options", [(), EVERYTHING], ids=["default", "everything"])
def test_what_the_chart_makes_is_valid(version: str, options: tuple[str, ...]) -> None:
    documents = rendered(*options, f"--kube-version={version}")
    for (kind, _), document in documents.items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(document, version, strict=True)


def test_each_kind_is_there_when_it_is_asked_for() -> None:
    usual = {"ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    assert {kind for kind, _ in rendered()} == usual
    more = {"HorizontalPodAutoscaler", "Secret", "ServiceMonitor"}
    assert {kind for kind, _ in rendered(*EVERYTHING)} == usual | more


def pod(documents: dict[tuple[str, str], dict]) -> dict:
    return documents["Deployment", "gateway-wsgate"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("grace", "duration"), [(10, 30), (0, 0), (20, 300)])
def test_pod_is_given_the_time_that_its_drain_takes(
    grace: int, duration: int, tmp_path: Path
) -> None:
    documents = rendered(
        f"--set=drain.graceSeconds={grace}", f"--set=drain.durationSeconds={duration}"
    )
    # The closing handshakes have 5 s more.
    assert pod(documents)["terminationGracePeriodSeconds"] >= grace + duration + 10
    toml = documents["ConfigMap", "gateway-wsgate"]["data"]["wsgate.toml"]
    assert f'drain_grace = "{grace}s"' in toml
    check_settings(tmp_path, toml)


def test_gateway_takes_the_settings_of_the_chart(tmp_path: Path) -> None:
    documents = rendered(
        "--set=settings.max_connections=100000",
        "--set=settings.allowed_origins={https://example.com,same-host}",
        "--set=settings.slow_consumer=drop-oldest",
    )
    toml = documents["ConfigMap", "gateway-wsgate"]["data"]["wsgate.toml"]
    assert "max_connections = 100000" in toml
    told = check_settings(tmp_path, toml)
    assert "100000" in told
    assert "https://example.com" in told


def test_setting_that_is_the_chart_s_own_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"settings\.listen is the chart's own"):
        rendered("--set=settings.listen=0.0.0.0:1")


@pytest.mark.parametrize("choice", ["console: off", "compression: off", "console: on"])
def test_off_and_on_without_quotes_are_refused_where_they_are_written(
    choice: str, tmp_path: Path
) -> None:
    values = tmp_path / "values.yaml"
    name, _, word = choice.partition(": ")
    values.write_text(f"settings:\n  {choice}\n")
    with pytest.raises(AssertionError, match=rf"settings\.{name} is .* YAML takes off and on"):
        rendered(f"--values={values}")
    values.write_text(f'settings:\n  {name}: "{word}"\n')
    toml = rendered(f"--values={values}")["ConfigMap", "gateway-wsgate"]["data"]["wsgate.toml"]
    assert f'{name} = "{word}"' in toml
    check_settings(tmp_path, toml)


def test_gateway_with_tokens_and_tls_finds_its_secrets(
    certificate: Certificate, tmp_path: Path
) -> None:
    documents = rendered(f"--values={TOKENS_AND_TLS}")
    spec = pod(documents)
    (container,) = spec["containers"]
    (variable,) = container["env"]
    reference = variable["valueFrom"]["secretKeyRef"]
    # The Secrets that the example says how to make: this one, and that of TLS with the names of its kind.
    example = TOKENS_AND_TLS.read_text()
    assert f"create secret generic {reference['name']} --from-literal={reference['key']}=" in example
    (volume,) = (volume for volume in spec["volumes"] if "secret" in volume)
    assert f"create secret tls {volume['secret']['secretName']} " in example
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (mounted / "tls.crt").symlink_to(certificate.certificate)
    (mounted / "tls.key").symlink_to(certificate.key)
    places = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    toml = documents["ConfigMap", "gateway-wsgate"]["data"]["wsgate.toml"]
    assert toml.count(places[volume["name"]]) == 2
    toml = toml.replace(places[volume["name"]], str(mounted))
    told = check_settings(tmp_path, toml, **{variable["name"]: "x" * 44})
    assert f"{mounted}/tls.crt" in told
    assert documents["Service", "gateway-wsgate"]["spec"]["ports"][0]["port"] == 443


def test_environment_has_the_key_of_the_api_and_more() -> None:
    (container,) = pod(rendered(*EVERYTHING))["containers"]
    names = [variable["name"] for variable in container["env"]]
    assert names == ["WSGATE_API_KEY", "WSGATE_TOKEN_HMAC_SECRET"]
    assert container["envFrom"] == [{"secretRef": {"name": "more"}}]
    with pytest.raises(AssertionError, match="WSGATE_DRAIN_GRACE is the chart's own"):
        rendered("--set=extraEnv[0].name=WSGATE_DRAIN_GRACE", "--set=extraEnv[0].value=1s")


def test_notes_tell_the_address_and_nothing_of_our_tests() -> None:
    def notes(*options: str) -> str:
        dry = ("--dry-run=client", "--namespace=default")
        told = run(tool("helm"), "install", *dry, "gateway", CHART, *options)
        return told.partition("\nNOTES:\n")[2]

    assert notes().startswith("Clients:   ws://gateway-wsgate.default.svc:80\n")
    assert "wss://gateway-wsgate.default.svc:443\n" in notes(f"--values={TOKENS_AND_TLS}")
    assert "tried" not in notes()


def test_probes_ask_the_admin_port_and_the_pod_may_do_nothing_else() -> None:
    spec = pod(rendered())
    (container,) = spec["containers"]
    ready = container["readinessProbe"]["httpGet"]
    alive = container["livenessProbe"]["httpGet"]
    assert (ready["path"], ready["port"]) == ("/readyz", "admin")
    # A gateway that drains is not ready, and must not be killed for it.
    assert (alive["path"], alive["port"]) == ("/healthz", "admin")
    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_key_of_the_api_comes_from_a_secret() -> None:
    documents = rendered("--set=apiKey.value=secret")
    (variable,) = pod(documents)["containers"][0]["env"]
    reference = variable["valueFrom"]["secretKeyRef"]
    secret = documents["Secret", reference["name"]]
    assert secret["stringData"][reference["key"]] == "secret"
    documents = rendered("--set=apiKey.existingSecret=other")
    assert pod(documents)["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["name"] == "other"
    assert not any(kind == "Secret" for kind, _ in documents)


def test_another_key_or_another_setting_is_new_pods() -> None:
    def annotations(option: str) -> dict[str, str]:
        deployment = rendered(option)["Deployment", "gateway-wsgate"]
        return deployment["spec"]["template"]["metadata"]["annotations"]

    assert annotations("--set=apiKey.value=one") == annotations("--set=apiKey.value=one")
    assert annotations("--set=apiKey.value=one") != annotations("--set=apiKey.value=other")
    assert annotations("--set=settings.max_channels_per_connection=1") != annotations(
        "--set=settings.max_channels_per_connection=2"
    )


def test_admin_port_is_open_to_those_who_are_named_and_to_nobody_where_nobody_is() -> None:
    def admits(*options: str) -> list[dict]:
        policy = rendered(*options)["NetworkPolicy", "gateway-wsgate"]
        return [
            rule for rule in policy["spec"]["ingress"] if {"port": "admin"} in rule["ports"]
        ]

    (rule,) = admits()
    assert rule["from"] == [{"podSelector": {}}]
    # An empty list of sources would be everybody.
    assert admits("--set-json=networkPolicy.adminFrom=[]") == []
