"""Connections by name: what a sandbox may reach by the name in the first bytes it sends, and the process that dials.

Pure: `heads`, `tls_hello`, `http_head` (what a guest sent), `decision` (what follows), `refusals` (what is told).
The process: `process`, `visit`, `resolver`. The node agent's side of it: `keeper`.
"""
