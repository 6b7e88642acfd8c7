"""Hands: thin wrappers named as the kernel names things. The only place for subprocess, ctypes and raw syscalls."""
