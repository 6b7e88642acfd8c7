"""A large file up to and down from a running sandbox through the edge, against nginx with the same bytes.

python -m benchmarks.transfer --runtime gvisor

nginx serves (sendfile) and takes (PUT) the file from a directory beside the sandboxes'. One client for all parties:
plain sockets, one connection, the same pieces. The rounds take turns, so that a busy machine is busy for both. Needs
nginx.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from e2b import Sandbox

from benchmarks.figures import Figures, machine
from tests.support.instance import free_ports, instance

MIB = 1024 * 1024
NGINX = """
daemon off; worker_processes 1; pid {dir}/pid; error_log {dir}/error.log warn; user root;
events {{ }}
http {{
  access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {dir}/body; proxy_temp_path {dir}/p;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{ listen 127.0.0.1:{port}; root {dir}/files; dav_methods PUT DELETE; }}
}}
"""


@contextmanager
def nginx() -> Iterator[int]:
    """A server of one empty directory; its port."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="firebrick-nginx-", dir="/var/tmp") as name:
        Path(name, "files").mkdir()
        Path(name, "conf").write_text(NGINX.format(dir=name, port=port))
        program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
        if program is None:
            sys.exit("nginx is missing. On Debian: apt-get install nginx-light")
        server = subprocess.Popen([program, "-c", f"{name}/conf", "-p", name])
        try:
            yield port
        finally:
            server.terminate()
            server.wait()


class Client:
    """Sends and takes one file over one connection, throwing away what it takes."""

    def __init__(self, port: int, target: str, method: str, headers: dict[str, str]) -> None:
        self._port = port
        self._target = target
        self._method = method
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def upload(self, count_mib: int) -> None:
        piece = bytes(range(256)) * (MIB // 256)
        with self._connect(self._method, f"Content-Length: {count_mib * MIB}\r\n") as connection:
            for _ in range(count_mib):
                connection.sendall(piece)
            self._head(connection)

    def download(self, count_mib: int) -> None:
        with self._connect("GET", "") as connection:
            left = count_mib * MIB - len(self._head(connection))
            buffer = bytearray(MIB)
            while left > 0:
                count = connection.recv_into(buffer)
                if not count:
                    raise ConnectionError(f"{left} bytes are missing")
                left -= count

    def _connect(self, method: str, headers: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._port))
        head = f"{method} {self._target} HTTP/1.1\r\nHost: 127.0.0.1\r\n{self._headers}{headers}\r\n"
        connection.sendall(head.encode())
        return connection

    def _head(self, connection: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            fresh = connection.recv(65536)
            if not fresh:
                raise ConnectionError("closed before an answer")
            data += fresh
        head, _, rest = data.partition(b"\r\n\r\n")
        if b" 20" not in head.partition(b"\r\n")[0]:
            raise ConnectionError(head.decode("latin-1"))
        return rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("gvisor", "container"), default="gvisor")
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = Figures(f"transfer of {options.megabytes} MiB, {options.runtime} ({machine()})")
    with (
        instance(runtime=options.runtime, warm_count="0") as found,
        nginx() as nginx_port,
        Sandbox.create(timeout=1200, **found.sdk) as box,
    ):
        url = urlsplit(box.upload_url("/home/user/big"))
        own = {
            "E2b-Sandbox-Id": box.sandbox_id,
            "E2b-Sandbox-Port": "49983",
            "Content-Type": "application/octet-stream",
        }
        edge_port = urlsplit(found.sandbox_url).port or 80
        read_url = urlsplit(box.download_url("/home/user/big"))
        ours_up = Client(edge_port, f"{url.path}?{url.query}", "POST", own)
        ours_down = Client(edge_port, f"{read_url.path}?{read_url.query}", "GET", own)
        plain = Client(nginx_port, "/big", "PUT", {})
        for _ in range(options.count):
            with figures.timed("upload through the edge"):
                ours_up.upload(options.megabytes)
            with figures.timed("upload to nginx"):
                plain.upload(options.megabytes)
            with figures.timed("download through the edge"):
                ours_down.download(options.megabytes)
            with figures.timed("download from nginx"):
                plain.download(options.megabytes)
    figures.against = {
        "upload through the edge": "upload to nginx",
        "download through the edge": "download from nginx",
    }
    for name, base in figures.against.items():
        speed = options.megabytes / figures.p50(name) * 1000
        share = figures.p50(base) / figures.p50(name)
        figures.notes.append(f"{name}: {speed:.0f} MiB/s, {share:.2f} × nginx.")
    figures.show()
    figures.write(options.json)


if __name__ == "__main__":
    main()
