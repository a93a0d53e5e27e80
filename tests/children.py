"""Work that may hang, take all memory or give up its rights is done in a child."""

import ctypes
import multiprocessing
import os
import traceback


def forked(work, seconds=120):
    """What `work` returns in a forked child, which is ended where it hangs."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=outcome, args=(queue, work), daemon=True)
    child.start()
    try:
        assert queue._reader.poll(seconds), f"nothing came back within {seconds} seconds"
        fine, result = queue.get()
        assert fine, result
        return result
    finally:
        child.kill()
        child.join()


def outcome(queue, work):
    try:
        queue.put((True, work()))
    except BaseException:
        queue.put((False, traceback.format_exc()))


def drop_privileges():
    """Root may read and write anything: from here on it may no longer."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
