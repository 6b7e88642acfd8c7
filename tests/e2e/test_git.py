"""The SDK's git module, all of it, between repositories inside one sandbox."""

from e2b import Sandbox

HOME = "/home/user"
ORIGIN, WORK, OTHER = f"{HOME}/origin.git", f"{HOME}/work", f"{HOME}/other"


def test_a_repository_is_made_changed_and_shared(box: Sandbox) -> None:
    """init, commit, branches, remotes, push, clone and pull do what git does."""
    git = box.git
    git.configure_user("Ada", "ada@example.com")
    git.set_config("pull.rebase", "true")
    assert git.get_config("user.name") == "Ada"
    git.init(ORIGIN, bare=True, initial_branch="main")
    git.init(WORK, initial_branch="main")
    box.files.write(f"{WORK}/a b.txt", "1")
    git.add(WORK)
    git.commit(WORK, "First")
    git.remote_add(WORK, "origin", ORIGIN)
    assert git.remote_get(WORK, "origin") == ORIGIN
    git.push(WORK, remote="origin", branch="main")
    git.clone(ORIGIN, OTHER)
    box.files.write(f"{WORK}/a b.txt", "2")
    git.add(WORK)
    git.commit(WORK, "Second")
    git.push(WORK, remote="origin", branch="main")
    git.pull(OTHER, remote="origin", branch="main")
    assert box.files.read(f"{OTHER}/a b.txt") == "2"


def test_changes_are_told_taken_back_and_branched(box: Sandbox) -> None:
    """status, restore, reset and the branch commands; credentials are kept where git looks for them."""
    git = box.git
    git.init(WORK, initial_branch="main")
    box.files.write(f"{WORK}/f", "old")
    git.add(WORK)
    git.commit(WORK, "First", author_name="Ada", author_email="ada@example.com")
    box.files.write(f"{WORK}/f", "new")
    assert [item.name for item in git.status(WORK).file_status] == ["f"]
    git.restore(WORK, ["f"])
    assert box.files.read(f"{WORK}/f") == "old"
    box.files.write(f"{WORK}/f", "new")
    git.add(WORK)
    git.reset(WORK, mode="hard")
    assert git.status(WORK).is_clean
    git.create_branch(WORK, "side")
    git.checkout_branch(WORK, "main")
    assert set(git.branches(WORK).branches) == {"main", "side"}
    git.delete_branch(WORK, "side")
    git.dangerously_authenticate("ada", "secret", host="git.example.com")
    assert "ada:secret@git.example.com" in box.files.read(f"{HOME}/.git-credentials")
