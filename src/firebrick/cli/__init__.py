"""The `firebrick` command. It reaches a running instance as any user does: over HTTP, with the official SDK."""
