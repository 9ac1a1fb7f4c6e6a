"""`asyncsession demo`: parallel requests of one browser, with its session kept in four ways.

`process` starts `server` in a process of its own: the FastAPI application of `app` on uvicorn,
next to an embedded Valkey. `race` is the browser, and `report` says what came of it.
"""
