"""Writes the bash blocks of pages as scripts, in order: `commands.py FOLDER PAGE...`."""

import re
import sys
from pathlib import Path


def blocks(text: str) -> list[list[str]]:
    """The non-empty lines of each fenced bash block, in order."""
    fenced = re.findall(r'^```bash\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    return [[line for line in block.splitlines() if line.strip()] for block in fenced]


if __name__ == '__main__':
    folder, *pages = sys.argv[1:]
    for page in pages:
        for number, lines in enumerate(blocks(Path(page).read_text()), 1):
            # CI's sections have these names, such as 'README.md 02' and 'launch README.md 01'.
            name = f'{page.replace("/", " ")} {number:02}'
            Path(folder, name).write_text('\n'.join(lines) + '\n')
