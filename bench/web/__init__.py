"""One counting page on FastAPI and uvicorn, and browsers for it; all in processes of their own."""
