"""What processes that serve the same bundle hold of its item table, by the kernel's own account."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ctr.serving.bundle import ITEM_TABLE

# Reads each row of the table through the graph, and then, once it is told that the others have too, what it holds.
PROCESS = """
import json, os, re, sys, time
from pathlib import Path
import numpy as np
from ctr.serving.ranker import Ranker, graph_inputs
from features.encoding.request import parse_request

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before, began = anonymous(), time.perf_counter()
ranker = Ranker.load(Path(sys.argv[1]))
seconds = time.perf_counter() - began
request = {"candidates": [ranker.encoder.items.value(2)]}
feed = graph_inputs(ranker.encode(parse_request(request, ranker.encoder.contract)))
feed = {node.name: feed[node.name] for node in ranker.inputs}
items = ranker.encoder.schema.items
for start in range(0, items, 2048):
    rows = np.arange(start, min(start + 2048, items))
    numbers = {name: np.resize(of, len(rows)) for name, of in feed.items() if name.startswith("candidate_")}
    ranker.run(feed | numbers | {"candidate_item": rows})
print("ready", flush=True)
input()
found, inside = {}, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    name, _, value = line.partition(":")
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        inside = line.endswith(sys.argv[2])
    elif inside and name in ("Rss", "Pss", "Anonymous"):
        found[name] = found.get(name, 0) + 1024 * int(value.split()[0])
print(json.dumps(found | {"anonymous": anonymous() - before, "seconds": seconds}), flush=True)
input()
"""


def held(bundle: Path, processes: int, table: str = ITEM_TABLE) -> list[dict[str, float]]:
    """Bytes that each of so many processes holds once all of them have read the whole table.

    Returns:
        `Rss`, `Pss` (a page that n processes hold counts as 1 / n) and `Anonymous` of the mapped table; `anonymous`,
        what the process holds more than before it loaded the bundle, without files; `seconds` of loading.
    """
    command = [sys.executable, "-c", PROCESS, str(bundle), table]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]

    def tell_and_read() -> list[str]:
        for one in running:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        return [one.stdout.readline() for one in running if one.stdout is not None]

    try:
        ready = [one.stdout.readline() for one in running if one.stdout is not None]
        assert ready == ["ready\n"] * processes
        return [json.loads(line) for line in tell_and_read()]
    finally:
        for one in running:
            one.kill()
            one.communicate()
