"""Prints the commands of README.md's bash blocks, one per line: `commands.py README.md [BLOCK]`."""

import re
import sys
from pathlib import Path


def blocks(text: str) -> list[list[str]]:
    """The non-empty lines of each fenced bash block, in order."""
    fenced = re.findall(r'^```bash\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return [[line for line in block.splitlines() if line.strip()] for block in fenced]


if __name__ == '__main__':
    found = blocks(Path(sys.argv[1]).read_text())
    chosen = found if len(sys.argv) == 2 else [found[int(sys.argv[2])]]
    print('\n'.join(line for block in chosen for line in block))
