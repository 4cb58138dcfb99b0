"""Compositions of the configuration by Hydra, from `conf/` and directories of your own, and what their errors mean."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

import esc_lab.cli.shortcuts  # noqa: F401  which registers the schema, too
from esc_lab.config.checks import unknown_key
from esc_lab.config.files import COMMAND, CONF
from esc_lab.errors import UserError, nearest

NO_STAGE = f"no stage chosen: add stage=STAGE; `{COMMAND} --help` tells more"
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError)
_SECRETS = ("KEY", "KEYS", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PASSPHRASE", "PASS", "CREDENTIALS")

_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names its instructions: x86 and, last, Arm


def _short_hash(text: str) -> str:
    return hashlib.sha256(f"{text}{os.getpid()}".encode()).hexdigest()[:6]


def override_name(text: str) -> str:
    """A directory name that says what was overridden; long ones end in a hash instead of a cut-off value."""
    name = re.sub(r"[^\w=.+-]+", "_", text, flags=re.ASCII) or "defaults"
    return name if len(name) <= 150 else f"{name[:140]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def native_dtype(processor: Path = Path("/proc/cpuinfo")) -> str:
    """bfloat16 where a GPU or the processor has instructions for it, else float32: without them it is slower.

    A processor that tells nothing of itself in this file, as under macOS and Windows, is taken to have none.
    """
    if shutil.which("nvidia-smi"):
        return "bfloat16"
    told = set(processor.read_text().split()) if processor.exists() else set()
    return "bfloat16" if told & _BFLOAT16 else "float32"


class ConfigDirs(SearchPathPlugin):
    """Lets every composition of this process look into the user's own directories too, after `conf/`."""

    paths: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for path in self.paths:
            search_path.append("config_dirs", f"file://{path}")


def names_secret(variable: str) -> bool:
    """Whether an environment variable, by its name, holds a secret.

    >>> names_secret("HF_TOKEN"), names_secret("OPENAI_APIKEY"), names_secret("TOKENIZERS_PARALLELISM")
    (True, True, False)
    """
    return any(part.endswith(_SECRETS) for part in re.split(r"[^A-Z]+", variable.upper()))


def read_variable(name: str, *default: Any) -> Any:
    """OmegaConf's `oc.env`, but not of secrets: what it gives comes into config.yaml, and from there to W&B.

    Raises:
        UserError: the name of the variable is that of a secret.
    """
    if names_secret(name):
        what = f"the value of {name} would come into config.yaml and to W&B"
        fix = "leave it out: llm.openai.key_variable takes the name of a variable, and W&B reads its own"
        raise UserError(what, where=f"${{oc.env:{name}}}", fix=fix)
    return oc.env(name, *default)


OmegaConf.register_new_resolver("oc.env", read_variable, replace=True)
OmegaConf.register_new_resolver("native_dtype", native_dtype, replace=True)
OmegaConf.register_new_resolver("short_hash", _short_hash, replace=True)
OmegaConf.register_new_resolver("override_name", override_name, replace=True)


def use_config_dirs(words: Sequence[str], option: str | None = None) -> list[str]:
    """Search the user's own directories from now on, wherever the command line names them.

    Args:
        words: overrides; `config_dirs=[DIR]` and `hydra.searchpath=[DIR]` name directories.
        option: the value of `--config-dir`.

    Returns:
        The overrides with all of these directories in `config_dirs=`, which the run keeps, as absolute paths.

    Raises:
        UserError: a directory is absent or holds no config group, or has an option that another one has too.
    """
    named, rest = [option] if option else [], []
    for word in words:
        if word.lstrip("+").startswith(("config_dirs=", "hydra.searchpath=")):
            value = parse_overrides([word])[0].value()
            named += map(str, value if isinstance(value, list) else [value])
        else:
            rest.append(word)
    paths = list(dict.fromkeys(_directory(name) for name in named))
    known = {file.relative_to(CONF): CONF for file in CONF.rglob("*.yaml")}
    for path in paths:
        own = [file.relative_to(path) for file in path.glob("*/*.yaml")]
        if not own and not list(path.glob("hydra/*/*.yaml")):
            fix = f"files such as {path}/experiment/NAME.yaml or {path}/model/NAME.yaml; see docs/own-configs.md"
            raise UserError("no options of config groups in it", where=f"config directory {path}", fix=fix)
        for file, directory in known.items():
            if (path / file).exists():
                raise UserError(f"{directory / file} has the same name", where=str(path / file), fix="rename it")
        known |= dict.fromkeys(own, path)
    ConfigDirs.paths = paths
    groups.cache_clear()
    Plugins.instance().register(
        ConfigDirs
    )  # again: a launcher that runs jobs in this process sets Hydra's plugins up anew
    return [*rest, f"config_dirs=[{','.join(quote(str(path)) for path in paths)}]"] if paths else rest


def _directory(name: str) -> Path:
    """The directory that a path, `file://PATH` or `pkg://PACKAGE` stands for."""
    scheme, _, rest = name.rpartition("://")
    path = Path(rest).absolute()
    if scheme == "pkg":
        spec = importlib.util.find_spec(rest.replace("/", "."))
        path = Path(next(iter((spec and spec.submodule_search_locations) or [rest])))
    if scheme not in ("", "file", "pkg") or not path.is_dir():
        raise UserError("no such directory", where=f"config directory {name}", fix="DIR, file://DIR or pkg://PACKAGE")
    return path


def quote(value: str) -> str:
    """A string as the value of an override, whatever characters it has."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@cache  # until directories are named: every word of a command line asks for them
def groups() -> dict[str, dict[str, Path]]:
    """The config groups of all directories, and the file of each of their options."""
    files: dict[str, dict[str, Path]] = {}
    for directory in (CONF, *ConfigDirs.paths):
        for file in sorted(directory.glob("[!.]*/*.yaml")):
            if file.parent.name != "hydra":
                files.setdefault(file.parent.name, {})[file.stem] = file
    return {name: files[name] for name in sorted(files)}


class Composition(NamedTuple):
    cfg: DictConfig
    hydra: DictConfig


@lru_cache(maxsize=8)  # a command's checks ask for the same ones again
def compose_config(*words: str) -> Composition:
    """The configuration of a single run, to be read only. Raises one of COMPOSITION_ERRORS."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", list(words), return_hydra_config=True)
    with open_dict(cfg):
        return Composition(hydra=cfg.pop("hydra"), cfg=cfg)


def run_composed(words: Sequence[str], job: Callable[[DictConfig], Any]) -> None:
    """Hydra's single run of a job, of the configuration that the checks have composed; Hydra would do it twice more.

    Args:
        words: the overrides, which `compose_config` can compose.
        job: the function that takes the configuration.
    """
    composition = compose_config(*words)
    compose_config.cache_clear()  # the run changes what is to be read only
    cfg = composition.cfg
    with open_dict(cfg):
        cfg.hydra = composition.hydra
    cfg.hydra.overrides.hydra.append("hydra.mode=RUN")  # as Hydra notes it

    def composed(**_: Any) -> DictConfig:
        # Where it is to be verbose, Hydra asks again, and takes apart what it shows.
        return copy.deepcopy(cfg) if cfg.hydra.verbose else cfg

    with initialize_config_dir(str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader.load_configuration = composed  # type: ignore[method-assign, assignment]
        hydra.run(config_name="config", task_function=job, overrides=[*words])


def parse_overrides(words: Sequence[str], where: str = "command line") -> list[Override]:
    """The words of a command line, parsed by Hydra.

    Raises:
        UserError: one of them is no override.
    """
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(words))
    except HydraException as error:
        fix = "write key=value, with quotes around a value that holds spaces or special characters"
        raise UserError(one_line(error), where=where, fix=fix) from None


def one_line(error: BaseException) -> str:
    """An error's message without what Hydra and OmegaConf add for their own users, but with the key it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    noise = r"\^|(object_type|reference_type|provider)\b|Config search path|See https:"
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not re.match(f"{noise}|full_key", line))
    text = text.removeprefix("UserError raised while resolving interpolation: ")
    key = _full_key(error)
    return text if key in text else f"{key}: {text}"


def _full_key(error: BaseException) -> str:
    return next((match[1] for match in re.finditer(r"^\s*full_key: (.+)$", str(error), re.M)), "")


def explain_error(error: Exception) -> str:
    """What is wrong with a configuration that cannot be composed: the file if it is in one, the cause, and the fix."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{mark.name}:{mark.line + 1}:{mark.column + 1}: broken YAML: {error.problem or error.context}"
    text, key, known = str(error), _full_key(error), groups()
    if text.startswith("You must specify 'stage'"):
        return NO_STAGE
    absent = re.search(r"Could not find '/?([^'\n]+?)/([^'/\n]+)'", text)
    if absent and absent[1] in known:
        return option_problem(absent[1], absent[2]) or one_line(error)
    source = re.match(r"In '(.+?)/([^/]+?)': (?:\w+ raised while composing config:\s)?", text)
    file = known.get(source[1], {}).get(source[2]) if source else None
    if source and file:
        return f"{file}: {_cause_in_file(text[source.end() :], key, file)}"
    text = one_line(error)
    wrong = re.match(r"Could not override '(hydra\.[\w.]+)'", text)
    if wrong:
        names = [f"hydra.{name}" for name in _names(OmegaConf.to_container(compose_config("stage=sft").hydra))]
        hint = "" if wrong[1] in names else nearest(wrong[1], names)
        return f"{text if not hint else f'unknown config key {wrong[1]!r}{hint}'} Fix: `--cfg hydra` shows Hydra's keys"
    return f"{text}: {one_line(error.__cause__)}" if error.__cause__ else text


def _cause_in_file(text: str, key: str, file: Path) -> str:
    """What is wrong in an option's file, by Hydra's message about it, or said better."""
    if text.startswith("Key '") and unknown_key(key):
        return str(unknown_key(key))
    unmatched = re.match(r"Could not override '(.+?)'\. No match", text)
    if unmatched and unmatched[1].split("@")[0] not in groups():
        return f"its defaults override '{unmatched[1]}', which is no config group{nearest(unmatched[1], groups())}"
    if text.startswith("Cannot convert 'DictConfig' to string") and key == file.parent.name:
        return "it has keys of the whole configuration. Fix: begin it with the line `# @package _global_`"
    return f"{key}: {text.splitlines()[0]}" if key else text.splitlines()[0]


def option_problem(group: str, option: str) -> str | None:
    """Message for an option that a config group does not have, naming the nearest; None if it has it."""
    options = groups()[group]
    if option in options:
        return None
    fix = f"Fix: one of {', '.join(options)}; `{COMMAND} --help {group}` describes them"
    return f"{group}={option}: no such option{nearest(option, options, 0.6) or '.'} {fix}"


def _names(tree: Any, prefix: str = "") -> list[str]:
    """Dotted names of all keys of nested dicts."""
    if not isinstance(tree, dict):
        return []
    return [name for key, value in tree.items() for name in (f"{prefix}{key}", *_names(value, f"{prefix}{key}."))]
