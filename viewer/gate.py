"""Who may come in: the port, the address, the token, and the checks on every request.

viser has no access control of its own. Its web server is made by ``websockets.asyncio.server.serve``; while a viewer
starts, that call is given one more check in front of viser's own. If viser should ever stop making its server that
way, the viewer refuses to start rather than serve without the check.
"""

from __future__ import annotations

import contextlib
import getpass
import hmac
import io
import os
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from featuresplat.errors import FeaturesplatError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PORTS_TRIED = 100
COOKIE = "featuresplat_token"
_patching = threading.Lock()


def is_loopback(host: str) -> bool:
    return host in LOOPBACK


def free_port(host: str, port: int) -> int:
    """``port``, or the next one above it that is free on ``host``; 0 lets the system choose.

    Raises:
        FeaturesplatError: no such address here, a port that may not be used, or none free nearby.
    """
    if not 0 <= port <= 65535:
        raise FeaturesplatError(f"port: expected 0 to 65535, got {port}.", "8080 is usual.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in [port] if port == 0 else range(port, min(port + PORTS_TRIED, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except socket.gaierror:
                raise _no_address(host) from None
            except PermissionError:
                raise FeaturesplatError(
                    f"port: {candidate} may not be used without special rights.", "Choose one above 1023, e.g. 8080."
                ) from None
            except OSError as error:
                if error.errno in (99, 49, 10049):  # EADDRNOTAVAIL on Linux, macOS, Windows
                    raise _no_address(host) from None
                continue
            return int(probe.getsockname()[1])
    raise FeaturesplatError(f"port: {port} and the {PORTS_TRIED - 1} above it are taken.", "Give another --port.")


def _no_address(host: str) -> FeaturesplatError:
    return FeaturesplatError(
        f"host: '{host}' is no address of this machine.", "Use 127.0.0.1, or 0.0.0.0 for all of its addresses."
    )


class Gate:
    """The check in front of every request.

    On a loopback address, pages of other sites are kept out: a request has to name this machine as its host (against
    DNS rebinding), and a WebSocket has to come from our own page. On any other address a token is asked for besides:
    once in the address, then as a cookie.
    """

    def __init__(self, host: str, token: str | None = None):
        if token is not None and not re.fullmatch(r"[A-Za-z0-9_.~-]{4,200}", token):
            raise FeaturesplatError(
                "token: expected at least 4 letters, digits or one of _ . ~ -", "Leave --token out to get a good one."
            )
        self.host = host
        self.token = token if is_loopback(host) else (token or secrets.token_urlsafe(16))
        self.installed = False

    def check(self, headers: Any, path: str) -> tuple[HTTPStatus, dict[str, str], str] | None:
        """None to let a request pass, else the answer: status, headers, text."""
        host = headers.get("Host", "")
        if is_loopback(self.host) and _name(host) not in LOOPBACK:
            hint = "Open it as http://localhost:PORT, or start the viewer with --host 0.0.0.0, which asks for a token."
            return HTTPStatus.FORBIDDEN, {}, f"This viewer answers to localhost only.\n{hint}\n"
        origin = headers.get("Origin")
        if headers.get("Upgrade", "").lower() == "websocket" and origin and urlsplit(origin).netloc != host:
            return HTTPStatus.FORBIDDEN, {}, "Pages of other sites may not use this viewer.\n"
        return self._check_token(headers, path) if self.token else None

    def _check_token(self, headers: Any, path: str) -> tuple[HTTPStatus, dict[str, str], str] | None:
        given = parse_qs(urlsplit(path).query).get("token", [""])[0]
        if self._is_token(given):
            cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
            return HTTPStatus.SEE_OTHER, {"Location": "/", "Set-Cookie": cookie, "Cache-Control": "no-store"}, ""
        try:
            cookies = SimpleCookie(headers.get("Cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        if COOKIE in cookies and self._is_token(cookies[COOKIE].value):
            return None
        return HTTPStatus.FORBIDDEN, {}, "This viewer asks for a token: open the address that it printed.\n"

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self.token or "").encode()) and bool(given)


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    return (urlsplit(f"//{host}").hostname or "") if host else ""


@contextlib.contextmanager
def guarded(gate: Gate, largest: int = 2**25) -> Iterator[None]:
    """viser servers made inside ask ``gate`` first, take messages of ``largest`` bytes at most, and start without
    viser's own banner.

    Raises:
        FeaturesplatError: viser did not make its server in the way that can be guarded.
    """
    import websockets.asyncio.server as module
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    original = module.serve

    def serve(handler, host=None, port=None, **options):
        inner = options.get("process_request")

        def process_request(connection, request):
            try:
                answer = gate.check(request.headers, request.path)
            except Exception:  # headers may be anything, e.g. twice the same one
                answer = (HTTPStatus.BAD_REQUEST, {}, "This request is not understood.\n")
            if answer is None:
                return inner(connection, request) if inner else None
            status, extra, text = answer
            body = text.encode()
            headers = Headers({"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))} | extra)
            return Response(status.value, status.phrase, headers, body)

        gate.installed = True
        return original(handler, host, port, **{**options, "process_request": process_request, "max_size": largest})

    with _patching:
        module.serve = serve  # pyright: ignore[reportAttributeAccessIssue]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        finally:
            module.serve = original  # pyright: ignore[reportAttributeAccessIssue]
    if not gate.installed:
        raise FeaturesplatError(
            "viser: this version makes its server in a way that cannot be guarded.", "pip install 'viser>=1.1,<1.2'"
        )


def addresses(gate: Gate, port: int) -> list[str]:
    """The lines to print: where to point a browser, and what to mind."""
    local = f"http://localhost:{port}/"
    query = f"?token={gate.token}" if gate.token else ""
    lines = [f"viewer   {local}{query}"]
    connection = os.environ.get("SSH_CONNECTION", "").split()
    if len(connection) == 4:
        lines.append(f"from your own machine: ssh -L {port}:localhost:{port} {_user()}{connection[2]}")
    if gate.token:
        lines.append(f"elsewhere: http://{socket.gethostname()}:{port}/{query}")
        lines.append("warning: everybody who knows this address can see and edit the scene, and nothing is encrypted.")
    return lines


def _user() -> str:
    try:
        return f"{getpass.getuser()}@"
    except (KeyError, OSError):
        return ""
