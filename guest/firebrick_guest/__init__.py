"""The guest agent: runs inside every sandbox and serves its processes and files over HTTP/1.1.

Standard library only, and as little of it as can be: the agent's start is on the path of every create, and its
memory is paid for once per sandbox. It imports nothing of the rest of Firebrick. See api/guest.md.
"""
