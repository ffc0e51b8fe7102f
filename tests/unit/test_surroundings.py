"""Proxies and CA bundles of the environment: what no call can use is a sentence that names the variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from requests.certs import where

from api_client.config import EndpointConfig
from api_client.surroundings import read_surroundings
from api_client.transport import Transport

VARIABLES = ["http_proxy", "https_proxy", "all_proxy", "no_proxy"]
BUNDLES = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*VARIABLES, *map(str.upper, VARIABLES), *BUNDLES]:
        monkeypatch.delenv(name, raising=False)


def refusal(url: str) -> str:
    with pytest.raises(ValueError) as caught:
        Transport(EndpointConfig(url))
    assert "secret" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "proxy",
    ["http://u:secret@127.0.0.1:port", "http://u:secret@[::1", "http://h:99999", "http://", "http://h:0"],
)
@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_a_proxy_that_is_no_address_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    assert f"{variable} names is not an address" in refusal("http://127.0.0.1:1")


@pytest.mark.parametrize("proxy", ["socks5://u:secret@127.0.0.1:1", "socks5h://h", "ftp://h"])
def test_a_proxy_of_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    assert refusal("http://127.0.0.1:1").startswith(f"ALL_PROXY names a {proxy.partition(':')[0]}:// proxy")


def test_a_proxy_that_is_not_asked_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Transport(EndpointConfig("http://127.0.0.1:1")).close()
    monkeypatch.setenv("http_proxy", "127.0.0.1:3128")  # without a scheme, as curl takes it
    assert read_surroundings("http://h/").proxies["http"] == "127.0.0.1:3128"


@pytest.mark.parametrize("variable", BUNDLES)
def test_a_bundle_that_does_not_exist_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "/nowhere/ca.pem")
    for url in ("http://127.0.0.1:1", "https://127.0.0.1:1"):
        assert refusal(url) == f"the CA bundle that {variable} names does not exist: /nowhere/ca.pem"


def test_a_bundle_without_certificates_is_refused_before_it_fails_each_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("no certificate")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    assert "holds no certificates" in refusal("https://127.0.0.1:1")
    Transport(EndpointConfig("http://127.0.0.1:1")).close()  # nobody is asked for a certificate
    bundle.write_bytes(Path(where()).read_bytes())
    assert read_surroundings("https://127.0.0.1:1").verify == str(bundle)
