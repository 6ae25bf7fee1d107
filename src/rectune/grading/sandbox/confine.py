"""Giving up, for good, what a process does not need: Linux's unprivileged sandbox, called through ctypes.

After `confine` this process can compute, read Python's own files, and read and write its own folder. It
cannot open a socket, start a process, run a program, signal, trace or change the limits of any process,
mount, or gain a privilege. It works alike for root and for an ordinary user, and cannot be undone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)

# number on x86-64, number on arm64 (-1: does not exist there)
_REFUSED = {
    "socket": (41, 198), "io_uring_setup": (425, 425), "bpf": (321, 280), "perf_event_open": (298, 241),
    "fork": (57, -1), "vfork": (58, -1), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "prctl": (157, 167), "seccomp": (317, 277), "setrlimit": (160, 164), "prlimit64": (302, 261),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282),
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
}  # fmt: skip
# column, audit name, clone's number
_MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026  # seccomp's answers
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # its instructions


def confine(folder: str, *, cpu_seconds: int, file_bytes: int = 2**24) -> bool:
    """Restrict this process for ever. Call it with one thread and only the needed descriptors open.

    Args:
        folder: The only place where it may write.
        cpu_seconds: Processor time after which the kernel kills it.
        file_bytes: Size of the largest file that it may write.

    Returns:
        Whether files outside `folder` are protected by the kernel (Landlock), besides by their permissions.

    Raises:
        OSError: A restriction that must hold cannot be made: not Linux, another processor, no seccomp.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    protected = _restrict_files(folder)
    if os.geteuid() == 0 and not protected:
        os.chown(folder, 65534, 65534)
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os.listdir(os.path.dirname(os.__file__))  # else every import would fail, and look like a wrong answer
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    # no capabilities: root could raise its own limits
    _call("capset", header, ctypes.create_string_buffer(24))
    _call("prctl", 1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: SIGKILL when its parent dies; another user id clears it
    _filter_system_calls()
    return protected


def _call(name: str, *arguments: object) -> int:
    result = getattr(_LIBC, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{name} is refused here")
    return int(result)


def _restrict_files(folder: str) -> bool:
    """Landlock: read Python and the system's libraries, write below `folder`. False: kernel has none."""
    version = _LIBC.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    everything = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14
    attributes = ctypes.create_string_buffer(struct.pack("=Q", everything))
    rules = _call("syscall", 444, attributes, ctypes.c_size_t(8), 0)
    read = 1 | 1 << 2 | 1 << 3  # execute (to map libraries), read files, read folders
    system = ("/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime")
    readable = {sys.prefix, sys.base_prefix, *sys.path, *system}
    allowances = [(path, read) for path in readable]
    for path, allowed in [*allowances, (folder, everything), ("/dev/null", 0b110), ("/dev/urandom", 0b100)]:
        if not os.path.exists(path):
            continue
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            allowed &= 1 | 1 << 1 | 1 << 2 | (version >= 3) << 14
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, place))
        _call("syscall", 445, rules, 1, rule, 0)
        os.close(place)
    _call("syscall", 446, rules, 0)
    os.close(rules)
    return True


def _filter_system_calls() -> None:
    """seccomp: refuse the calls above; let `clone` make threads only."""
    if platform.machine() not in _MACHINES or sys.byteorder != "little":
        raise OSError(f"no system call table for {platform.machine()}")
    column, audit, clone = _MACHINES[platform.machine()]
    numbers = [row[column] for row in _REFUSED.values() if row[column] >= 0]
    tests = [(_AT_LEAST, 0x40000000), *((_EQUAL, number) for number in numbers)]
    # layout: 2 lines for the architecture, load, clone3, clone, the tests, then the answers
    first = 5
    allow = first + len(tests)
    refuse, missing, look = allow + 1, allow + 2, allow + 3
    lines = [
        (_LOAD, 0, 0, 4), (_EQUAL, 0, refuse - 2, audit), (_LOAD, 0, 0, 0),
        (_EQUAL, missing - 4, 0, _CLONE3), (_EQUAL, look - 5, 0, clone),
        *((code, refuse - first - i - 1, 0, value) for i, (code, value) in enumerate(tests)),
        (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ENOSYS),
        (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _CLONE_THREAD), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
    _call("prctl", 22, 2, program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
