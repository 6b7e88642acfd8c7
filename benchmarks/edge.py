"""The edge beside nginx, in one run on one machine: small requests, added latency, large bodies.

    python benchmarks/edge.py [--seconds 4] [--megabytes 1024] [--tls]

Needs `nginx` (the origin, and the proxy to compare with), `wrk`, and `curl` for HTTP/2. With --tls clients speak TLS to
both proxies; the way from a proxy to the origin stays plain. Everything listens on loopback; every server
has one worker. Ratios count, not figures: all parties share the machine's cores.
"""

import argparse
import asyncio
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.certificates import self_signed

ORIGIN_HOST = "127.31.7.1"
MIB = 1024 * 1024
IN_TLS = False
SANDBOX_ID = "ibench00000000000000"

NGINX = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s; client_max_body_size 0; sendfile on;
  upstream origin {{ server {host}:{origin}; keepalive 128; }}
  upstream sink {{ server {host}:{sink}; keepalive 16; }}
  server {{ listen {host}:{origin}; root {dir}/files; location = /ok {{ return 200 "ok"; }} }}
  server {{ listen 127.0.0.1:{proxy}{tls}; proxy_buffer_size 256k; proxy_buffers 8 256k; proxy_busy_buffers_size 512k;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off;
    location / {{ proxy_pass http://origin; }}
    location /sink {{ proxy_pass http://sink; }} }}
}}
"""


NGINX_TLS = " ssl http2; ssl_certificate {dir}/self.pem; ssl_certificate_key {dir}/self.key; http2_chunk_size 16k"


def connect(address: tuple[str, int]) -> socket.socket:
    """To a proxy in TLS, if that is measured; to the origin plain."""
    plain = socket.create_connection(address)
    if not IN_TLS or address[0] == ORIGIN_HOST:
        return plain
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(plain)


def serve_edge(port: int, certificates: Path | None) -> None:
    import uvloop

    from firebrick.catalog.base import Route
    from firebrick.catalog.memory import MemoryCatalog
    from firebrick.clock import SystemClock
    from firebrick.edge.server import Edge
    from firebrick.edge.tls import server_context
    from firebrick.main.edge import raise_file_limit
    from firebrick.model.ids import MachineId, SandboxId

    async def run() -> None:
        raise_file_limit()
        catalog = MemoryCatalog()
        await catalog.publish(Route(sandbox_id=SandboxId(SANDBOX_ID), machine_id=MachineId("m1"), address=ORIGIN_HOST))
        edge = Edge(domain="sandbox.test", catalog=catalog, clock=SystemClock())
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        if certificates is None:
            await edge.serve("127.0.0.1", port)
        else:
            context = server_context(certificates / "self.pem", certificates / "self.key")
            await edge.serve_tls("127.0.0.1", port, context)
        await stop.wait()
        await edge.close()

    uvloop.run(run())


def serve_sink(port: int) -> None:
    """Reads bodies as fast as it can and says how much came."""
    with socket.create_server((ORIGIN_HOST, port)) as listener:
        while True:
            connection, _ = listener.accept()
            # A thread each: proxies keep their connections, and the next one must not wait behind.
            threading.Thread(target=serve_uploads, args=(connection,), daemon=True).start()


def serve_uploads(connection: socket.socket) -> None:
    buffer = bytearray(MIB)
    while True:
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        match = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        left = int(match[1]) - len(rest) if match else 0
        while left > 0:
            count = connection.recv_into(buffer)
            if not count:
                return
            left -= count
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def head_for(port: int, path: str, method: str = "GET", length: int | None = None) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"E2b-Sandbox-Id: {SANDBOX_ID}", f"E2b-Sandbox-Port: {port}",
    ]  # fmt: skip
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def read_head(connection: socket.socket) -> bytes:
    """Return what of the body came with the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        fresh = connection.recv(65536)
        if not fresh:
            raise ConnectionError("closed before the head ended")
        data += fresh
    head, _, rest = data.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ConnectionError(head.decode("latin-1"))
    return rest


def download(address: tuple[str, int], origin_port: int, size: int) -> float:
    """MB/s of one large response."""
    buffer = bytearray(MIB)
    with connect(address) as connection:
        start = time.perf_counter()
        connection.sendall(head_for(origin_port, "/large"))
        left = size - len(read_head(connection))
        while left > 0:
            count = connection.recv_into(buffer)
            if not count:
                raise ConnectionError("truncated")
            left -= count
        return size / 1e6 / (time.perf_counter() - start)


def upload(address: tuple[str, int], sink_port: int, size: int) -> float:
    """MB/s of one large request."""
    block = bytes(MIB)
    with connect(address) as connection:
        start = time.perf_counter()
        connection.sendall(head_for(sink_port, "/sink", "POST", size))
        for _ in range(size // MIB):
            connection.sendall(block)
        read_head(connection)
        return size / 1e6 / (time.perf_counter() - start)


def latency_us(address: tuple[str, int], origin_port: int, count: int = 2000) -> float:
    """Median of one small request after the other on one connection."""
    request = head_for(origin_port, "/ok")
    spent = []
    with connect(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            start = time.perf_counter()
            connection.sendall(request)
            rest = read_head(connection)
            while not rest:
                rest = connection.recv(65536)
            spent.append(time.perf_counter() - start)
    return statistics.median(spent) * 1e6


def requests_per_s(address: tuple[str, int], origin_port: int, seconds: int) -> float:
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "-H", f"E2b-Sandbox-Id: {SANDBOX_ID}"]
    command += ["-H", f"E2b-Sandbox-Port: {origin_port}", f"{scheme(address)}://{address[0]}:{address[1]}/ok"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(output)
    match = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if match is None:
        raise RuntimeError(output)
    return float(match[1])


def scheme(address: tuple[str, int]) -> str:
    return "https" if IN_TLS and address[0] != ORIGIN_HOST else "http"


def h2_transfer(address: tuple[str, int], port: int, path: str, upload_file: Path | None = None) -> float:
    """MB/s of one large body by curl in HTTP/2; straight to the origin in HTTP/1.1."""
    command = ["curl", "-sk", "--http2", "-o", "/dev/null", "-w", "%{http_code} %{speed_download} %{speed_upload}"]
    command += ["-H", f"E2b-Sandbox-Id: {SANDBOX_ID}", "-H", f"E2b-Sandbox-Port: {port}", "-H", "Expect:"]
    command += ["-X", "POST", "-T", str(upload_file)] if upload_file else []
    command.append(f"{scheme(address)}://{address[0]}:{address[1]}{path}")
    done = subprocess.run(command, capture_output=True, text=True)
    status, down, up = done.stdout.split()
    if status != "200":
        raise RuntimeError(done.stdout + done.stderr)
    return float(up if upload_file else down) / 1e6


def free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], address: tuple[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the time of the block; entered when it accepts connections."""
    child = subprocess.Popen(command)
    try:
        for _ in range(400):
            try:
                socket.create_connection(address, timeout=1).close()
                break
            except OSError:
                time.sleep(0.025)
        else:
            raise RuntimeError(f"{command[0]} did not start")
        yield child
    finally:
        child.terminate()
        child.wait()


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--serve", choices=("edge", "sink"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--certificates", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tls", action="store_true", help="clients speak TLS, and HTTP/2 in two more rows")
    options = parser.parse_args()
    if options.serve:
        if options.serve == "edge":
            serve_edge(options.port, options.certificates)
        else:
            serve_sink(options.port)
        return 0
    global IN_TLS
    IN_TLS = options.tls
    missing = [name for name in ("nginx", "wrk") if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") is None]
    if missing:
        print(f"Missing: {' '.join(missing)}. On Debian: apt-get install nginx-light wrk", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        measure(Path(stack.enter_context(tempfile.TemporaryDirectory())), stack, options)
    return 0


def measure(directory: Path, stack: ExitStack, options: argparse.Namespace) -> None:
    origin, sink = free_port(ORIGIN_HOST), free_port(ORIGIN_HOST)
    edge_at, nginx_at = ("127.0.0.1", free_port("127.0.0.1")), ("127.0.0.1", free_port("127.0.0.1"))
    size = options.megabytes * MIB
    directory.chmod(0o755)
    (directory / "files").mkdir()
    with (directory / "files" / "large").open("wb") as large:
        large.truncate(size)
    config = directory / "nginx.conf"
    tls = NGINX_TLS.format(dir=directory) if options.tls else ""
    certificates = ["--certificates", str(directory)] if options.tls else []
    if options.tls:
        self_signed(directory)
    config.write_text(
        NGINX.format(dir=directory, host=ORIGIN_HOST, origin=origin, sink=sink, proxy=nginx_at[1], tls=tls)
    )
    nginx = shutil.which("nginx") or "/usr/sbin/nginx"
    me = [sys.executable, "-m", "benchmarks.edge"]
    stack.enter_context(process([*me, "--serve", "sink", "--port", str(sink)], (ORIGIN_HOST, sink)))
    stack.enter_context(process([nginx, "-c", str(config), "-p", str(directory)], nginx_at))
    edge = stack.enter_context(process([*me, "--serve", "edge", "--port", str(edge_at[1]), *certificates], edge_at))
    direct = (ORIGIN_HOST, origin)
    print(f"{'':22}{'direct':>10}{'nginx':>10}{'edge':>10}   edge/nginx")
    rows: tuple[tuple[str, Callable[[tuple[str, int]], float], tuple[str, int]], ...] = (
        ("small requests/s", lambda at: requests_per_s(at, origin, options.seconds), direct),
        ("latency p50 us", lambda at: latency_us(at, origin), direct),
        (f"download {options.megabytes} MiB MB/s", lambda at: download(at, origin, size), direct),
        (f"upload {options.megabytes} MiB MB/s", lambda at: upload(at, sink, size), (ORIGIN_HOST, sink)),
    )
    if options.tls:
        large_file = directory / "files" / "large"
        rows += (
            ("h2 download MB/s", lambda at: h2_transfer(at, origin, "/large"), direct),
            ("h2 upload MB/s", lambda at: h2_transfer(at, sink, "/sink", large_file), (ORIGIN_HOST, sink)),
        )
    for name, run, straight in rows:
        run(straight)  # warms the page cache
        values = [run(at) for at in (straight, nginx_at, edge_at)]
        print(f"{name:22}{values[0]:10.0f}{values[1]:10.0f}{values[2]:10.0f}{values[2] / values[1]:12.2f}")
    print(f"{'edge RSS MiB':22}{rss_mib(edge.pid):30.0f}")


if __name__ == "__main__":
    sys.exit(main())
