"""Packs this checkout, with its local changes, into one archive.

Part of tpu.py; uses only the standard library.
"""

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path

from gcloud import WRONG, Failure, say


def archive(folder: Path) -> tuple[Path, str]:
    """Packs this checkout: tracked files in their present state, and new files not ignored by git.

    Returns:
      The tar archive, which is identical for identical content, and its sha256.
    Raises:
      Failure: this script is not in a git checkout.
    """

    def git(*words: str) -> str:
        done = subprocess.run(['git', '-C', root, *words], capture_output=True)
        if done.returncode:
            raise Failure(WRONG, f'git: {done.stderr.decode().strip()}')
        return os.fsdecode(done.stdout)

    root = Path(__file__).resolve().parent
    root = Path(git('rev-parse', '--show-toplevel').rstrip('\n'))
    revision = git('rev-parse', 'HEAD').strip()
    paths = git('ls-files', '-coz', '--exclude-standard').split('\0')
    names = sorted(set(paths) - {'', 'REVISION'})
    path = folder / 'jaxtrain.tar'

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ''
        info.mtime = 946684800  # 2000: zip files, which pip writes, cannot hold times before 1980
        info.mode = 0o755 if info.mode & 0o100 else 0o644
        return info

    with tarfile.open(path, 'w') as tar:
        for name in names:
            # git also lists deleted files and, as folders, checkouts inside this one.
            if (root / name).is_symlink() or (root / name).is_file():
                tar.add(root / name, name, filter=plain)
    if git('status', '--porcelain'):
        revision += '+' + sha256(path)[:12]
    (folder / 'REVISION').write_text(f'{revision}\n')
    with tarfile.open(path, 'a') as tar:
        tar.add(folder / 'REVISION', 'REVISION', filter=plain)
    say(f'{revision}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB')
    return path, sha256(path)


def sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
