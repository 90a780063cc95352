"""Check of this machine before a sweep: python -m sweeps doctor prints a line for each thing that a sweep needs.

It looks at the libraries and their versions, PyTorch and its GPUs, FFCV, the cores, the memory, the disks, a start of
Ray, MLflow's store, the prepared pictures, and at what each setting came to. It writes nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from crelu_data.cores import cores
from crelu_data.datasets import counted, data_dir, fresh_command, prepare_command, read_sidecar
from crelu_models.command_line import python_command, version
from sweeps.store.local_uris import sqlite_file
from sweeps.store.logins import own_store, without_login

PROJECT = "crelu-sweeps"
ROOT = Path(__file__).resolve().parents[2]  # of a checkout, with the Makefile; the folder of the packages otherwise
PACKAGES = ("crelu_data", "crelu_models", "sweeps")  # that pages import
TORCH = ("--force-reinstall", "torch", "torchvision")  # words for pip; those of the same version would stay
GIB = 2**30
LEAST_MEMORY = 2 * GIB  # of the driver, Ray's processes and one small trial
LEAST_DISK = 2 * GIB  # of checkpoints, weights and tables of a sweep of small nets
PATIENCE = 120.0  # seconds for a process that imports PyTorch or starts Ray
# Variables that change what a sweep does, and that no flag goes before.
VARIABLES = ("IMAGENET_DIR", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAY_TMPDIR", "TMPDIR", "NO_COLOR", "CI")
SECRETS = ("CRELU_NOTIFY",)  # variables whose values are not shown

State = Literal["ok", "note", "WRONG"]


class Finding(NamedTuple):
    """Finding about this machine: whether a sweep can do with it, and a sentence that ends with a remedy if not."""

    state: State
    sentence: str


class Request(NamedTuple):
    """Request for a check: the places that a sweep would be given."""

    output: Path | str  # a string for a URI, whose room nobody can tell
    data: str | None = None  # the flag --data-dir
    address: str | None = None
    tracking_uri: str | None = None
    is_default_output: bool = False


def check_machine(request: Request) -> bool:
    """Print a line for each finding as it is made; return whether a sweep can run here."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "program": program,
        "libraries": libraries,
        "torch": lambda: torch_and_gpus(torch_facts(), driver_gpus()),
        "ffcv": ffcv,
        "cores": lambda: processors(cores(), os.cpu_count() or 1),
        "memory": memory,
        "shm": shared_memory,
        "disk": lambda: disks(request),
        "pictures": lambda: pictures(request),
        "ray": lambda: ray(request.address or os.environ.get("RAY_ADDRESS") or "local"),
        "mlflow": lambda: mlflow(request),
        "settings": lambda: settings(request, os.environ),
    }
    wrong = 0
    for name, check in checks.items():
        for finding in _findings(check):
            wrong += finding.state == "WRONG"
            print(f"{name:<10} {finding.state:<6} {finding.sentence}", flush=True)
    if wrong:
        lines = "line" if wrong == 1 else "lines"
        print(f"{wrong} {lines} WRONG: a sweep would stop there, or do without", file=sys.stderr)
    return not wrong


def _findings(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds. Where a library is missing, nothing is known; the line of the libraries says more."""
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Finding("WRONG", f"not known without {error.name}")


def program() -> Iterator[Finding]:
    """Yield which version of the project and of Python this is, on what system, and files here that hide its names."""
    system = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() not in ("Linux", "Darwin"):
        yield Finding("WRONG", f"{system}: it runs on Linux, and on macOS without FFCV")
        return
    yield Finding("ok", f"{PROJECT} {version()}, {system}")
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        ours = Path(spec.origin if spec is not None and spec.origin else "").resolve()
        for file in (Path(f"{name}.py").resolve(), Path(name, "__init__.py").resolve()):
            if file.is_file() and file != ours:
                yield Finding("WRONG", f"{file} hides this project's {name} from the pages beside it: rename it")


def libraries(requirements: list[str] | None = None) -> Iterator[Finding]:
    """Yield each library that the project needs and that is missing here or of a version that does not serve."""
    from packaging.requirements import Requirement

    try:
        texts = requirements if requirements is not None else importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("WRONG", f"the project is not installed in this environment: {setup_command(['.'])}")
        return
    needed = [requirement for text in texts if not (requirement := Requirement(text)).marker or "extra" not in text]
    serving = 0
    for requirement in needed:
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        wanted = f"{requirement.name}{extras}{requirement.specifier}"
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("WRONG", f"{requirement.name} is not installed: {setup_command([wanted])}")
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            remedy = setup_command([wanted])
            yield Finding("WRONG", f"{requirement.name} is {installed}, and {wanted} is needed: {remedy}")
            continue
        serving += 1
    if serving == len(needed):
        yield Finding("ok", f"all {serving} are installed, in versions that serve")


def setup_command(words: Sequence[str], *variables: str) -> str:
    """Return the command that installs anew what the project needs; it runs in any folder.

    That is make's, with these variables. Without -B it would do nothing: an environment that was complete once counts
    as complete. Where there is no Makefile, as after `pip install .`, it is that of pip or uv, with these words.
    """
    if not (ROOT / "Makefile").exists():
        if importlib.util.find_spec("pip") is None:
            return shlex.join(["uv", "pip", "install", "--python", sys.executable, *words])
        return python_command("pip", "install", *words)
    return shlex.join(["make", *(["-C", str(ROOT)] if Path.cwd() != ROOT else []), "-B", "setup", *variables])


class TorchFacts(NamedTuple):
    """Facts about the installed PyTorch: its version, the CUDA that it was built for, the GPUs that it sees."""

    version: str
    cuda: str
    gpus: tuple[str, ...]
    error: str = ""


def torch_facts() -> TorchFacts:
    """Return what PyTorch says of itself, asked in a process of its own."""
    code = (
        "import json, torch\n"
        "n = torch.cuda.device_count() if torch.cuda.is_available() else 0\n"
        "names = [torch.cuda.get_device_name(i) for i in range(n)]\n"
        "print(json.dumps([torch.__version__, torch.version.cuda or '', names]))\n"
    )
    output, error = _run(code)
    if error:
        return TorchFacts("", "", (), error)
    built, cuda, names = json.loads(output.splitlines()[-1])
    return TorchFacts(built, cuda, tuple(names))


def driver_gpus() -> tuple[str, ...] | None:
    """Return the GPUs that NVIDIA's driver lists, each with its memory; None where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip()) if done.returncode == 0 else ()


def torch_and_gpus(facts: TorchFacts, listed: tuple[str, ...] | None) -> Iterator[Finding]:
    """Yield whether PyTorch loads, and whether it uses the GPUs that the driver lists."""
    if facts.error:
        yield Finding("WRONG", f"PyTorch does not load: {facts.error}: {setup_command(TORCH)}")
        return
    built = f"PyTorch {facts.version}, built for {f'CUDA {facts.cuda}' if facts.cuda else 'the CPU alone'}"
    if facts.gpus:
        # PyTorch may see some of them, or a part of one: an instance of MIG has a longer name, and less memory.
        models = sorted(line.partition(",")[0] for line in listed or ())
        for gpu in listed if listed and models == sorted(facts.gpus) else facts.gpus:
            yield Finding("ok", f"{built}: {gpu}")
        return
    if listed and not facts.cuda:
        remedy = f"{setup_command(TORCH, 'CPU=')} installs the one that uses the GPU"
        yield Finding("WRONG", f"{built}, beside {listed[0]}: {remedy}")
    elif listed:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden in ("", "-1"):
            yield Finding("note", f"{built}: CUDA_VISIBLE_DEVICES hides {listed[0]}; unset it to train there")
            return
        yield Finding("WRONG", f"{built}, does not see {listed[0]}: the driver must be of CUDA {facts.cuda} or later")
    elif listed is not None:
        yield Finding("WRONG", f"{built}; nvidia-smi lists no GPU: the driver is not loaded, or not for this container")
    else:
        yield Finding("note", f"{built}; no GPU here: trials train on the CPU, which suits --profile demo")


def ffcv() -> Iterator[Finding]:
    """Yield whether FFCV loads."""
    output, error = _run("from crelu_data.load import default_reader\nprint(default_reader())\n")
    if error:
        yield Finding("WRONG", f"the reader of pictures does not load: {error}")
    elif output.split()[-1] == "ffcv":
        yield Finding("ok", f"FFCV {importlib.metadata.version('ffcv')} reads the pictures")
    else:
        yield Finding("note", "FFCV is not installed: pictures are read by a pool of threads, as by --reader threads")


def processors(usable: int, of_machine: int) -> Iterator[Finding]:
    """Yield how many cores a sweep may use."""
    words = f"{usable} of {of_machine} cores" if usable < of_machine else f"{usable} core{'s' if usable > 1 else ''}"
    if usable < of_machine:
        words += ", by affinity, control group or SLURM"
    if usable == 1:
        yield Finding("note", f"{words}: Ray, the driver and the one trial at a time share it; give 2 or more")
        return
    yield Finding("ok", words)


def memory(available: int | None = None) -> Iterator[Finding]:
    """Yield how much memory is free."""
    import psutil

    free = psutil.virtual_memory().available if available is None else available
    if free < LEAST_MEMORY:
        yield Finding("WRONG", f"{free / GIB:.1f} GiB free: a sweep of small nets takes {LEAST_MEMORY // GIB} GiB")
        return
    yield Finding("ok", f"{free / GIB:.1f} GiB free")


def shared_memory(folder: str = "/dev/shm", free: int | None = None) -> Iterator[Finding]:
    """Yield whether Ray has room for its objects in shared memory, and a short enough name for its sockets."""
    from sweeps.execution.cluster_address import check_temporary_folder
    from sweeps.execution.ray_runtime import why_too_little

    try:
        state = os.statvfs(folder)
        room = state.f_bavail * state.f_frsize if free is None else free
    except OSError:
        if platform.system() == "Linux":
            yield Finding("WRONG", f"{folder} is not there: in a container, start it with --shm-size=1g")
        return
    too_little = why_too_little(room)
    yield Finding("WRONG", too_little) if too_little else Finding("ok", f"{room / GIB:.1f} GiB free in {folder}")
    try:
        check_temporary_folder()
    except ValueError as error:
        yield Finding("WRONG", str(error))


def disks(request: Request) -> Iterator[Finding]:
    """Yield whether the folders of results and of pictures can be written to, and the room there."""
    if "://" in str(request.output):
        yield Finding("note", f"results: {request.output} is no folder of this machine; its room was not looked at")
    places = (("results", request.output), ("pictures", data_dir(request.data)))
    for name, folder in [(name, Path(place)) for name, place in places if "://" not in str(place)]:
        parent = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            yield Finding("WRONG", f"{name}: {folder} cannot be written to: give another folder, or its permission")
            continue
        free = shutil.disk_usage(parent).free
        words = f"{name}: {free / GIB:.1f} GiB free in {folder}{'' if folder.exists() else ', which will be made'}"
        if free < LEAST_DISK:
            yield Finding("WRONG", f"{words}: a sweep of small nets takes {LEAST_DISK // GIB} GiB")
        else:
            yield Finding("ok", words)


def pictures(request: Request) -> Iterator[Finding]:
    """Yield the prepared sets of pictures, and files of sets that are not whole."""
    where = data_dir(request.data)
    source = without_login(os.environ.get("CRELU_DATA_SOURCE", ""))
    configured = request.data or os.environ.get("CRELU_DATA")
    sidecars = sorted(where.glob("*-train.json"))
    if configured and not source and not where.is_dir():
        yield Finding("WRONG", f"{where} is not there, and was named as the pictures' folder: prepare some, or mend it")
        return
    for path in sidecars:
        try:
            sidecar = read_sidecar(path)
        except (ValueError, OSError) as error:
            yield Finding("WRONG", str(error))
            continue
        if not path.with_suffix(".beton").exists():
            if source:
                yield Finding("note", f"{sidecar.name}: its pictures are not here; a sweep pulls them from {source}")
                continue
            command = fresh_command(sidecar, where)
            yield Finding("WRONG", f"{sidecar.name}: {path.with_suffix('.beton')} is missing: {command}")
            continue
        yield Finding("ok", f"{sidecar.name}: {sidecar.count:,} pictures to train on, {sidecar.classes} classes")
    if not sidecars and source:
        yield Finding("note", f"none are in {where}: a sweep pulls them from {source}")
    elif not sidecars:
        state: State = "WRONG" if configured else "note"
        remedy = prepare_command("NAME", where) if configured else "the demo needs none"
        yield Finding(state, f"none are prepared in {where}: {remedy}")


def ray(address: str) -> Iterator[Finding]:
    """Yield whether Ray starts here, or answers at its address."""
    code = (
        "import json, sys\n"
        "from sweeps.execution.ray_runtime import init_ray, shutdown_ray\n"
        "try:\n"
        "    there = init_ray(sys.argv[1])\n"
        "except (ValueError, OSError) as error:\n"
        "    sys.exit(f'{error}')\n"
        "print(json.dumps({name: there.get(name, 0.0) for name in ('CPU', 'GPU')}))\n"
        "shutdown_ray()\n"
    )
    output, error = _run(code, address)
    if error:
        yield Finding("WRONG", error)
        return
    resources = json.loads(output.splitlines()[-1])
    words = f"{counted(int(resources['CPU']), 'CPU')} and {counted(int(resources['GPU']), 'GPU')}"
    yield Finding("ok", f"starts here, with {words}" if address == "local" else f"answers at {address}, with {words}")


def mlflow(request: Request) -> Iterator[Finding]:
    """Yield whether MLflow's store answers; a SQLite file that is not there yet is made by the first sweep."""
    from sweeps.tracking.mlflow_client import connected
    from sweeps.tracking.store_errors import place, trouble

    try:
        uri = own_store(request.tracking_uri, str(request.output))
    except ValueError as error:
        yield Finding("WRONG", str(error))
        return
    if not uri:
        words = (
            f"--output {request.output} is no folder of this machine: say by --tracking-uri where the runs are to go"
        )
        yield Finding("WRONG", words)
        return
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        yield Finding("ok", f"the first sweep makes {file}")
        return
    try:
        connected(uri)
    except Exception as error:  # whatever MLflow, its client or a database raises
        yield Finding("WRONG", f"{place(uri)} takes no runs, for {trouble(error)}")
        return
    yield Finding("ok", f"{place(uri)} answers")


def settings(request: Request, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield each setting that changes what a sweep does, with its value and what gave it."""
    output = "" if request.is_default_output else str(request.output)
    flags: tuple[tuple[str, str | None, str, str], ...] = (
        ("--output", output, "", str(request.output)),
        ("--data-dir", request.data, "CRELU_DATA", "~/.cache/crelu-sweeps/data"),
        ("--data-source", None, "CRELU_DATA_SOURCE", "none"),
        ("--address", request.address, "RAY_ADDRESS", "local"),
        ("--tracking-uri", request.tracking_uri, "MLFLOW_TRACKING_URI", "SQLite in --output"),
        ("--experiment", None, "MLFLOW_EXPERIMENT_NAME", "the sweep's name"),
        ("--price-per-gpu-hour", None, "CRELU_PRICE_PER_GPU_HOUR", "0"),
        ("--notify", None, "CRELU_NOTIFY", "none"),
    )
    for flag, given, variable, default in flags:
        value = given or environment.get(variable, "")
        origin = "the flag" if given else f"${variable}" if value else "default"
        shown = "an address that is not shown" if value and variable in SECRETS else without_login(value or default)
        yield Finding("ok", f"{flag}: {shown}, by {origin}")
    for name in VARIABLES:
        if name in environment:
            value = environment[name]
            yield Finding("ok", f"${name}: {without_login(value) or '(empty)'}")
        else:
            yield Finding("ok", f"${name}: not set")


def _run(code: str, *arguments: str) -> tuple[str, str]:
    """Return what a Python of its own prints, and the last line of its error, empty where it ended well."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer in {PATIENCE:.0f} s"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return "", (lines or [f"it ended with {done.returncode}"])[-1].strip()
    return done.stdout, ""
