"""A job for the tests of the supervisor: speaks the child protocol, drains, and fails on demand.

Flags: --fail=CODE exits so once it runs; --finish ends by itself; --deaf ignores SIGINT and SIGTERM;
--fail_drain exits 1 while draining; --linger stays after DRAINED; --slow never says RUNNING;
--grandchild leaves a process that holds the output; --noise=N logs N long lines; --started_file gets
the process id at each start; --graph=A,B names its steps; --gate=FILE keeps it from running until the
file exists; --handled=N counts so many messages as the engine does; --timed tells of a distribution.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.drain_signal import DrainSignal

SLEEPER = "import time; time.sleep(300)"


def say(**members):
    sys.stdout.write(json.dumps(members) + "\n")
    sys.stdout.flush()


def log(text):
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def parse():
    parser = argparse.ArgumentParser()
    for flag in ("project", "region", "job_name", "greeting", "started_file", "graph", "gate"):
        parser.add_argument(f"--{flag}", default="")
    for flag in ("finish", "deaf", "fail_drain", "linger", "slow", "grandchild", "timed"):
        parser.add_argument(f"--{flag}", default="")
    for flag in ("fail", "noise", "handled"):
        parser.add_argument(f"--{flag}", type=int, default=0)
    return parser.parse_args()


def prepare(options, drain):
    if options.started_file:
        with Path(options.started_file).open("a", encoding="utf-8") as started:
            started.write(f"{os.getpid()}\n")
    if options.deaf:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    else:
        drain.listen()
    if options.grandchild:
        grandchild = subprocess.Popen([sys.executable, "-c", SLEEPER], stdin=subprocess.DEVNULL)
        log(f"INFO grandchild {grandchild.pid}")
    for index in range(options.noise):
        log(f"INFO {index} " + "x" * 5_000)


def count_more(options):
    told = []
    if options.timed:
        values = {"count": 2, "sum": 30, "min": 10, "max": 20}
        told = [{"namespace": "signin", "name": "age", "step": "Write", "value": values}]
    if options.handled:
        handled = {"namespace": "local_engine", "name": "messages_acknowledged", "value": options.handled}
        told.append(handled)
    if told:
        say(event="metrics", counters=told)


def main():
    options = parse()
    drain = DrainSignal()
    prepare(options, drain)
    if options.graph:
        say(event="graph", transforms=options.graph.split(","))
    if options.slow:
        drain.wait(300)
        return
    while options.gate and not Path(options.gate).exists() and not drain.wait(0.01):
        pass
    log(f"INFO greeting={options.greeting} project={options.project} job_name={options.job_name}")
    log(f"INFO job={os.environ['SIGNIN_JOB_ID']} cwd={Path.cwd()}")
    say(event="metrics", counters=[{"namespace": "signin", "name": "parsed", "step": "Decode", "value": 3}])
    count_more(options)
    say(event="state", state="RUNNING")
    if options.fail:
        log("WARNING something is about to happen")
        log("Traceback (most recent call last):")
        log("  the last words of the sample job")
        sys.exit(options.fail)
    if not options.finish:
        while not drain.wait(0.2):
            pass
        say(event="state", state="DRAINING")
        if options.fail_drain:
            sys.exit(1)
    say(event="metrics", counters=[{"namespace": "signin", "name": "parsed", "step": "Decode", "value": 5}])
    say(event="state", state="DRAINED")
    if options.linger:
        time.sleep(300)


if __name__ == "__main__":
    main()
