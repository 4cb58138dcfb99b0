"""How busy the search keeps an endpoint: a loopback HTTP server with 100 ms a call, in a process of its own.

1. 32 trees, `in_flight=4`, 64 connections: calls a second until fewer trees are left than can fill the connections,
   against the ideal of 64 / 0.1 s; and the wall-clock time against the published schedule (10 workers, each with a
   tree of its own and one call after another), for the same number of iterations.
2. One tree, 16 connections, `in_flight=4`, against one call after another.
3. Our own time for a call: the same search with a client that answers at once.
4. Memory of a tree of 200 iterations with 8 strategies, and the share of the journals in run 1.

`benchmarks/local_search.py` measures the search with a local model. `--quick` takes fewer iterations. The whole takes
about four minutes; other work on the cores slows our side, not the waiting one.
"""

from __future__ import annotations

import argparse
import os
import tracemalloc

from _search_schedules import INVENTORY, AtOnce, Measured, endpoint, openai_client, run
from rich.console import Console
from rich.table import Table

from esc_lab.config.search import MCTSConfig
from esc_lab.search.mcts import Search
from tests.search.oracle import START, Oracle
from tests.search.oracle import run as run_search

LATENCY_S = 0.1
TREES, CONNECTIONS, IN_FLIGHT, WORKERS = 32, 64, 4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer iterations")
    arguments = parser.parse_args()
    os.environ.setdefault("OPENAI_API_KEY", "none")
    many, one = (6, 12) if arguments.quick else (14, 30)
    with endpoint(LATENCY_S) as url:
        ours = run(openai_client(url, CONNECTIONS), TREES, many, IN_FLIGHT, CONNECTIONS)
        published = run(openai_client(url, WORKERS), TREES, many, 1, WORKERS, workers=WORKERS)
        tree = run(openai_client(url, 16), 1, one, IN_FLIGHT, 16)
        sequential = run(openai_client(url, 1), 1, one, 1, 1, workers=1)
    instant = run(AtOnce(), TREES, many, IN_FLIGHT, CONNECTIONS)
    table = Table("run", "iterations", "calls", "s", "calls/s", title=f"{LATENCY_S * 1000:.0f} ms a call")
    runs = {
        f"{TREES} trees, in_flight={IN_FLIGHT}, {CONNECTIONS} connections": ours,
        f"{TREES} trees, published schedule, {WORKERS} workers": published,
        f"1 tree, in_flight={IN_FLIGHT}, 16 connections": tree,
        "1 tree, one call after another": sequential,
        f"{TREES} trees, a client that answers at once": instant,
    }
    for name, found in runs.items():
        table.add_row(name, *_row(found))
    Console().print(table)
    rate = ours.calls_per_s(left=CONNECTIONS // IN_FLIGHT)
    ideal = CONNECTIONS / LATENCY_S
    print(f"computed for a call, HTTP client included {1000 * ours.cpu_seconds / len(ours.finished):.2f} ms")
    print(f"search_share_of_ideal_rate: {rate / ideal:.3f} of {ideal:.0f} calls/s (goal >= 0.95)")
    print(f"search_vs_published_schedule: {_faster(ours, published):.2f}x (goal >= 5x)")
    print(f"search_one_tree_vs_sequential: {_faster(tree, sequential):.2f}x (goal >= 3.5x)")
    print(f"search_own_time_per_call: {1000 * instant.seconds / len(instant.finished):.3f} ms (goal < 1 ms)")
    print(f"search_journal_share: {ours.journal_seconds / ours.seconds:.3f} (goal < 0.05)")
    print(f"search_tree_memory: {_tree_mib():.1f} MiB (goal < 50 MiB)")


def _row(found: Measured) -> list[str]:
    calls = len(found.finished)
    return [str(found.iterations), str(calls), f"{found.seconds:.1f}", f"{calls / found.seconds:.0f}"]


def _faster(ours: Measured, other: Measured) -> float:
    """Ratio of the times for an iteration."""
    return (other.seconds / other.iterations) / (ours.seconds / ours.iterations)


def _tree_mib() -> float:
    """Memory of a whole tree: no talk ends, so each iteration expands a leaf."""
    tracemalloc.start()
    settings = MCTSConfig(min_iterations=200, min_ended=99, max_ended=99)
    search = run_search(Search(settings, START, INVENTORY.names), Oracle(INVENTORY.names, ending=0.0))
    size = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    assert search.tree.iterations == 200
    return size


if __name__ == "__main__":
    main()
