"""Builds the rooms of pyrepl._core: each extension names the C files behind it, so this list shows the direction."""
import os

from Cython.Build import cythonize
from setuptools import Extension, setup

TRACE = os.environ.get("PYREPL_TRACE") == "1"  # coverage of .pyx
ONLY = os.environ.get("PYREPL_ROOMS")  # "crc32c,regions": build just these
SANITIZE = os.environ.get("PYREPL_SANITIZE")  # "address,undefined"

macros = [("CYTHON_TRACE_NOGIL", "1")] if TRACE else []
cflags = ["-O2", "-g1", "-std=gnu11", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Wextra"]
cflags += ["-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]
ldflags = ["-pthread"]
if SANITIZE:
    cflags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1"]
    ldflags += [f"-fsanitize={SANITIZE}"]

WINDOW = ["crc32c", "batch", "buffers", "device", "window", "window_stores", "window_index", "window_append",
          "window_commit", "window_read", "window_parked"]
ROOMS = {  # room: the C files behind it; each may use those before it, and the window's each other
    "layout": [],
    "crc32c": ["crc32c"],
    "regions": ["regions"],
    "sources": ["sources"],
    "buffers": ["buffers"],
    "device": ["buffers", "device", "device_file", "device_uring", "device_threads"],
    "batch": ["crc32c", "batch"],
    "stores": ["sources", "buffers", "device", "stores"],
    "window": WINDOW,
    "stream": [*WINDOW, "stream"],
    "view": [*WINDOW, "sources", "stores", "view"],
    "epoch": [*WINDOW, "sources", "stores", "plan", "epoch"],
    "nbdio": [*WINDOW, "sources", "stores", "view", "nbdio"],
    "pump": [*WINDOW, "regions", "sources", "stores", "view", "pump"],
}

SOURCES = [f"src/_core/{name}" for name in sorted(os.listdir("src/_core")) if name.endswith((".c", ".h"))]


def room(name: str) -> Extension:
    """One extension module of pyrepl._core, its .pyx alone: Cython would write over a C file of the same name."""
    return Extension(
        f"pyrepl._core.{name}",
        [f"src/_core/{name}.pyx"],
        include_dirs=["src/_core"],
        define_macros=macros,
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


extensions = cythonize(
    [room(name) for name in ROOMS if not ONLY or name in ONLY.split(",")],
    include_path=["src"],  # src/pyrepl/_core/*.pxd
    nthreads=os.cpu_count() or 1,
    build_dir=os.environ.get("PYREPL_CDIR", "build/cython"),  # "." for coverage
    compiler_directives={"language_level": 3, "linetrace": TRACE, "embedsignature": False},
)
for extension in extensions:
    extension.depends = SOURCES  # all of them: rooms compile what they use, and their structs must agree
    extension.sources += [f"src/_core/{source}.c" for source in ROOMS[extension.name.rpartition(".")[2]]]

setup(ext_modules=extensions, cffi_modules=[] if ONLY else ["src/_core/_blk_build.py:ffibuilder"])
