"""What runs on a board beside the bundles: sent over the line as text, Python 3.9 and later, standard library alone.

`serve` answers one JSON line for each JSON line on stdin. `supervise` is a process of its own that outlives the line:
it holds the board's lock while the steps of one job run, and writes down how they ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

MARK = b"edgekit-board 1\n"
CHUNK = 1 << 20
MARGIN = 50_000_000
"""Bytes of a disk that are left to the board itself."""
OLD_JOB_S = 86400
UNWANTED = ("PYTHON", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD")
RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert",
            "tflite": "tflite_runtime", "tensorrt": "tensorrt", "numpy": "numpy"}  # fmt: skip


class Refusal(Exception):  # noqa: N818
    """One message for the user; the host ends with `code`."""

    def __init__(self, message: str, code: int = 5) -> None:
        super().__init__(message)
        self.code = code


def boot_id(path: str) -> str:
    """What changes with every start of the board; "" where it is unknown."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return ""


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """What the board is. Nothing is written."""
    home = os.path.expanduser("~")
    base = os.path.expanduser(request["folder"])
    there = base
    while not os.path.exists(there):
        there = os.path.dirname(there)
    disk = os.statvfs(there)
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError), open("/proc/meminfo", encoding="ascii") as file:
        memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemTotal:"))
        return {
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
            "executable": sys.executable,
            "implementation": sys.implementation.name,
            "bits": 64 if sys.maxsize > 2**32 else 32,
            "arch": platform.machine(),
            **processor(request["features"]),
            "libc": libc(),
            "kernel": platform.release(),
            "cores": cores,
            "memory_bytes": memory,
            "home": home,
            "folder": base,
            "writable": os.access(there, os.W_OK | os.X_OK) and not disk.f_flag & os.ST_RDONLY,
            "free_bytes": disk.f_bavail * disk.f_frsize,
            "runtimes": sorted(name for name, module in RUNTIMES.items() if importlib.util.find_spec(module)),
            "boot_id": boot_id(request["boot_id_path"]),
            "used_bytes": usage(base),
        }
    raise Refusal("/proc/meminfo cannot be read: this is no Linux that edgekit knows")


def processor(wanted: list[str]) -> dict[str, Any]:
    """Model and features, from the first of the processors; a device tree's name where there is no other."""
    info = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in iter(file.readline, "\n"):
            if not line:
                break
            key, _, value = line.partition(":")
            info[key.strip()] = value.strip()
    model = info.get("model name", "")
    with contextlib.suppress(OSError), open("/proc/device-tree/model", encoding="utf-8", errors="replace") as file:
        model = model or file.read(200).strip("\0\n ")
    part = "part {} of implementer {}".format(info.get("CPU part", "?"), info.get("CPU implementer", "?"))
    flags = (info.get("flags") or info.get("Features") or "").split()
    return {"cpu": model or part, "features": [name for name in wanted if name in flags]}


def libc() -> list[str]:
    """`["glibc", "2.36"]` or `["musl", "1.2"]`."""
    name, version = platform.libc_ver()
    if name == "glibc":
        return [name, version]
    for folder in ("/lib", "/usr/lib"):
        with contextlib.suppress(OSError):
            if any(entry.startswith("ld-musl-") for entry in os.listdir(folder)):
                return ["musl", "1.2"]
    return [name or "unknown", version]


class Store:
    """The folder of edgekit on the board: `blobs`, `envs`, `jobs`, `cache`."""

    def __init__(self, folder: str) -> None:
        self.base = os.path.expanduser(folder)

    def path(self, *parts: str) -> str:
        for part in parts:
            if not part or part.startswith(("/", "..")) or "/../" in part or "\0" in part:
                raise Refusal(f"the name {part!r} leads out of the folder", 2)
        return os.path.join(self.base, *parts)

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make room for `need_bytes` within the quota and on the disk; blobs and environments in `keep` stay."""
        for name in ("blobs", "envs", "jobs", "cache"):
            os.makedirs(self.path(name), mode=0o700, exist_ok=True)
        need, keep = int(request["need_bytes"]), set(request["keep"])
        self._forget_old_jobs()
        for kind in ("blobs", "cache/bundles", "envs"):
            for path in self._oldest(kind, keep):
                if self._fits(need, request["quota_bytes"])[0]:
                    break
                remove(path)
        fits, why = self._fits(need, request["quota_bytes"])
        if not fits:
            raise Refusal(why)
        return {"folder": self.base}

    def _fits(self, need: int, quota: int) -> tuple[bool, str]:
        used, disk = usage(self.base), os.statvfs(self.base)
        free = disk.f_bavail * disk.f_frsize
        if used + need > quota:
            return False, (
                f"{need / 1e6:.0f} MB more would pass the quota of {quota / 1e6:.0f} MB ({used / 1e6:.0f} MB are used "
                f"in {self.base}). Raise `quota_mb`, or clean the board: `edgekit devices clean`"
            )
        if need + MARGIN > free:
            return False, (
                f"no space: {need / 1e6:.0f} MB and {MARGIN / 1e6:.0f} MB to spare are needed in {self.base}, "
                f"{free / 1e6:.0f} MB are free"
            )
        return True, ""

    def _oldest(self, kind: str, keep: set[str]) -> list[str]:
        folder = self.path(kind)
        names = [n for n in os.listdir(folder) if n.partition(".")[0] not in keep] if os.path.isdir(folder) else []
        return sorted((os.path.join(folder, name) for name in names), key=lambda p: os.lstat(p).st_mtime)

    def _forget_old_jobs(self) -> None:
        for name in os.listdir(self.path("jobs")):
            folder = self.path("jobs", name)
            if time.time() - os.lstat(folder).st_mtime > OLD_JOB_S and ended(folder):
                remove(folder)

    def have(self, request: dict[str, Any]) -> dict[str, Any]:
        """How many bytes of a file are here, whole chunks alone. A whole file is hashed again: cards forget."""
        path = self.path("blobs", request["sha256"])
        if os.path.exists(path):
            if digest(path) == request["sha256"]:
                os.utime(path)
                return {"complete": True, "have": request["size"]}
            os.unlink(path)
        part = path + ".part"
        size = os.path.getsize(part) if os.path.exists(part) else 0
        return {"complete": False, "have": min(size, request["size"]) // CHUNK * CHUNK}

    def chunk(self, request: dict[str, Any], data: bytes) -> dict[str, Any]:
        """One chunk at its offset. A damaged one is refused and not written."""
        if hashlib.sha256(data).hexdigest() != request["digest"]:
            return {"accepted": False}
        path = self.path("blobs", request["sha256"] + ".part")
        with self.alone(), open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
            file.seek(request["offset"])
            file.write(data)
        return {"accepted": True}

    def finish(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the file up under its digest where that is what it has; otherwise remove it."""
        path = self.path("blobs", request["sha256"])
        with self.alone():
            if os.path.exists(path):  # another client sent it meanwhile
                remove(path + ".part")
                return {"complete": True}
            with open(path + ".part", "ab") as file:  # an empty file has no chunk
                file.truncate(request["size"])
                os.fsync(file.fileno())
            if digest(path + ".part") != request["sha256"]:
                os.unlink(path + ".part")
                return {"complete": False}
            os.chmod(path + ".part", 0o400)
            os.replace(path + ".part", path)
        return {"complete": True}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Several clients may send the same file: what changes it waits for what another of them is changing."""
        handle = os.open(self.path("blobs"), os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def environment(self, request: dict[str, Any]) -> dict[str, Any]:
        """How to start Python in an installed environment; null where it is not there."""
        path = self.path("envs", request["key"], "ready.json")
        if not os.path.exists(path):
            return {"ready": None}
        os.utime(self.path("envs", request["key"]))
        return {"ready": load(path)}

    def start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start a job in a session of its own, unless it was started before."""
        folder = self.path("jobs", request["id"])
        if os.path.exists(os.path.join(folder, "job.json")):
            return {"started": False}
        remove(folder)  # a start that was cut short
        os.makedirs(folder, mode=0o700)
        for name, sha in request["files"].items():
            place = os.path.join(folder, self.path(name)[len(self.base) + 1 :])
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.link(self.path("blobs", sha), place)
        script = self.path("board.py")
        save(script, SOURCE)
        lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = {**request["job"], "boot_id": boot_id(request["job"]["boot_id_path"]), "folder": folder}
        job["environment"] = {
            k: v for k, v in os.environ.items() if not k.startswith(UNWANTED) and k != "SSH_AUTH_SOCK"
        }
        job["environment"].update(job.pop("extra", {}), EDGEKIT_CACHE=self.path("cache"))
        home = self.path("cache/home")  # what runtimes keep in a home is kept here, and cleaned
        os.makedirs(home, mode=0o700, exist_ok=True)
        job["environment"].update(HOME=home, XDG_CACHE_HOME=os.path.join(home, ".cache"))
        save(os.path.join(folder, "spec.json"), json.dumps(job))
        with open(os.path.join(folder, "supervisor.log"), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", script, "supervise", folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                cwd=folder,
                pass_fds=[lock],
            )
        os.close(lock)
        save(os.path.join(folder, "job.json"), json.dumps({"pid": process.pid, "boot_id": job["boot_id"]}))
        return {"started": True}

    def wait(self, request: dict[str, Any]) -> dict[str, Any]:
        """Until the job ended. Asleep in the kernel, or, with `follow`, handing on what the agent says."""
        folder = self.path("jobs", request["id"])
        if not os.path.exists(os.path.join(folder, "job.json")):
            raise Refusal(f"the board knows no job {request['id']}: it was cleaned, or its disk lost it")
        if request["follow"]:
            follow(folder)
        with open(os.path.join(folder, "lock"), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        started, now = load(os.path.join(folder, "job.json")), boot_id(request["boot_id_path"])
        path = os.path.join(folder, "done.json")
        if os.path.exists(path):
            return {**load(path), "ended": True, "sizes": sizes(folder)}
        if started["boot_id"] != now:
            return {"ended": False, "reason": "the board was started anew while the job ran"}
        end(started["pid"])
        told = tail(folder, "supervisor.log").strip()
        return {"ended": False, "reason": "the job was ended from outside" + (f": {told}" if told else "")}

    def kill(self, request: dict[str, Any]) -> dict[str, Any]:
        """End a job and everything that it started."""
        folder = self.path("jobs", request["id"])
        with contextlib.suppress(OSError, ValueError):
            if not ended(folder):
                end(load(os.path.join(folder, "job.json"))["pid"])
        remove(folder)
        return {}

    def forget(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove a job that ended."""
        remove(self.path("jobs", request["id"]))
        return {}

    def clean(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove all that edgekit left here."""
        jobs = self.path("jobs")
        running = [n for n in os.listdir(jobs) if not ended(os.path.join(jobs, n))] if os.path.isdir(jobs) else []
        if running and not request["force"]:
            raise Refusal(f"{len(running)} job(s) still run there: {', '.join(running)}. Wait for them, or use --force")
        for name in running:
            self.kill({"id": name})
        freed = usage(self.base)
        for name in ("jobs", "envs", "blobs", "cache", "board.py"):
            remove(self.path(name))
        with contextlib.suppress(OSError):
            os.rmdir(self.base)
        return {"freed_bytes": freed}

    def read(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """A part of a job's file."""
        with open(os.path.join(self.path("jobs", request["id"]), self.path(request["name"])[len(self.base) + 1 :]),
                  "rb") as file:  # fmt: skip
            file.seek(request["offset"])
            data = file.read(min(request["n"], CHUNK))
        return {"n": len(data), "digest": hashlib.sha256(data).hexdigest()}, data


def follow(folder: str) -> None:
    """Hand on the agent's last line of progress, twice a second, until the job ended."""
    told = ""
    while not ended(folder):
        time.sleep(0.5)
        lines = [line for line in tail(folder, "stderr")[-1000:].splitlines() if line.startswith('{"done"')]
        if lines and lines[-1] != told:
            told = lines[-1]
            with contextlib.suppress(ValueError):
                answer({"progress": int(json.loads(told)["done"])})


def ended(folder: str) -> bool:
    """Whether no process holds the job's lock."""
    try:
        with open(os.path.join(folder, "lock"), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def end(group: int) -> None:
    """Ask a process group to end, then make it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            time.sleep(0.3)


def supervise(folder: str) -> None:
    """Run the steps of a job under the board's lock; `done.json` tells how they ended."""
    job = load(os.path.join(folder, "spec.json"))
    started = time.monotonic()
    done: dict[str, Any] = {"code": 70, "step": 0}
    try:
        handle = take(job, folder)
    except OSError as error:
        save(os.path.join(folder, "stderr"), f"edgekit: the board's lock cannot be taken: {error}")
        save(os.path.join(folder, "done.json"), json.dumps({"code": 5, "step": 0}))
        return
    if handle is None:
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit_bytes"], resource.RLIM_INFINITY))
    with open(os.path.join(folder, "stdout"), "wb") as out, open(os.path.join(folder, "stderr"), "wb") as err:
        for step, argv in enumerate(job["steps"]):
            try:
                process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder, env=job["environment"],
                    pass_fds=[handle],
                )  # fmt: skip
                code = process.wait(job["deadline_s"])
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
                done["timeout_s"] = job["deadline_s"]
            except OSError as error:
                err.write(f"edgekit: cannot start {argv[0]}: {error}\n".encode())
                code = 127
            done.update(code=code, step=step)
            if code != 0:
                break
    done["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    done["seconds"] = time.monotonic() - started
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(os.path.join(folder, "done.json"), json.dumps(done))


def take(job: dict[str, Any], folder: str) -> Any:
    """The board's lock, which all of its users share; None where another one has it and this one won't wait."""
    path = job["board_lock"]
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        os.chmod(path, 0o666)
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)  # without O_CREAT: it may be another user's
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if job["wait"] else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = os.pread(handle, 300, 0).decode("utf-8", "replace").strip()
        save(os.path.join(folder, "done.json"), json.dumps({"busy": holder or "another user", "code": 5, "step": 0}))
        return None
    os.ftruncate(handle, 0)
    os.pwrite(handle, "{} since {}\n".format(job["who"], time.strftime("%H:%M:%S")).encode(), 0)
    return handle


def install(target: str, wheels: str) -> int:
    """Wheels into a new environment: a venv, or a plain folder where this Python cannot make one. Nothing is fetched.

    pip comes along as a wheel of its own and is run from it, so that the board needs neither pip nor ensurepip.
    """
    remove(target)
    os.makedirs(target)
    own = os.path.join(target, "venv")
    made = subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", own], capture_output=True, text=True)
    python, extra, into = os.path.join(own, "bin", "python"), {}, []
    if made.returncode or subprocess.run([python, "-I", "-c", ""], capture_output=True).returncode:
        remove(own)
        site = os.path.join(target, "site")
        python, extra, into = sys.executable, {"PYTHONPATH": site}, ["--target", site]
    pip = next(name for name in sorted(os.listdir(wheels)) if name.startswith("pip-") and name.endswith(".whl"))
    own_pip = os.path.join(wheels, pip, "pip")
    command = [python, "-I", "-B", own_pip, "install", "--isolated", "--no-index", "--no-deps",
               "--find-links", wheels, "--require-hashes", "--no-cache-dir", "--disable-pip-version-check", "--quiet",
               "--no-warn-script-location", "-r", os.path.join(wheels, "requirements.txt"), *into]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        full = "No space left" in done.stderr
        print("edgekit: " + ("the disk is full: " if full else "") + done.stderr.strip()[-2000:], file=sys.stderr)
        remove(target)
        return 5 if full else 6
    save(os.path.join(target, "ready.json"), json.dumps({"python": python, "extra": extra, "venv": not into}))
    return 0


def usage(folder: str) -> int:
    """Bytes on the disk; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(root, name))
                seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def sizes(folder: str) -> dict[str, int]:
    """Bytes of what a job may have written."""
    names = ("stdout", "stderr", "outputs.npz")
    return {n: os.path.getsize(p) for n in names if os.path.isfile(p := os.path.join(folder, n))}


def tail(folder: str, name: str) -> str:
    """The last 4 KB of a job's file, as text."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 4096))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def digest(path: str) -> str:
    """sha256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(CHUNK), b""):
            found.update(block)
    return found.hexdigest()


def load(path: str) -> dict[str, Any]:
    """A JSON file."""
    with open(path, encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def save(path: str, text: str) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = f"{path}.{os.getpid()}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove(path: str) -> None:
    """Remove a file or a folder, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def answer(value: dict[str, Any], data: bytes = b"") -> None:
    """One line, and what follows it."""
    sys.stdout.buffer.write(json.dumps(value).encode() + b"\n" + data)
    sys.stdout.buffer.flush()


def reply(request: dict[str, Any], stdin: BinaryIO) -> None:
    """Do one request."""
    op, store = request["op"], Store(request["folder"])
    if op == "probe":
        answer(probe(request))
    elif op == "chunk":
        answer(store.chunk(request, stdin.read(request["n"])))
    elif op == "read":
        answer(*store.read(request))
    elif op in ("prepare", "have", "finish", "environment", "start", "wait", "kill", "forget", "clean"):
        answer(getattr(store, op)(request))
    else:
        raise Refusal(f"unknown request {op!r}", 70)


def serve() -> None:
    """Answer until stdin ends."""
    os.umask(0o077)
    sys.stdout.buffer.write(MARK)
    sys.stdout.buffer.flush()
    for line in iter(sys.stdin.buffer.readline, b""):
        try:
            reply(json.loads(line), sys.stdin.buffer)
        except Refusal as error:
            answer({"error": str(error), "code": error.code})
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full" if full else "cannot write there"
            answer({"error": f"{what}: {error}", "code": 5})


SOURCE = ""
"""This text itself; the host fills it in when it sends it."""

if __name__ == "__main__":
    if sys.argv[1] == "supervise":
        supervise(sys.argv[2])
    else:
        sys.exit(install(sys.argv[2], sys.argv[3]))
