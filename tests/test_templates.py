"""Templates for clouds and clusters: linted, their schemas obeyed, and every configuration in them read by `check`.

Nothing here runs in a cloud or a cluster. What `check` says goes for this binary, so a renamed key can't survive in a template.
"""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from support.container import REPOSITORY
from support.process import run
from support.pypi import installed
from support.proxy import check

AWS = sorted((REPOSITORY / "docker" / "aws").glob("*.yaml"))
KUBERNETES = sorted((REPOSITORY / "docker" / "kubernetes").glob("*.yaml"))
LINTERS = ("cfn-lint==1.51.0", "kubernetes-validate==1.37.0")
PARAMETERS = {
    "MyTrustedNetwork": "10.0.0.0/16", "VPCNetwork": "10.0.0.0/16", "SimpleADPriIP": "10.0.1.10", "SimpleADSecIP": "10.0.2.10",
    "AWS::Region": "eu-west-1", "AWS::StackName": "ldap", "AWS::Partition": "aws", "AWS::StackId": "arn:aws:cloudformation:s",
    "LDAPSCertificateARN": "arn:aws:secretsmanager:eu-west-1:1:secret:ldap", "PackageBucket": "bucket", "PackageKey": "key.deb",
}


@pytest.fixture(scope="module")
def linters():
    return installed("linters", LINTERS)


@pytest.mark.deadline(500)
@pytest.mark.parametrize("template", AWS, ids=lambda path: path.stem)
def test_cloudformation_is_clean(linters, template):
    found = run([linters / "cfn-lint", "--include-checks", "I", "--", template], check=False)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout + found.stderr


@pytest.mark.deadline(500)
def test_kubernetes_schemas_are_obeyed(linters):
    for manifest in KUBERNETES:
        documents = [document for document in yaml.safe_load_all(manifest.read_text())]
        kinds = {document["kind"] for document in documents}
        assert kinds >= {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}
        # What is no part of Kubernetes has no schema there.
        own = "---\n".join(yaml.safe_dump(document) for document in documents if document["kind"] != "Certificate")
        subprocess.run([linters / "kubernetes-validate", "--strict", "-"], input=own, text=True, check=True, timeout=60)


@pytest.mark.parametrize("template", AWS, ids=lambda path: path.stem)
def test_the_proxies_reach_the_directory(template):
    """LDAP, and DNS, which a domain's DHCP options have the directory's servers answer: an instance that could not ask them
    fetched no packages."""
    group = resources(template)["ProxySecurityGroup"]["Properties"]
    outwards = {(rule["IpProtocol"], rule["FromPort"], rule["CidrIp"]) for rule in group["SecurityGroupEgress"]}
    for server in ("${SimpleADPriIP}/32", "${SimpleADSecIP}/32"):
        assert {("tcp", 389, server), ("tcp", 53, server), ("udp", 53, server)} <= outwards


def test_no_outage_of_the_directory_ends_a_copy():
    """ECS replaces tasks whose targets are unhealthy, an Auto Scaling group of health check type EC2 none. What tells of a
    directory that is down goes by the proxy's own words."""
    fargate, group = (resources(REPOSITORY / "docker" / "aws" / f"{name}.yaml") for name in ("fargate", "auto-scaling"))
    assert fargate["TargetGroup"]["Properties"]["HealthCheckPath"] == "/healthz"
    assert group["TargetGroup"]["Properties"]["HealthCheckPath"] == "/readyz"
    assert group["Group"]["Properties"]["HealthCheckType"] == "EC2"
    words = fargate["BackendsLost"]["Properties"]["FilterPattern"]
    assert re.fullmatch('"[a-z ]+"', words) and words in (REPOSITORY / "src" / "health" / "mod.rs").read_text()


def resources(template):
    """A template's resources, with the arguments of functions in their place."""
    class Loader(yaml.SafeLoader):
        pass

    def argument(loader, _function, node):
        make = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence}
        return make.get(type(node), loader.construct_mapping)(node)

    Loader.add_multi_constructor("!", argument)
    return yaml.load(template.read_text(), Loader)["Resources"]


def test_kubernetes_parts_fit_together():
    """Labels, names and ports that one part says and another relies on."""
    [manifest] = KUBERNETES
    parts = {document["kind"]: document for document in yaml.safe_load_all(manifest.read_text())}
    pod = parts["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"]
    for selector in (
        parts["Deployment"]["spec"]["selector"]["matchLabels"], parts["Service"]["spec"]["selector"],
        parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"], parts["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    settings = parts["ConfigMap"]["data"]["ldaps-proxy.toml"]
    assert all(f":{port}\"" in settings for port in ports.values())
    assert {port["targetPort"] for port in parts["Service"]["spec"]["ports"]} <= set(ports)
    annotations = parts["Service"]["metadata"]["annotations"]
    for port in parts["Service"]["spec"]["ports"]:
        attributes = annotations[f"service.beta.kubernetes.io/aws-load-balancer-listener-attributes.TCP-{port['port']}"]
        assert attributes == "tcp.idle_timeout.seconds=3660", "the balancer outlasts limits.idle_timeout"
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/etc/ldaps-proxy", "/tls", "/run/ldaps-proxy"} == mounted
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == parts["Certificate"]["spec"]["secretName"]
    assert volumes["config"]["configMap"]["name"] == parts["ConfigMap"]["metadata"]["name"]
    patience = container["lifecycle"]["preStop"]["sleep"]["seconds"] + 30
    assert pod["spec"]["terminationGracePeriodSeconds"] > patience


def configurations():
    """Every configuration in a template: `(where, text)`."""
    for template in AWS:
        text = substituted(template.read_text())
        if script := re.search(r"<<'?TOML'?\n(.*?)\n +TOML\n", text, re.DOTALL):
            yield template.stem, script[1].replace("$vpc_networks", '["10.0.0.0/16"]')
        else:
            yield template.stem, re.search(r"Name: CONFIG\n +Value: !Sub \|\n(.*?)\n +Secrets:", text, re.DOTALL)[1]
    for manifest in KUBERNETES:
        parts = {document["kind"]: document for document in yaml.safe_load_all(manifest.read_text())}
        yield "kubernetes", parts["ConfigMap"]["data"]["ldaps-proxy.toml"]
    for file in sorted((REPOSITORY / "docker").glob("*.toml")):
        yield file.stem, file.read_text()
    yield "package", (REPOSITORY / "packaging" / "ldaps-proxy.toml").read_text()


def substituted(text):
    """The text after Fn::Sub, for parameters of these values."""
    return re.sub(r"\$\{([\w:]+)\}", lambda match: PARAMETERS.get(match[1], match[0]), text)


def test_there_are_configurations():
    assert {where for where, _ in configurations()} == {
        "auto-scaling", "one-instance", "fargate", "kubernetes", "sidecar-application", "sidecar-directory", "package",
    }


@pytest.mark.parametrize(("where", "text"), configurations(), ids=lambda value: value if "\n" not in value else "")
def test_configurations_are_right(where, text, certificate, authority, tmp_path):
    """No error and no warning but what a test's own certificate brings."""
    (tmp_path / "certs").mkdir()
    for source, names in (
        (certificate.certificate, ("certificate.pem",)), (certificate.private_key, ("private_key.pem",)),
        (authority.ca, ("certificate_chain.pem", "directory_ca.pem")),
    ):
        for name in names:
            shutil.copy(source, tmp_path / "certs" / name)
    (tmp_path / "certs" / "private_key.pem").chmod(0o600)
    text = text.replace("/tls/tls.crt", "certs/certificate.pem").replace("/tls/tls.key", "certs/private_key.pem")
    file = tmp_path / "ldaps-proxy.toml"
    file.write_text(text)
    found = check(file)
    assert found.returncode == 0, found.stderr
    assert "error" not in found.stderr


def boot_script(template):
    """The script that an instance begins with, and the one in it that fetches the certificate."""
    text = substituted(template.read_text())
    script = re.search(r"Fn::Base64: !Sub \|\n(.*?)\n\n?  \w", text + "\n  End", re.DOTALL)[1]
    margin = re.match(" +", script)[0]
    script = "\n".join(line.removeprefix(margin) for line in script.split("\n"))
    return script, re.search(r"<<'SCRIPT'\n(.*?)\nSCRIPT\n", script, re.DOTALL)[1]


BOOTING = pytest.mark.parametrize("template", [path for path in AWS if "UserData" in path.read_text()], ids=lambda path: path.stem)


@BOOTING
def test_boot_scripts_are_shell(template):
    """The script and the script in it are what shellcheck would write."""
    script, inner = boot_script(template)
    for part in (script, inner):
        found = subprocess.run(["shellcheck", "--severity=warning", "-"], input=part, text=True, capture_output=True)
        assert (found.returncode, found.stdout) == (0, ""), found.stdout
    assert "${" not in script, "every parameter is substituted"


@BOOTING
def test_a_key_out_of_acm_is_opened(template, certificate, tmp_path):
    """ACM takes every octet of the file for the passphrase, and OpenSSL its first line without the line end."""
    part = re.search(r"acm:\* \]\]; then\n(.*?)\n *else\n", boot_script(template)[1], re.DOTALL)[1]
    aws = tmp_path / "aws"
    aws.write_text(f"""#!/bin/bash
        set -euo pipefail
        file=${{6#fileb://}}
        [[ $(tr -d '[:xdigit:]' < "$file" | wc -c) == 0 ]]
        openssl pkcs8 -topk8 -in {certificate.private_key} -passout "file:$file" | jq -Rs '{{PrivateKey: .}}'
    """)
    aws.chmod(0o755)
    script = 'set -euo pipefail; export PATH=$new:$PATH; arn=arn:aws:acm:eu-west-1:1:certificate/c\n' + part
    run(["bash", "-c", script], env={**os.environ, "new": str(tmp_path)})
    assert "BEGIN PRIVATE KEY" in (tmp_path / "private_key.pem").read_text()


def test_our_own_scripts_are_shell():
    places = ("config/*", "docker/*", "packaging/*", "packaging/debian/*", "tests/*")
    files = [file for place in places for file in REPOSITORY.glob(place) if file.is_file()]
    scripts = [file for file in files if re.match(rb"#!.*sh\n", file.read_bytes())]
    assert len(scripts) >= 7
    found = run(["shellcheck", "--severity=warning", *scripts], check=False)
    assert (found.returncode, found.stdout) == (0, ""), found.stdout
