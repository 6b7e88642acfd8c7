"""The lab: outer machines in emulation with a working /dev/kvm, for tests that this machine cannot run itself.

Its pages: docs/reference/lab.md. `root` builds what a machine boots from, `state` keeps one that has booted,
`outer` starts one, `channel` talks to it, `fleet` is several with one owner, `__main__` is `./dev lab`.
"""
