"""The law of the pipeline over a million messages: `python -m tests.soak.any_message [--messages N]`.

Any bytes with any attributes give exactly one row that BigQuery takes or one dead letter with the same
bytes, and no exception; and many together give the same as each alone. A message that breaks it is
printed; its seed makes it again. Ends by itself.
"""

from __future__ import annotations

import argparse
import random
import time

from tests.any_message import Judge, judge_together, messages

PART = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first ten thousand; the next have the next"
    )
    options = parser.parse_args()
    judge = Judge()
    begun = time.monotonic()
    for first in range(0, options.messages, PART):
        seed = options.seed + first // PART
        part = list(messages(seed, min(PART, options.messages - first)))
        for number, message in enumerate(part):
            try:
                judge.row_of(message)
            except Exception:
                print(f"seed {seed}, number {number}: {message!r}")
                raise
        chance = random.Random(seed)
        while part:
            size = chance.randrange(1, 300)
            judge_together(part[:size], chance)
            del part[:size]
    total = judge.tally.total()
    print(
        f"{total} messages in {time.monotonic() - begun:.0f} s, each one row or letter, alone and together:"
    )
    for name, count in judge.tally.most_common():
        print(f"  {count:9} {name}")


if __name__ == "__main__":
    main()
