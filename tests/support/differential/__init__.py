"""One schedule of steps, played in several worlds that have to be alike to whoever looks at them.

The worlds differ in what their managers remember of sessions, and in whether they are awaited; all
are on one real server. What sessions show, what verbs return or raise, and what a fresh manager
reads afterwards may not tell which world it is. See `schedules.py` for the steps, `worlds.py` for
the worlds and their faults.
"""
