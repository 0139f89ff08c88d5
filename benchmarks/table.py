"""``python -m benchmarks.table [results.json]``: print results as a table of Markdown."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, Row, must_reach, read_rows, shown

MET = {True: "yes", False: "no", None: "not measured"}


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the rows of results.json."""
    lines = ["| row | ours | other | unit | ratio | must reach | met |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | --- |")
    for values in rows:
        row = Row(**values)
        numbers = " | ".join(shown(value) for value in (row.ours, row.other))
        lines.append(
            f"| {row.row} | {numbers} | {row.unit} | {shown(row.ratio)} | {must_reach(values)} "
            f"| {MET[row.met]} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS)
    print(markdown(read_rows(parser.parse_args().results)))


if __name__ == "__main__":
    main()
