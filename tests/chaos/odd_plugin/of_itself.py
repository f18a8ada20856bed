"""What a task may do to its own process: texts, values, signals, descriptors, its environment."""

# A stranger's code, which nobody has typed.
# mypy: ignore-errors

from __future__ import annotations

import builtins
import contextlib
import enum
import faulthandler
import json
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import time

from .deeds import deed, slow

# --- texts ---------------------------------------------------------------------------------------

BAD = "caf\udce9 \ud800 \0 \x1b[2J \u202e"


@deed
def text_printed(context):
    print(BAD)
    os.write(1, bytes(range(256)))


@deed
def text_returned(context):
    return {BAD: [BAD]}


@deed
def text_raised(context):
    raise ValueError(BAD)


@deed
def text_chained(context):
    try:
        raise KeyError(BAD)
    except KeyError as error:
        raise OSError(BAD) from error


@deed
def text_told(context):
    context.progress(10, BAD * 300)
    context.log(BAD)


@deed
def text_endless(context):
    for _ in range(300):
        os.write(1, b"x" * 10_000)


@deed
def text_in_file_names(context):
    open(b"\xff\xfe\n name", "w").close()


@deed
def text_unsayable(context):
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no")

        __repr__ = __str__

    raise Mute


# --- values --------------------------------------------------------------------------------------


class Colour(str, enum.Enum):
    RED = "red"


@deed
def value_enum(context):
    return {"colour": Colour.RED, Colour.RED: 1}


@deed
def value_not_a_number(context):
    return float("nan")


@deed
def value_enormous_number(context):
    return 1 << 100_000


@deed
def value_too_long(context):
    return "x" * (1 << 21)


@deed
def value_deep(context):
    found = []
    for _ in range(100_000):
        found = [found]
    return found


@deed
def value_round(context):
    found = []
    found.append(found)
    return found


@deed
def value_object(context):
    return object()


@deed
def value_generator(context):
    return (n for n in iter(int, 1))


@deed
def value_liar(context):
    class Liar(str):
        def __str__(self):
            os._exit(9)

        encode = __str__

    return Liar("no")


@deed
async def value_coroutine(context):
    return 1


# --- signals -------------------------------------------------------------------------------------


@deed
def signal_alarm(context):
    signal.alarm(1)


@deed
def signal_timer(context):
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    signal.signal(signal.SIGALRM, lambda *_: None)


@deed
def signal_timer_of_processor(context):
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.5)


@deed
def signal_faulthandler(context):
    faulthandler.enable()
    faulthandler.dump_traceback_later(0.2, exit=True)


@deed
def signal_ignored(context):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@deed
def signal_mask(context):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))


@deed
def signal_interrupt(context):
    signal.raise_signal(signal.SIGINT)


@deed
def signal_terminate(context):
    os.kill(os.getpid(), signal.SIGTERM)


@deed
def signal_kill(context):
    os.kill(os.getpid(), signal.SIGKILL)


@deed
def signal_to_group(context):
    os.killpg(0, signal.SIGKILL)


@deed
def signal_to_parent(context):
    os.kill(os.getppid(), signal.SIGINT)
    os.kill(os.getppid(), signal.SIGCHLD)
    os.kill(os.getppid(), signal.SIGCONT)


@deed
def signal_ends_parent(context):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(5)


@slow
def signal_stops_parent(context):
    with contextlib.suppress(PermissionError):  # a wall may deny it
        os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(30)


@slow
def signal_stops_itself(context):
    os.kill(os.getpid(), signal.SIGSTOP)


# --- descriptors ---------------------------------------------------------------------------------


@deed
def fd_output_closed(context):
    os.close(1)


@deed
def fd_both_outputs_closed(context):
    os.close(1)
    os.close(2)
    os.close(0)


@deed
def fd_all_closed(context):
    os.closerange(0, 4096)


@deed
def fd_output_into_file(context):
    fd = os.open("output", os.O_CREAT | os.O_RDWR)
    os.dup2(fd, 1)
    print("into a file")


@deed
def fd_duplicated(context):
    for fd in range(3, 30):
        with contextlib.suppress(OSError):
            os.dup2(1, fd)


@deed
def fd_stream_closed(context):
    sys.stdout.close()
    sys.stderr.close()


@deed
def fd_stream_replaced(context):
    sys.stdout = sys.__stdout__ = None
    sys.stderr = sys.__stderr__ = open(os.devnull, "w")  # noqa: SIM115 - it is left open


@deed
def fd_not_waiting(context):
    for fd in range(10):
        with contextlib.suppress(OSError):
            os.set_blocking(fd, False)


@deed
def fd_many(context):
    globals()["kept"] = [os.open(os.devnull, os.O_RDONLY) for _ in range(500)]


@deed
def fd_garbage_everywhere(context):
    for fd in range(3, 30):
        with contextlib.suppress(OSError):
            os.write(fd, b"\0garbage" * 100)


@deed
def fd_answer_forged(context):
    text = json.dumps({"outcome": "success", "cause": None, "details": {}, "last": True}).encode()
    for fd in range(3, 30):
        with contextlib.suppress(OSError):
            os.write(fd, b"d" + len(text).to_bytes(4, "little") + bytes(4) + text)


@deed
def fd_answer_enormous(context):
    for fd in range(3, 30):
        with contextlib.suppress(OSError):
            os.write(fd, b"d\xff\xff\xff\x7f\xff\xff\xff\x7f")


@deed
def fd_progress_flood(context):
    for n in range(3_000):
        context.progress(100, str(n))


# --- time and environment ------------------------------------------------------------------------


@deed
def env_zone(context):
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


@deed
def env_cleared(context):
    os.environ.clear()


@deed
def env_path(context):
    os.environ.update(PATH="", PYTHONPATH="/nowhere", LD_PRELOAD="/nowhere.so", HOME="")


@deed
def env_umask(context):
    os.umask(0o777)


@deed
def env_nice(context):
    os.nice(10)


@deed
def env_parents_nice(context):
    os.setpriority(os.PRIO_PROCESS, os.getppid(), 7)


@deed
def env_parents_limits(context):
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (32, 32))


@deed
def env_processors(context):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@deed
def env_limits(context):
    resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))


@deed
def env_recursion(context):
    sys.setrecursionlimit(90)


@deed
def env_modules(context):
    sys.path.clear()
    sys.modules.clear()


@deed
def env_builtins(context):
    builtins.print = builtins.open = builtins.len = None


@deed
def env_patched(context):
    os.write = os.getpid = os._exit = json.dumps = lambda *_: None


@deed
def env_locale(context):
    for name in ("C", "C.UTF-8"):
        locale.setlocale(locale.LC_ALL, name)
    locale.setlocale(locale.LC_NUMERIC, "POSIX")


@deed
def env_default_timeout(context):
    socket.setdefaulttimeout(0.001)
    socket.socket = None


@deed
def env_traced(context):
    sys.settrace(lambda *_: None)
    threading.setprofile(lambda *_: None)
    sys.excepthook = None


@deed
def env_seeded(context):
    random.seed(1)


@deed
def env_logging(context):
    logging.disable(logging.CRITICAL)
    logging.getLogger().handlers.clear()


@deed
def env_folder(context):
    os.chdir("/")


@deed
def time_slept(context):
    time.sleep(0.2)
