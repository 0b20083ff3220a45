#!/usr/bin/env python3
"""What a run of the Autobahn|Testsuite found, as a page of Markdown.

    summary.py REPORT VERSION COMPRESSION

REPORT is the folder that the suite has written; VERSION is what was tried, with which --compression.
"""

import collections
import json
import pathlib
import sys

GROUPS = {
    "1": "framing",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "opcodes",
    "5": "fragmentation",
    "6": "UTF-8",
    "7": "closing handshake",
    "9": "large messages, many messages",
    "10": "automatic fragmentation",
    "12": "permessage-deflate: sizes and kinds of messages",
    "13": "permessage-deflate: parameters of the negotiation",
}


def outcome(result):
    """The outcome of a case: that of its messages, or of its end where that is worse."""
    both = [result["behavior"], result["behaviorClose"]]
    if both == ["OK", "OK"]:
        return "OK"
    return " and ".join(sorted(set(both) - {"OK"}))


def main():
    report, version, compression = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    index = json.loads((report / "index.json").read_text())
    results = next(iter(index.values()))
    groups = collections.defaultdict(collections.Counter)
    others = []
    for case, result in results.items():
        found = outcome(result)
        groups[case.split(".")[0]][found] += 1
        if found != "OK":
            others.append((case, found))
    outcomes = sorted({found for counts in groups.values() for found in counts} - {"OK"})

    print("# Conformance")
    print()
    print(f"What the Autobahn|Testsuite 25.10.1 says of `{version}` with two shards and")
    print(f"`--compression {compression}`.")
    print("Made by `SUMMARY=docs/CONFORMANCE.md tests/conformance/run all`; the tests run 1 to 10")
    print("and a spread of 12 and 13, and another one with `--compression dedicated`. A case counts")
    print("as OK where both its messages and its end are.")
    print()
    print("| group | what | cases | OK |" + "".join(f" {found} |" for found in outcomes))
    print("|---|---|---|---|" + "---|" * len(outcomes))
    for group in sorted(groups, key=int):
        counts = groups[group]
        cells = [group, GROUPS.get(group, ""), sum(counts.values()), counts["OK"]]
        cells += [counts[found] or "" for found in outcomes]
        print("| " + " | ".join(map(str, cells)) + " |")
    total = sum(groups.values(), collections.Counter())
    cells = ["all", "", sum(total.values()), total["OK"]] + [total[found] for found in outcomes]
    print("| " + " | ".join(map(str, cells)) + " |")
    if others:
        print()
        print("Not OK: " + ", ".join(f"{case} ({found})" for case, found in others) + ".")
        print("7.1.6, 7.13.1 and 7.13.2 can be no more than INFORMATIONAL: what they try is left to")
        print("the server.")


if __name__ == "__main__":
    main()
