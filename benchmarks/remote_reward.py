"""What sending pictures to a reward server costs, beside scoring them in the process.

    python benchmarks/remote_reward.py [SIDE] [PICTURES] [MILLISECONDS]

A reward that only waits stands for one that computes on a GPU. Server, a process of its own on this machine, and client
are as they come: so many threads call the reward (`--workers`), so many requests go at a time (`concurrency`). In the
process as many threads call it, a picture each; so that they differ in nothing but the way, a request holds one picture
too, where `batch` would send up to four. All take turns; the ratio of their fastest rounds is printed, and the CPU's
time for a picture: in the process (the reward alone, which looks at the picture), in the client, and in the server with
the reward. On a machine that has other work these say more than the ratio: what client and server compute has to fit
into their cores.
"""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import httpx2
import numpy as np
import psutil
from PIL import Image

from unipic.rewards.remote import RemoteReward
from unipic.rewards.reward import Sample
from unipic.serve.reward import serve_reward

ROUNDS = 5


class Waiting:
    """Waits for each picture, and gives a number that depends on it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        time.sleep(self.seconds * len(samples))
        return [float(np.asarray(sample.picture)[0, :, 0].mean()) for sample in samples]


def main(side: int, pictures: int, milliseconds: float) -> None:
    rng = np.random.default_rng(0)
    samples = [Sample("", Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))) for _ in range(pictures)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, __file__, "serve", str(port), str(milliseconds)])
    try:
        measure(samples, Waiting(milliseconds / 1000), f"http://127.0.0.1:{port}", psutil.Process(server.pid))
    finally:
        server.kill()
    print(f"{side}x{side}, {milliseconds:g} ms, {platform.machine()}, {psutil.cpu_count()} cores, {date.today()}")


def measure(samples: Sequence[Sample], waiting: Waiting, url: str, server: psutil.Process) -> None:
    while True:
        try:
            httpx2.get(f"{url}/health", trust_env=False).raise_for_status()
            break
        except httpx2.HTTPError:
            time.sleep(0.2)
    remote = RemoteReward([url], batch=1)
    seconds: dict[str, list[float]] = {"in the process": [], "remote": []}
    cpu: dict[str, list[float]] = {"in the process": [], "client": [], "server": []}
    with ThreadPoolExecutor(remote.concurrency) as pool:
        for _ in range(ROUNDS):
            start, own = time.perf_counter(), time.process_time()
            here = list(pool.map(lambda sample: waiting.score([sample])[0], samples))
            seconds["in the process"].append(time.perf_counter() - start)
            cpu["in the process"].append(time.process_time() - own)
            start, own, other = time.perf_counter(), time.process_time(), sum(server.cpu_times()[:2])
            there = remote.score(samples)
            seconds["remote"].append(time.perf_counter() - start)
            cpu["client"].append(time.process_time() - own)
            cpu["server"].append(sum(server.cpu_times()[:2]) - other)
            if here != there:
                sys.exit("the scores differ")
    best = {name: len(samples) / min(rounds) for name, rounds in seconds.items()}
    print("   ".join(f"{name} {rate:.0f} pictures/s" for name, rate in best.items()), end="   ")
    print(f"ratio {best['remote'] / best['in the process']:.2f}")
    print("   ".join(f"{name} {1000 * min(rounds) / len(samples):.1f} ms of CPU" for name, rounds in cpu.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        waiting = Waiting(float(sys.argv[3]) / 1000)
        serve_reward(waiting, "waiting", "127.0.0.1", int(sys.argv[2]))
    else:
        arguments = sys.argv[1:] + ["512", "160", "50"][len(sys.argv) - 1 :]
        main(int(arguments[0]), int(arguments[1]), float(arguments[2]))
