"""What a task may do around it: processes, files, memory."""

# A stranger's code, which nobody has typed.
# mypy: ignore-errors

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import mmap
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory

from .deeds import deed, slow
from .of_itself import signal_mask

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
