"""Builds the rooms of pyrepl._core: each extension names the C files behind it, so this list shows the direction.

A C file is compiled once, however many rooms are linked with it.
"""
import os
from concurrent.futures import ThreadPoolExecutor

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

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

INCLUDE = ["src/_core"]
SOURCES = [f"src/_core/{name}" for name in sorted(os.listdir("src/_core")) if name.endswith((".c", ".h"))]
NEWEST = max(os.path.getmtime(name) for name in [__file__, *SOURCES])  # of all headers: structs must agree
CORES = os.cpu_count() or 1


def room(name: str) -> Extension:
    """One extension module of pyrepl._core, its .pyx alone: Cython would write over a C file of the same name."""
    return Extension(
        f"pyrepl._core.{name}",
        [f"src/_core/{name}.pyx"],
        include_dirs=INCLUDE,
        define_macros=macros,
        extra_compile_args=cflags,
        extra_link_args=ldflags,
    )


class BuildRooms(build_ext):
    """Compiles the C files first, side by side; then the rooms, each linked with those it names."""

    def build_extensions(self) -> None:
        """Called when the compiler is chosen."""
        self.parallel = self.parallel or CORES
        behind = {one.name: ROOMS.get(one.name.rpartition(".")[2], []) for one in self.extensions}  # cffi's has none
        files = sorted({file for files in behind.values() for file in files})
        with ThreadPoolExecutor(self.parallel) as pool:
            compiled = dict(zip(files, pool.map(self._compile, files), strict=True))
        for extension in self.extensions:
            extension.extra_objects += [compiled[file] for file in behind[extension.name]]
        super().build_extensions()

    def _compile(self, file: str) -> str:
        source = f"src/_core/{file}.c"
        (compiled,) = self.compiler.object_filenames([source], output_dir=self.build_temp)
        if self.force or not os.path.exists(compiled) or os.path.getmtime(compiled) < NEWEST:
            self.compiler.compile([source], output_dir=self.build_temp, include_dirs=INCLUDE, extra_postargs=cflags)
        return compiled


extensions = cythonize(
    [room(name) for name in ROOMS if not ONLY or name in ONLY.split(",")],
    include_path=["src"],  # src/pyrepl/_core/*.pxd
    nthreads=CORES,
    build_dir=os.environ.get("PYREPL_CDIR", "build/cython"),  # "." for coverage
    compiler_directives={"language_level": 3, "linetrace": TRACE, "embedsignature": False},
)
for extension in extensions:
    extension.depends = SOURCES  # all of them: rooms compile what they use, and their structs must agree

setup(ext_modules=extensions, cmdclass={"build_ext": BuildRooms},
      cffi_modules=[] if ONLY else ["src/_core/_blk_build.py:ffibuilder"])
