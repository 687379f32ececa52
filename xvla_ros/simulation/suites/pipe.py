# SPDX-License-Identifier: Apache-2.0
"""The pipe to a benchmark's own interpreter: messages of plain arrays, and the program that answers them there.

``python -I pipe.py SCRIPT`` reads requests from stdin and answers on stdout, until stdin ends, with what ``methods()``
of SCRIPT gives: name → function, which returns a mapping, arrays, or both. A message is a line of JSON,
``{"method": …, …, "arrays": [[name, dtype, shape], …]}``, followed by the bytes of its arrays. An answer has ``error``
where something went wrong. Nothing of ``xvla_ros`` is imported here, as that interpreter does not have it.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def send(stream: IO[bytes], message: Mapping[str, Any], arrays: Arrays | None = None) -> None:
    """Write one message, and flush.

    Raises:
        OSError: the other end has gone.
    """
    given = {name: np.asarray(array) for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in given.items()]
    stream.write(json.dumps({**message, "arrays": described}).encode() + b"\n")
    for array in given.values():
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read one message.

    Raises:
        EOFError: the other end has gone, before the message or within it.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the pipe ended")
    message = json.loads(line)
    arrays = {}
    for name, kind, shape in message.pop("arrays"):
        dtype = np.dtype(kind)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        content = stream.read(size)
        if len(content) != size:
            raise EOFError(f"the pipe ended within the array {name}")
        arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    return message, arrays


def serve(methods: Mapping[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    while True:
        try:
            request, arrays = receive(requests)
        except EOFError:
            return
        method = request.pop("method")
        try:
            answer = methods[method](**request, **arrays)
        except Exception as error:
            send(answers, {"error": f"{type(error).__name__}: {error}"})
            continue
        if isinstance(answer, tuple):
            send(answers, *answer)
        elif any(isinstance(each, np.ndarray) for each in answer.values()):
            send(answers, {}, answer)
        else:
            send(answers, answer)


def main() -> None:
    """Serve on stdin and stdout; what the simulator prints goes to stderr."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(runpy.run_path(sys.argv[1])["methods"](), requests, answers)
    os._exit(0)  # drawing contexts that are freed at the interpreter's end print errors that mean nothing


if __name__ == "__main__":
    main()
