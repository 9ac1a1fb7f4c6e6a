"""Flask and Django sites, each with one way to keep its sessions, in worker processes.

`kinds` has the table of them; `serve` runs one; `browser` is a browser with many tabs.
"""
