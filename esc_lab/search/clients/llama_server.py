"""llama.cpp's server as the endpoint of a run, started for its time (`llm.openai.serve`).

It runs in a process of its own, `python -m esc_lab.search.clients.llama_server FILE SLOTS TOKENS THREADS`, which ends
when the process that started it does, however that ends. The build is that of the package `xllamacpp`.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from esc_lab.artifacts import file_fingerprint
from esc_lab.config.model import ModelConfig
from esc_lab.errors import UserError

log = logging.getLogger(__name__)
PACKAGE = "xllamacpp"
WHERE = "llm.openai.serve"


class LlamaServer:
    """A server with the model of a GGUF file, at a free port of the loopback interface.

    Args:
        slots: calls that it works on at the same time.
        context_tokens: of all of these together.

    Attributes:
        url: up to `/v1`.
        fingerprint: of the file.

    Raises:
        UserError: the package is not installed, or the file cannot be served.
    """

    def __init__(self, file: Path, slots: int, context_tokens: int, threads: int) -> None:
        if importlib.util.find_spec(PACKAGE) is None:
            raise UserError(
                f"package '{PACKAGE}' is not installed", where=WHERE, fix="pip install 'esc-lab[llama_cpp]'"
            )
        if not file.is_file():
            raise UserError("no such file", where=f"{WHERE}={file}", fix="name a .gguf file")
        self.fingerprint = file_fingerprint(file)
        command = [sys.executable, "-m", __name__, str(file), str(slots), str(context_tokens), str(threads)]
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said)
            assert self._process.stdout is not None, "it is a pipe"
            address = self._process.stdout.readline().decode().strip()
            if not address:
                self.stop()
                said.seek(0)
                lines = [line for line in said.read().decode(errors="replace").splitlines() if line.strip()]
                reason = lines[-1] if lines else f"exit code {self._process.returncode}"
                raise UserError(f"llama.cpp cannot serve it: {reason}", where=f"{WHERE}={file}")
        self.url = f"{address}/v1"
        log.info("llama.cpp serves %s with %d slots", file.name, slots)

    def stop(self) -> None:
        """End the process; of one that has ended nothing is left to do."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def find_gguf(serve: str, model: ModelConfig) -> Path:
    """The file that is to be served: a path, or for `auto` the file in the package of an embedded model.

    Raises:
        UserError: that package is not installed, or its model is no single file.
    """
    if serve != "auto":
        return Path(serve)
    spec = importlib.util.find_spec(model.path) if model.source == "gguf_wheel" and model.path.isidentifier() else None
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if len(files) != 1:
        message = f"llm.local.model={model.name} is no installed package with a .gguf file"
        raise UserError(message, where=f"{WHERE}=auto", fix=f"{WHERE}=FILE.gguf")
    return files[0]


def _serve(file: str, slots: str, context_tokens: str, threads: str) -> None:
    llama = import_module(PACKAGE)
    settings = llama.CommonParams()
    settings.model.path, settings.port, settings.verbosity = file, 0, 0
    # Of a prompt that begins like an earlier one of the same slot only what differs is read.
    settings.n_parallel, settings.n_ctx, settings.kv_unified = int(slots), int(context_tokens), True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = int(threads)
    server = llama.Server(settings)
    print(server.listening_address, flush=True)
    sys.stdin.read()  # until the other process ends, or this one is killed


if __name__ == "__main__":
    _serve(*sys.argv[1:])
