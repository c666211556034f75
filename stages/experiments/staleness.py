"""Whether results are of the code beside them: what dvc.lock says of each stage, against what is there."""

from stat import S_IFLNK, S_IFMT
from typing import Any

from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.fs import GitFileSystem
from dvc.repo import Repo
from dvc.scm import SCMError
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.tree import Tree

from stages.errors import InputError, one_line
from stages.files import md5_of

_SUBMODULE = 0o160000  # the mode of one in Git
_NOT_HERE = ("deleted", "not in cache")  # as all data are where nothing was pulled


def open_repository() -> Repo:
    """DVC's, of the working directory.

    Raises:
        InputError: there is none, its settings are damaged, DVC cannot write its files, or Git's are too new for it.
    """
    try:
        repo = Repo()
        repo.scm  # noqa: B018  opened only now
        return repo
    except (DvcException, SCMError) as error:
        hint = "; run from the root of the repository" if isinstance(error, NotDvcRepoError | SCMError) else ""
        raise InputError(one_line(error).rstrip(".") + hint) from None
    except Exception as error:  # of the system, or of one of three libraries that read Git
        hint = "; it writes to .dvc/tmp and to what DVC_SITE_CACHE_DIR names" if isinstance(error, OSError) else ""
        raise InputError(f"DVC cannot open this repository ({type(error).__name__}: {one_line(error)}){hint}") from None


def stale_stages(repo: Repo | None = None) -> dict[str, list[str]]:
    """The stages that would run again, in their order, and of each what is other than in dvc.lock.

    That are paths of code, data and outputs, names of parameters, and "cmd". `dvc repro --dry` asks the same of the
    workspace alone, and fails where a stage has changed whose data are not here.

    Args:
        repo: that of a commit, which reads its files from Git; None: the workspace.

    Raises:
        InputError: as `open_repository`, or its dvc.yaml is damaged.
    """
    repo = repo or open_repository()
    try:
        stages: list[Any] = [stage for stage in repo.index.stages if stage.cmd and not stage.frozen]
        places = [repo.fs.relpath(stage.path, repo.root_dir) for stage in stages]
        names = [stage.name if place == "dvc.yaml" else f"{place}:{stage.name}" for place, stage in zip(places, stages)]
        differing = {name: _differences(repo, stage) for name, stage in zip(names, stages)}
    except DvcException as error:
        raise InputError(one_line(error)) from None
    return {name: differences for name, differences in differing.items() if differences}


def _differences(repo: Repo, stage: Any) -> list[str]:
    found = ["cmd"] if stage.changed_stage() else []
    for item in (*stage.deps, *stage.outs):
        if isinstance(repo.fs, GitFileSystem) and _leads_elsewhere(repo.fs, item.fs_path):
            states = []
        elif isinstance(repo.fs, GitFileSystem) and repo.fs.isdir(item.fs_path):
            states = ["modified"] if _hash_of_folder(repo, item.fs_path) != item.hash_info else []
        else:
            states = list(item.status().values())
        for state in states:
            if isinstance(state, dict):  # of parameters, by their names
                found += state
            elif state not in _NOT_HERE or not _may_lack(repo, item):
                found.append(item.def_path)
    return found


def _leads_elsewhere(fs: GitFileSystem, path: str) -> bool:
    """Whether a path of a commit is, is below or holds a symbolic link or submodule: DVC hashes what is on the disk."""
    there = [each for each in (*fs.parents(path), *fs.find(path)) if fs.exists(each)]
    return any(S_IFMT(fs.info(each)["mode"]) in (S_IFLNK, _SUBMODULE) for each in there)


def _may_lack(repo: Repo, item: Any) -> bool:
    """Whether it need not be here: DVC keeps it, as dvc.lock has it, or it is the user's, and not in Git."""
    kept = [out for out in repo.index.outs if out.use_cache and repo.fs.isin_or_eq(item.fs_path, out.fs_path)]
    if kept:
        return any(out.fs_path != item.fs_path or out.hash_info == item.hash_info for out in kept)
    place = item.fs_path.lstrip("/") if isinstance(repo.fs, GitFileSystem) else item.fs_path
    return item.def_path.startswith(("/", "..")) or repo.scm.is_ignored(place)


def _hash_of_folder(repo: Repo, folder: str) -> HashInfo | None:
    """That of a folder in a commit, where DVC heeds no .dvcignore."""
    tree = Tree()
    for path in repo.fs.find(folder):
        if not repo.dvcignore.is_ignored_file(path):
            tree.add(repo.fs.relparts(path, folder), None, HashInfo("md5", md5_of(repo.fs.cat_file(path))))
    tree.digest()
    return tree.hash_info
