"""A shop with a cart, a login, a list of devices and sign-out everywhere, on FastAPI.

    pip install 'asyncsession[embedded,fastapi]' uvicorn
    python docs/examples/fastapi_shop.py

Try it at http://127.0.0.1:8000/docs. It keeps its sessions in a Valkey server of its own, which
ends with it.
"""
# ruff: noqa: D103  the routes say what their handlers do

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Body, Depends, FastAPI, Header, HTTPException, Request

from asyncsession import Session, SessionManager, merge
from asyncsession.integrations.fastapi import CurrentSession, SessionMiddleware

PRICES = {"apple": 30, "pear": 40, "quince": 90}
router = APIRouter()


def manager_of(request: Request) -> SessionManager:
    manager: SessionManager = request.app.state.manager
    return manager


Manager = Annotated[SessionManager, Depends(manager_of)]


def user_of(session: CurrentSession) -> str:
    if session.principal is None:
        raise HTTPException(401, "Log in first.")
    return session.principal


User = Annotated[str, Depends(user_of)]


def cart_of(session: Session) -> dict[str, int]:
    return {key[5:]: session[key] for key in session if key.startswith("cart:")}


@router.get("/")
async def shop(session: CurrentSession) -> dict[str, Any]:
    session["views"] = session.get("views", 0) + 1
    cart = cart_of(session)
    total = sum(PRICES[item] * count for item, count in cart.items())
    return {"user": session.get("name"), "views": session["views"], "cart": cart, "total": total}


@router.post("/cart/{item}")
async def add(item: str, session: CurrentSession) -> dict[str, int]:
    if item not in PRICES:
        raise HTTPException(404, "There is no such thing in this shop.")
    key = f"cart:{item}"
    session[key] = session.get(key, 0) + 1
    return cart_of(session)


@router.delete("/cart/{item}")
async def remove(item: str, session: CurrentSession) -> dict[str, int]:
    session.pop(f"cart:{item}", None)
    return cart_of(session)


@router.post("/login")
async def login(
    name: Annotated[str, Body(embed=True, min_length=1, max_length=50)],
    session: CurrentSession,
    manager: Manager,
    user_agent: Annotated[str, Header()] = "unknown",
) -> dict[str, str]:
    session["name"] = name  # and here you would check a password
    session["device"] = user_agent[:100]
    session.principal = f"user:{name}"
    await manager.rotate(session)  # a new id; the cart comes along
    return {"user": name}


@router.post("/logout")
async def logout(session: CurrentSession, manager: Manager) -> None:
    await manager.destroy(session)


@router.post("/logout/everywhere")
async def logout_everywhere(user: User, manager: Manager) -> int:
    return await manager.destroy_all(user)


@router.get("/devices")
async def devices(user: User, session: CurrentSession, manager: Manager) -> list[dict[str, Any]]:
    return [
        {
            "handle": device.handle,
            "device": device.get("device", "unknown"),
            "last seen": device.last_seen,
            "this one": device.is_current,
        }
        for device in await manager.sessions_of(user, current=session)
    ]


@router.delete("/devices/{handle}")
async def end_device(handle: str, user: User, manager: Manager) -> None:
    for device in await manager.sessions_of(user):  # only ever one of the user's own
        if device.handle == handle:
            await manager.destroy(device)


def make_app(url: str = "embedded://shop") -> FastAPI:
    manager = SessionManager(url, merge={"views": merge.counter, "cart:*": merge.counter})

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with manager:
            yield

    app = FastAPI(title="Shop", lifespan=lifespan)
    app.state.manager = manager
    app.include_router(router)
    app.add_middleware(SessionMiddleware, manager=manager, secure=False)  # plain HTTP, here only
    return app


if __name__ == "__main__":
    uvicorn.run(make_app(), port=int(sys.argv[1]) if sys.argv[1:] else 8000)
