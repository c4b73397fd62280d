# SPDX-License-Identifier: Apache-2.0
"""Published results as they were at a git revision, read without touching the working tree or the disk."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from suite.errors import JobError, UsageError

RESULTS = "reports/results"
"""Where published results lie in a repository."""


@dataclass(frozen=True)
class Tree:
    """Files under one folder of a revision, by path relative to it; contents are read when asked for."""

    repository: Path
    name: str
    "As the user wrote it."
    blobs: Mapping[str, str]
    "Relative path to git's object id. Regular files only: no links, no submodules."

    def read(self, path: str) -> bytes | None:
        """Contents of a file, None without it."""
        blob = self.blobs.get(path)
        return None if blob is None else _git(self.repository, "cat-file", "blob", blob)

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Contents of many files in one call of git."""
        wanted = [self.blobs[path] for path in paths]
        out, found, at = _git(self.repository, "cat-file", "--batch", stdin="\n".join(wanted).encode() + b"\n"), {}, 0
        for path in paths:
            end = out.index(b"\n", at)
            size = int(out[at:end].split()[2])
            found[path] = out[end + 1 : end + 1 + size]
            at = end + 1 + size + 1
        return found


def is_revision(what: str, repository: Path) -> bool:
    """Whether git knows the part before a colon as a commit here."""
    return bool(_commit(what.partition(":")[0], repository))


def tree(what: str, repository: Path) -> Tree:
    """Published results at `REV`, or at `REV:folder` or `REV:folder/<id>`.

    Raises:
        UsageError: no such revision, a path that leaves the repository, or nothing there.
    """
    revision, colon, path = what.partition(":")
    commit = _commit(revision, repository)
    if not commit:
        raise UsageError(f"{what!r}: git knows no revision {revision!r} in {str(repository)!r}")
    folder = PurePosixPath(path if colon and path else RESULTS)
    if folder.is_absolute() or ".." in folder.parts or "\\" in str(folder):
        raise UsageError(f"{what!r}: {str(folder)!r} must be a path inside the repository, from its top")
    folder, single = _split(folder, commit, repository)
    blobs = _list(commit, folder, repository)
    if single:
        blobs = {name: blob for name, blob in blobs.items() if name == f"{single}.json" or name.startswith(f"{single}/")}
    if not any(name.endswith(".json") and "/" not in name for name in blobs):
        raise UsageError(f"{what!r}: no results under {str(folder / single)!r} at that revision")
    return Tree(repository, what, blobs)


def _split(path: PurePosixPath, commit: str, repository: Path) -> tuple[PurePosixPath, str]:
    """The folder of results, and the id when the path is `folder/<id>` or `folder/<id>.json`."""
    parent = _list(commit, path.parent, repository)
    single = path.name.removesuffix(".json")
    return (path.parent, single) if f"{single}.json" in parent else (path, "")


def _list(commit: str, folder: PurePosixPath, repository: Path) -> dict[str, str]:
    prefix = "" if str(folder) == "." else f"{folder}/"
    arguments = ["ls-tree", "-r", "-z", "--full-tree", commit, *(["--", prefix] if prefix else [])]
    found = {}
    for entry in _git(repository, *arguments).decode(errors="replace").split("\0"):
        about, _, path = entry.partition("\t")
        if about.startswith("100") and path.startswith(prefix):  # a regular file; links are 120000, submodules 160000
            found[path.removeprefix(prefix)] = about.split()[2]
    return found


def _commit(revision: str, repository: Path) -> str:
    if not revision or revision.startswith("-") or not re.fullmatch(r"[^\s\x00-\x1f:]+", revision):
        return ""
    try:
        return _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except (UsageError, JobError):
        return ""


def _git(repository: Path, *arguments: str, stdin: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(repository), *arguments], input=stdin, capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JobError(f"git {arguments[0]} failed: {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"git {arguments[0]} failed: {said[0] if said else f'exit {done.returncode}'}")
    return done.stdout
