"""The benchmark suite: `python -m bench` measures, and writes what it measured into `docs/`.

`contenders` keep sessions, each in its own idiom; `scenarios` measure them, interleaved; `results`
is what goes into the JSON file; `report` and `plots` make the page of it, and nothing else.
"""
