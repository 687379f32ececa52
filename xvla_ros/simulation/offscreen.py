# SPDX-License-Identifier: Apache-2.0
"""How MuJoCo draws without a window: EGL where it works, else OSMesa, else a message that says what to install."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from xvla_ros.errors import SimulationError

NEEDED = {"mujoco": "sim", "pinocchio": "kinematics"}


def missing_extras(**also: str) -> list[str]:
    """Return the extras of the package that are to be installed for a simulation.

    Args:
        also: module → extra, what else is needed.
    """
    needed: Mapping[str, str] = NEEDED | also
    return [extra for module, extra in needed.items() if find_spec(module) is None]


PACKAGES = {"egl": "libegl1 libegl-mesa0 libgl1-mesa-dri", "osmesa": "libosmesa6"}
OSMESA_LIBRARIES = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")
DISABLED = "disabled"


def choose() -> str:
    """Set ``MUJOCO_GL`` unless the user has set it; return its value.

    Where nothing works the value is ``disabled``: MuJoCo still imports and simulates, and only rendering raises.
    """
    _import_triton()
    if sys.platform == "darwin":
        os.environ.setdefault("MUJOCO_GL", "cgl")
    if not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl" if _egl_has_a_display() else "osmesa" if _has_osmesa() else DISABLED
    if os.environ["MUJOCO_GL"] == "egl":
        # Mesa's software rasteriser keeps a pool of threads. Small images gain nothing from it: drawn in the calling
        # thread they take the same time and a quarter less of a processor.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    return os.environ["MUJOCO_GL"]


def _import_triton() -> None:
    """Load the LLVM of triton, which comes with torch for CUDA, before that of Mesa: the other order crashes."""
    with contextlib.suppress(ImportError):
        import triton._C.libtriton  # noqa: F401


def context(width: int, height: int) -> Any:
    """Make a GL context of the chosen kind; it belongs to the thread that first makes it current.

    Raises:
        SimulationError: naming what was tried and the Debian packages to install.
    """
    kind = choose()
    if kind == DISABLED:
        raise SimulationError(
            "cannot render: neither EGL nor OSMesa works on this machine; "
            f"expected one of them; install Debian's {PACKAGES['egl']}, or {PACKAGES['osmesa']}"
        )
    try:
        return _context_class(kind)(width, height)
    except Exception as error:  # every backend fails in its own way: AttributeError, GLError, ImportError, OSError
        wanted = PACKAGES.get(kind, f"{PACKAGES['egl']} and unset MUJOCO_GL")
        raise SimulationError(
            f"cannot render with MUJOCO_GL={kind}: {type(error).__name__}: {error}; install Debian's {wanted}"
        ) from error


def _context_class(kind: str) -> Any:
    if kind == "egl":
        from mujoco.egl import GLContext
    elif kind == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco import GLContext
    return GLContext


def _egl_has_a_display() -> bool:
    """Say whether an EGL device of this machine opens.

    The library itself is asked: PyOpenGL keeps the platform of its first import, so that OSMesa would not work after a
    trial of EGL through it.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query, display_of = (egl.eglGetProcAddress(n) for n in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT"))
    if not query or not display_of:
        return False
    devices, found = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query)
    if not query_devices(len(devices), devices, ctypes.byref(found)):
        return False
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_of)
    egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    egl_platform_device_ext = 0x313F
    displays = (get_display(egl_platform_device_ext, devices[i], None) for i in range(found.value))
    return any(bool(display) and bool(egl.eglInitialize(display, None, None)) for display in displays)


def _has_osmesa() -> bool:
    for library in OSMESA_LIBRARIES:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False
