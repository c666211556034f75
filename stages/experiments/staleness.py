"""Whether results are of the code beside them: what dvc.lock says of each stage, against what is there."""

import hashlib
from typing import Any

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.fs import GitFileSystem
from dvc.repo import Repo
from dvc.scm import SCMError
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from stages.errors import InputError, one_line

_NOT_HERE = ("deleted", "not in cache")  # as all data are where nothing was pulled


def stale_stages(repo: Repo | None = None) -> list[str]:
    """The stages whose command, parameters, code, data or outputs are others than dvc.lock has, in their order.

    `dvc repro --dry` asks the same of the workspace alone, and fails where a stage has changed whose data are not here.

    Args:
        repo: that of a commit, which reads its files from Git; None: the workspace.

    Raises:
        InputError: this is not a DVC repository, or its dvc.yaml is damaged.
    """
    try:
        repo = repo or Repo()
        stages: list[Any] = [stage for stage in repo.index.stages if stage.cmd and not stage.frozen]
        return [stage.name for stage in stages if _is_stale(repo, stage)]
    except (DvcException, SCMError) as error:
        hint = "; run from the root of the repository" if isinstance(error, NotDvcRepoError | SCMError) else ""
        raise InputError(one_line(error) + hint) from None


def _is_stale(repo: Repo, stage: Any) -> bool:
    made = {out.fs_path: out.hash_info for out in repo.index.outs}
    for item in (*stage.deps, *stage.outs):
        if isinstance(repo.fs, GitFileSystem) and repo.fs.isdir(item.fs_path):
            states = ["modified"] if _hash_of_folder(repo, item.fs_path) != item.hash_info else []
        else:
            states = list(item.status().values())
        if "deleted" in states and made.get(item.fs_path, item.hash_info) != item.hash_info:
            return True
        if any(state not in _NOT_HERE for state in states):
            return True
    return stage.changed_stage()


def _hash_of_folder(repo: Repo, folder: str) -> HashInfo | None:
    """That of a folder in a commit, where DVC heeds no .dvcignore."""
    tree = Tree()
    for path in repo.fs.find(folder):
        if not repo.dvcignore.is_ignored_file(path):
            digest = hashlib.md5(repo.fs.cat_file(path), usedforsecurity=False).hexdigest()
            tree.add(repo.fs.relparts(path, folder), None, HashInfo("md5", digest))
    tree.digest()
    return tree.hash_info
