"""The process that a model's program runs in: it takes its own rights away, then runs the program.

Started by raytune.rewards.sandbox as a script, with nothing but the standard library. In this order:
    limits          CPU seconds, address space, size of a file, open files, no core dump
    capabilities    none, so that root is an ordinary user
    Landlock        files are written and removed in the working directory only (kernels from 5.13 that have it)
    seccomp         no sockets, no processes beside this one (threads are fine), no signals to others, no tracing
The program cannot undo any of them. Reading files is not restricted: what it reads cannot leave.

    confined.py JOB_FD REPORT_FD     JOB: {"code", "tests", "token", "cpu", "memory", "file_size", "files"}
Without tests (null) the code is a script. The report has a line "TOKEN ready N" once all rights are gone (N: Landlock's
version, 0 without), then "TOKEN i" for each test that passed. The token is secret, so that a program which ends early
with success has passed nothing.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types

libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
SIGKILL, EPERM, ENOSYS = 9, 1, 38
CLONE_THREAD = 0x10000

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables below, and the number by which seccomp knows the machine."""

CAPSET, CLONE, CLONE3, PRLIMIT = (126, 91), (56, 220), (435, 435), (302, 261)
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
DENIED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "io_uring_setup": (425, 425),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "setsid": (112, 157), "setpgid": (109, 154), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "memfd_create": (319, 279),
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217),
}  # fmt: skip
"""System calls that fail with EPERM, by their numbers (x86_64, aarch64) in the kernel's tables."""

FILE_WRITES = 1 << 1
"""Landlock's rights: to write a file."""
ALL_WRITES = FILE_WRITES | sum(1 << bit for bit in range(4, 13))
"""To write, remove and make files of all kinds."""
MOVES, TRUNCATES = 1 << 13, 1 << 14
"""Rights that came with the versions 2 and 3."""


def main(job_fd: int, report_fd: int) -> None:
    with os.fdopen(job_fd) as file:
        job = json.load(file)
    report = f"{job['token']} ".encode()
    os.write(report_fd, report + b"ready %d\n" % confine(job))
    if job["tests"] is None:
        os.close(report_fd)
        exec(compile(job["code"], "answer.py", "exec"), module("__main__"))
        return
    namespace = module("answer")
    if passes(job["code"], namespace):
        for index, test in enumerate(job["tests"]):
            if passes(test, namespace):
                os.write(report_fd, report + b"%d\n" % index)
    os._exit(0)  # without waiting for threads that the program left


def module(name: str) -> dict[str, object]:
    """The namespace of a new module; dataclasses and pickle look it up by its name."""
    sys.modules[name] = types.ModuleType(name)
    return sys.modules[name].__dict__


def passes(code: str, namespace: dict[str, object]) -> bool:
    """Whether code runs to its end."""
    with contextlib.suppress(BaseException):  # the program raises what it likes, SystemExit too
        exec(compile(code, "answer.py", "exec"), namespace)
        return True
    return False


def confine(job: dict[str, int]) -> int:
    """Give all rights away for ever. Returns Landlock's version. Raises OSError or KeyError if it cannot."""
    machine, architecture = MACHINES[platform.machine()]
    check(libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
    for limit, most in (
        (resource.RLIMIT_CPU, job["cpu"]),
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_FSIZE, job["file_size"]),
        (resource.RLIMIT_NOFILE, job["files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.syscall(CAPSET[machine], struct.pack("=Ii", 0x20080522, 0), bytes(24)))
    version = write_only_below(".")
    refuse_calls(machine, architecture)
    return version


def write_only_below(folder: str) -> int:
    """Let files be changed in one folder only, and /dev/null be written. Returns Landlock's version, 0 without."""
    version = max(libc.syscall(LANDLOCK_CREATE, None, 0, 1), 0)
    if not version:
        return 0
    rights = ALL_WRITES | (MOVES if version >= 2 else 0) | (TRUNCATES if version >= 3 else 0)
    ruleset = check(libc.syscall(LANDLOCK_CREATE, struct.pack("=Q", rights), 8, 0))
    for path, allowed in ((folder, rights), ("/dev/null", rights & (FILE_WRITES | TRUNCATES))):
        fd = os.open(path, os.O_PATH)
        check(libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, fd), 0))
        os.close(fd)
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)
    return version


def refuse_calls(machine: int, architecture: int) -> None:
    """Install the seccomp filter: a program of the classic packet filter over (call, machine, ..., arguments)."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, error, kill = 0x7FFF0000, 0x00050000, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    # x86_64 has a second numbering of all calls from here on.
    steps += [(at_least, 0, 1, 0x40000000), (give, 0, 0, error | EPERM)]
    # clone3 hides its flags in memory; without it the C library takes clone, whose flags can be seen.
    steps += [(equal, 0, 1, CLONE3[machine]), (give, 0, 0, error | ENOSYS)]
    for call in (numbers[machine] for numbers in DENIED.values()):
        if call is not None:
            steps += [(equal, 0, 1, call), (give, 0, 0, error | EPERM)]
    steps += [(equal, 0, 4, CLONE[machine]), (load, 0, 0, 16), (any_bit, 1, 0, CLONE_THREAD)]
    steps += [(give, 0, 0, error | EPERM), (give, 0, 0, allow)]
    # Limits of this process (0) may be read, those of others not be changed.
    steps += [(equal, 0, 3, PRLIMIT[machine]), (load, 0, 0, 16), (equal, 1, 0, 0), (give, 0, 0, error | EPERM)]
    steps += [(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))


def check(result: int) -> int:
    """The result of a system call. Raises OSError where it failed."""
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
