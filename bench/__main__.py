"""`python -m bench [topic …] [--quick] [--json] [--readme] [--no-fail]`"""

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path

import msgspec

from bench.report import Table, summary
from bench.setup import Setup, facts, setup, silence

# In this order: topics that start processes come last, so that the machine is quiet for the others.
TOPICS = {
    "find": "typed reads beside the bare driver, Beanie, MongoEngine and Mongoose",
    "insert": "typed writes beside the same",
    "journeys": "database round trips and milliseconds of each operation",
    "audit": "sealing and verifying the audit log",
    "graphql": "the GraphQL engine beside graphql-core",
    "canvas": "a patch of a record, beside load, change and save in Mongoose, and twenty editors at once",
    "search": "a customer's search by prefix, beside the text index",
    "trash": "ten thousand deleted projects erased, beside requests",
    "near": "the nearest of a customer's projects, among everybody's",
    "assets": "a file of 200 MB, stored and read as a stream, beside PyMongo's GridFS",
    "metering": "deciding about a call in memory, beside a guarded update a call",
    "coupons": "64 buyers at a time who want the same coupon",
    "billing": "previews of a change of plan, the page of invoices, and an invoice as PDF",
    "renewals": "subscriptions that are due, billed and paid",
    "reports": "recurring revenue from rollups, beside the same from the ledger",
    "cache": "burst limits, reports and sessions in Valkey, beside none, and what its failures cost",
    "capacity": "the bytes that a typical user takes, and what 10⁴ to 10⁸ users need",
    "events": "the payment provider's events, verified and stored",
    "concurrency": "50 clients that want the last 3 projects",
    "signin": "200 people who sign in at once",
    "auth": "API keys and sessions, in process and over HTTP",
    "metered": "a request with an API key beside the same route without one",
    "ingest": "recorded events, each counted once, beside inserts with random ids",
    "held": "the memory that slow clients can make a process hold",
    "cli": "`ximler --help` and `import ximler`",
    "server": "the embedded server and `ximler up`, cold and warm",
}


README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure Ximler beside its peers. Exit code 1: a limit was missed.",
        epilog="\n".join(f"  {name:12} {what}" for name, what in TOPICS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("topics", nargs="*", metavar="topic", help="all of them unless named")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a figure to quote")
    parser.add_argument(
        "--full", action="store_true", help="with 10 million events stored, and 100,000 renewals, which takes minutes"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, raw samples included")
    parser.add_argument("--readme", action="store_true", help="write the figures that have a limit into the README")
    parser.add_argument("--no-fail", action="store_true", help="exit code 0 even if limits are missed")
    options = parser.parse_args()
    if unknown := [topic for topic in options.topics if topic not in TOPICS]:
        parser.error(f"there is no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    if options.readme and options.quick:
        parser.error("the README quotes thorough runs: --readme does not go with --quick")
    silence()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        known, tables = runner.run(
            _measure(options.topics or list(TOPICS), quick=options.quick, full=options.full, as_json=options.json)
        )
    if options.readme:
        above, rest = README.read_text("utf-8").split(BEGIN)
        figures, below = rest.split(END)
        README.write_text(above + BEGIN + summary(known, tables, figures) + END + below, "utf-8")
    missed = [figure for table in tables for figure in table.missed]
    for figure in missed:
        print(f"missed: {figure.what} is {figure.shown}, limit {figure.limit}", file=sys.stderr)
    return 1 if missed and not options.no_fail else 0


async def _measure(topics: list[str], *, quick: bool, full: bool, as_json: bool) -> tuple[dict[str, str], list[Table]]:
    tables: list[Table] = []
    async with setup(quick=quick, full=full) as ready:
        known = await facts(ready.uri)
        if not as_json:
            print("\n".join(f"{name}: {value}" for name, value in known.items()), flush=True)
        for topic in topics:
            run: Callable[[Setup], Awaitable[list[Table]]] = import_module(f"bench.{topic}").run
            made = await run(ready)
            made[-1].notes.append(f"Load average afterwards: {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores.")
            tables += made
            if not as_json:
                print("\n" + "\n\n".join(table.render() for table in made), flush=True)
    if as_json:
        document = {"facts": known, "quick": quick, "tables": [table.plain() for table in tables]}
        print(msgspec.json.format(msgspec.json.encode(document)).decode())
    return known, tables


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop that `ximler up` uses, for everybody."""
    try:
        import uvloop
    except ImportError:  # Windows
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
