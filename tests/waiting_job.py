"""A job for the tests of job control: takes any parameter, runs until it is told to end.

`--gate=FILE` keeps it from saying RUNNING until the file exists; `--break_with=TEXT` makes it fail so.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.drain_signal import DrainSignal


def say(**members):
    sys.stdout.write(json.dumps(members) + "\n")
    sys.stdout.flush()


def counters(value):
    ages = {"count": value, "sum": 10 * value, "min": 10 - value, "max": 10 + value}
    steps = ("Decode", "Write")
    told = [{"namespace": "signin", "name": "rows", "step": step, "value": value} for step in steps]
    told += [{"namespace": "signin", "name": "age", "step": step, "value": ages} for step in steps]
    say(event="metrics", counters=told)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--break_with", default="")
    options, _ = parser.parse_known_args()
    drain = DrainSignal()
    drain.listen()
    while options.gate and not options.gate.exists() and not drain.wait(0.01):
        pass
    if options.break_with:
        raise RuntimeError(options.break_with)
    counters(2)
    say(event="state", state="RUNNING")
    while not drain.wait(0.05):
        pass
    say(event="state", state="DRAINING")
    counters(3)
    say(event="state", state="DRAINED")


if __name__ == "__main__":
    main()
