"""Own task types of the odd-task campaign, installed on a real device: `odd` and `witness`.

`odd` does what its payload names, from the table below. `witness` is the innocent one: it says what
it finds of its process, which must always be the same.
"""

# A stranger's code, which nobody has typed.
# mypy: ignore-errors

from __future__ import annotations

import atexit
import builtins
import contextlib
import ctypes
import enum
import faulthandler
import gc
import json
import locale
import logging
import mmap
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory

DEEDS = {}
#: Ends in a timeout: one second each.
SLOW = set()


def deed(function):
    DEEDS[function.__name__] = function
    return function


def slow(function):
    SLOW.add(function.__name__)
    return deed(function)


def odd(payload, context):
    """Does odd things."""
    found = None
    home = os.getcwd()
    # Whoever leaves his folder does so last: what comes after would be done to the machine.
    for name in sorted(payload["deeds"], key=lambda name: name == "env_folder"):
        if not is_inside(home):
            raise RuntimeError(f"{name} would be done to the machine")
        found = DEEDS[name](context)
    return found


def is_inside(home):
    """Whether this process is still in its folder."""
    try:
        where = os.getcwd()
    except OSError:  # removed, or too deep to be named: both are below it
        return True
    return where == home or where.startswith(f"{home}/")


def witness(payload, context):
    """Says what it finds."""
    print(f"witness {payload['n']}")
    with open("mine", "w") as file:
        file.write(str(payload["n"]))
    umask = os.umask(0o022)
    os.umask(umask)
    drawn = [random.random() for _ in range(2)]
    command = [sys.executable, "-I", "-S", "-c", "print(6*7)"]
    child = subprocess.run(command, capture_output=True, text=True)
    return {
        "n": payload["n"],
        "drawn": drawn,
        "state": {
            "files": sorted(os.listdir(".")),
            "mine": open("mine").read() == str(payload["n"]),
            "child": child.stdout.strip(),
            "umask": umask,
            "handlers": [str(signal.getsignal(s)) for s in (2, 14, 15, 17, 18)],
            "mask": sorted(int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
            "timers": [signal.getitimer(which)[0] for which in range(3)],
            "alarm": signal.alarm(0),
            "faulthandler": faulthandler.is_enabled(),
            "recursion": sys.getrecursionlimit(),
            "timeout": socket.getdefaulttimeout(),
            "locale": locale.setlocale(locale.LC_ALL),
            "tz": [os.environ.get("TZ"), list(time.tzname)],
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "cpus": sorted(os.sched_getaffinity(0)),
            "path": list(sys.path),
            "environ": sorted(set(os.environ) - {"RC_TASK_ID"}),
            "limits": [resource.getrlimit(kind) for kind in range(16)],
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "children": [] if not multiprocessing.active_children() else ["some"],
            "streams": [sys.stdout.encoding, sys.stderr.encoding],
        },
    }


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


# --- processes -----------------------------------------------------------------------------------


@deed
def process_forked_leaves(context):
    pid = os.fork()
    if pid == 0:
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@deed
def process_forked_returns(context):
    pid = os.fork()
    if pid == 0:
        return "child"
    return os.waitpid(pid, 0)[0] == pid


@deed
def process_forked_raises(context):
    if os.fork() == 0:
        raise RuntimeError("in the child")


@deed
def process_parent_leaves_first(context):
    if os.fork() == 0:
        time.sleep(30)
        return "late"
    return "parent"


@deed
def process_daemon(context):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.environ.clear()
            time.sleep(600)
        os._exit(0)


@deed
def process_many(context):
    for _ in range(30):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)


@deed
def process_left(context):
    subprocess.Popen(["sleep", "600"], start_new_session=True, env={})


@deed
def process_pool(context):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.map(abs, range(10)))


@deed
def process_spawned(context):
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.01,))
    process.start()
    process.join()
    return process.exitcode


@deed
def process_queue_left(context):
    queue = multiprocessing.Queue()
    queue.put("x" * 100_000)
    globals()["kept_queue"] = queue


@deed
def process_thread_left(context):
    threading.Thread(target=time.sleep, args=(600,)).start()


@deed
def process_threads_tell(context):
    def tell():
        while True:
            context.progress(5, "x" * 900)

    for _ in range(3):
        threading.Thread(target=tell, daemon=True).start()
    time.sleep(0.05)


@deed
def process_exits(context):
    os._exit(7)


@deed
def process_exits_politely(context):
    sys.exit("bye")


@deed
def process_aborts(context):
    os.abort()


@deed
def process_crashes(context):
    ctypes.string_at(8)


@deed
def process_becomes_another(context):
    os.execv("/bin/echo", ["echo", "another"])


@deed
def process_exit_hangs(context):
    atexit.register(time.sleep, 600)


@slow
def process_sleeps(context):
    time.sleep(600)


@slow
def process_spins_deaf(context):
    signal_mask(context)
    while True:
        pass


# --- files ---------------------------------------------------------------------------------------


@deed
def file_much(context):
    with open("much", "wb") as file:
        file.write(b"x" * 5_000_000)


@deed
def file_folder_closed(context):
    os.makedirs("a/b/c")
    open("a/b/c/d", "w").close()
    os.chmod("a/b", 0)
    os.chmod("a", 0)
    os.chmod(".", 0)


@deed
def file_all_folders_closed(context):
    os.chmod("..", 0)


@deed
def file_deep(context):
    for _ in range(1_200):
        os.mkdir("d" * 50)
        os.chdir("d" * 50)


@deed
def file_links(context):
    os.symlink("..", "up")
    os.symlink("/", "root")
    os.symlink("me", "me")
    os.mkfifo("pipe")


@deed
def file_folder_gone(context):
    os.rmdir(os.getcwd())


@deed
def file_all_gone(context):
    for name in os.listdir(".."):
        if os.path.realpath(f"../{name}") == os.getcwd():
            shutil.rmtree(f"../{name}", ignore_errors=True)


@deed
def file_shadows_a_module(context):
    for folder in ("..", "../.."):
        with contextlib.suppress(OSError):
            for name in ("base64", "json", "retire_cluster", "ctypes"):
                with open(f"{folder}/{name}.py", "w") as file:
                    file.write("raise SystemExit('shadowed')")


@slow
def file_much_and_sleep(context):
    file_much(context)
    time.sleep(600)


@deed
def file_much_and_crash(context):
    file_much(context)
    os.abort()


# --- memory --------------------------------------------------------------------------------------


@deed
def memory_shared_left(context):
    block = shared_memory.SharedMemory(create=True, size=100_000)
    globals()["kept_block"] = block


@deed
def memory_shared_closed(context):
    shared_memory.SharedMemory(create=True, size=100_000).close()


@deed
def memory_shared_and_killed(context):
    memory_shared_left(context)
    os.kill(os.getpid(), signal.SIGKILL)


@slow
def memory_shared_and_sleep(context):
    memory_shared_left(context)
    time.sleep(600)


@deed
def memory_semaphore(context):
    globals()["kept_lock"] = multiprocessing.Lock()


@deed
def memory_much(context):
    globals()["kept_bytes"] = bytearray(60_000_000)


@deed
def memory_mapped(context):
    globals()["kept_map"] = mmap.mmap(-1, 1_000_000)


@deed
def memory_recursion(context):
    return memory_recursion(context)


@deed
def memory_collector_off(context):
    gc.disable()
    gc.set_threshold(1, 1, 1)


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
