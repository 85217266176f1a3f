"""Texts for tests: tiny tokenizers, lists of texts with classes, and Python's own docstrings.

    python -m tests.support.texts docstrings.jsonl

writes the docstrings as a list of texts.
"""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import models, pre_tokenizers, processors

WORDS = ('a', 'cat', 'cats', 'dog', 'dogs', 'purrs', 'barks', 'sleeps', 'the', 'loudly')
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')


def word_tokenizer(path: Path, special=SPECIAL, words=WORDS) -> Path:
    """Writes a tokenizer of whole words, which adds [CLS] and [SEP] if `special` has them."""
    vocabulary = {word: number for number, word in enumerate((*special, *words))}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='[UNK]'))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(list(special))
    if '[CLS]' in special:
        pairs = [(name, vocabulary[name]) for name in ('[CLS]', '[SEP]')]
        made.post_processor = processors.TemplateProcessing('[CLS] $A [SEP]', None, pairs)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))
    return path


def write_list(path: Path, rows: Iterable[tuple], columns=('text', 'label')) -> Path:
    """A JSON Lines file."""
    lines = [json.dumps(dict(zip(columns, row, strict=True))) + '\n' for row in rows]
    path.write_text(''.join(lines))
    return path


# Packages that every Python from 3.11 on has, each with more than 90 docstrings.
PACKAGES = (
    'asyncio', 'email', 'http', 'importlib', 'logging', 'multiprocessing', 'tkinter', 'unittest',
    'urllib', 'xml',
)  # fmt: skip
SHARES = (('train', 24), ('val', 20), ('test', 40))


def docstrings() -> list[tuple[str, str, str]]:
    """(docstring, its standard library package, split): 84 of each package, ordered by hash."""
    rows = []
    for package in PACKAGES:
        texts = sorted(set(_of_package(package)), key=_hash)
        for split, count in SHARES:
            part, texts = texts[:count], texts[count:]
            assert len(part) == count, f'{package} has too few docstrings'
            rows += [(text, package, split) for text in part]
    return rows


def _of_package(package: str) -> Iterable[str]:
    for file in sorted((Path(sysconfig.get_path('stdlib')) / package).rglob('*.py')):
        if {'test', 'tests', 'idlelib'} & set(file.parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and len(text.split()) >= 5:
                yield text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == '__main__':
    import sys

    write_list(Path(sys.argv[1]), docstrings(), ('text', 'label', 'split'))
