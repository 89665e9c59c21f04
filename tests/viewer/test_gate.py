"""Who may come in."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
import websockets
from websockets.datastructures import Headers
from wire import WireBrowser

from featuresplat.errors import FeaturesplatError
from featuresplat.viewer.gate import Gate, addresses, free_port, guarded

PAGE = {"Host": "localhost:8080"}
SOCKET = {"Host": "localhost:8080", "Upgrade": "websocket"}


def status(gate: Gate, headers: dict, path: str = "/") -> int:
    answer = gate.check(Headers(headers), path)
    return 200 if answer is None else answer[0].value


def test_this_machine_needs_no_token():
    gate = Gate("127.0.0.1")
    assert gate.token is None
    for host in ("localhost:8080", "127.0.0.1:8080", "[::1]:8080", "localhost"):
        assert status(gate, {"Host": host}) == 200


@pytest.mark.parametrize("host", ["evil.example:8080", "", "127.0.0.1.evil.example", "10.0.0.1:8080"])
def test_another_name_for_this_machine_is_refused(host):
    assert status(Gate("127.0.0.1"), {"Host": host}) == 403


def test_a_page_of_another_site_may_not_open_a_socket():
    gate = Gate("127.0.0.1")
    assert status(gate, SOCKET) == 200
    assert status(gate, SOCKET | {"Origin": "http://localhost:8080"}) == 200
    for origin in ("https://evil.example", "http://localhost:9999", "null", "http://127.0.0.1:8080"):
        assert status(gate, SOCKET | {"Origin": origin}) == 403


def test_other_addresses_ask_for_a_token_once():
    gate = Gate("0.0.0.0")
    assert gate.token is not None
    assert len(gate.token) >= 20
    assert gate.token != Gate("0.0.0.0").token
    assert status(gate, PAGE) == 403
    assert status(gate, PAGE, "/?token=wrong") == 403
    assert status(gate, PAGE, "/?token=") == 403
    assert status(gate, PAGE | {"Cookie": "featuresplat_token=wrong"}) == 403
    answer = gate.check(Headers(PAGE), f"/?token={gate.token}")
    assert answer is not None
    assert answer[0] == 303
    cookie = answer[1]["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert status(gate, PAGE | {"Cookie": cookie.split(";")[0]}) == 200
    assert status(gate, SOCKET | {"Cookie": cookie.split(";")[0], "Origin": "http://evil.example"}) == 403


@pytest.mark.parametrize("token", ["", "abc", "with space", "semi;colon", "x" * 201])
def test_a_token_fits_into_an_address(token):
    with pytest.raises(FeaturesplatError, match="token"):
        Gate("0.0.0.0", token)


def test_the_next_port_is_taken_when_one_is_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if port < 65535:
            assert free_port("127.0.0.1", port) > port


def test_ports_and_addresses_that_make_no_sense():
    with pytest.raises(FeaturesplatError, match="0 to 65535"):
        free_port("127.0.0.1", 70_000)
    with pytest.raises(FeaturesplatError, match="no address of this machine"):
        free_port("192.0.2.1", 0)  # reserved for documentation
    with pytest.raises(FeaturesplatError, match="no address of this machine"):
        free_port("no such host", 0)


def test_the_lines_to_print(monkeypatch):
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert addresses(Gate("127.0.0.1"), 8081) == ["viewer   http://localhost:8081/"]
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 51000 10.0.0.9 22")
    lines = addresses(Gate("127.0.0.1"), 8081)
    assert "ssh -L 8081:localhost:8081" in lines[1]
    assert lines[1].endswith("10.0.0.9")
    gate = Gate("0.0.0.0", "secret")
    assert "warning" in addresses(gate, 80)[-1]
    assert all("token=secret" in line for line in addresses(gate, 80) if "http" in line)


def test_a_server_that_cannot_be_guarded_is_refused():
    with pytest.raises(FeaturesplatError, match="cannot be guarded"), guarded(Gate("127.0.0.1")):
        pass  # nobody makes a server in here


def get(port: int, path: str = "/", headers: dict | None = None):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    return urllib.request.urlopen(request, timeout=60)


def test_the_server_asks_the_gate(app):
    assert b"<html" in get(app.port).read(2000).lower()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(app.port, headers={"Host": "evil.example"})
    with pytest.raises(websockets.InvalidStatus):
        WireBrowser(app.port, headers={"Origin": "http://evil.example"})


def test_paths_outside_of_the_page_are_not_served(app):
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%5c..%5cetc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(app.port, path)


def test_the_server_asks_for_the_token(make_app):
    app = make_app(host="0.0.0.0", token="open-sesame")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(app.port)
    with pytest.raises(websockets.InvalidStatus):
        WireBrowser(app.port)
    browser = WireBrowser(app.port, headers={"Cookie": 'featuresplat_token="open-sesame"'})
    browser.close()
