"""The settings that YAML files and flags give, in the order in which they count.

    data:
      class_path: softmax_torch.data.TableDataModule         data                  (class)
      init_args: {target: species}                           data.target           species
    --model.optimizer AdamW                                  model.optimizer       (class)
    --model.optimizer.lr 0.01                                model.optimizer.lr    0.01

A file is a source, and all flags together are the last source. ``class_path`` and ``init_args`` may
be left out of a key, as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from softmax_torch.cli.arguments import split_flags
from softmax_torch.cli.class_choices import CLASS_KEYS, MODEL, resolved_class
from softmax_torch.cli.class_settings import TRAINER, settings_of
from softmax_torch.cli.config_files import read_config
from softmax_torch.cli.mistakes import UsageError, or_nearest

__all__ = ["Given", "Source", "as_source", "flag_items", "given_settings"]


class Source(NamedTuple):
    """Settings that are given together.

    Attributes:
        name: of the file, or "" for flags.
        values: value by setting, without classes.
        classes: class path by setting.
    """

    name: str
    values: dict[str, Any]
    classes: dict[str, str]


class Given(NamedTuple):
    """All settings that are given.

    Attributes:
        sources: in the order in which they count; the last one wins.
        classes: class path by setting, of all sources.
    """

    sources: list[Source]
    classes: dict[str, str]

    def value(self, key: str) -> tuple[Any, int]:
        """Return a setting, and the number of the last source that gives it; (None, -1) if none.

        The value of a class is its path.
        """
        for number, source in reversed([*enumerate(self.sources)]):
            for values in (source.values, source.classes):
                if key in values:
                    return values[key], number
        return None, -1

    def source_of(self, key: str) -> str:
        """Return the file that gives a setting, or "" for flags and defaults."""
        place = self.value(key)[1]
        return self.sources[place].name if place >= 0 else ""


def given_settings(configs: Iterable[Path], flags: list[str], own: Iterable[str]) -> Given:
    """Return the settings of files and flags, after their names were checked.

    Args:
        configs: YAML files.
        flags: flags of settings, each with its value.
        own: names at the top of a YAML that are arguments of the command.

    Raises:
        UsageError: a setting or class does not exist, or a file cannot be read.
    """
    given = Given([], {"trainer": TRAINER, "model": MODEL})
    known = {*own, "trainer", "model", "data", "seed_everything"}
    for path in configs:
        items = [(str(key), value) for key, value in read_config(path).items()]
        for key, _ in items:
            if (top := key.partition(".")[0]) not in known:
                raise UsageError(f"{path}: unknown setting {top}{or_nearest(top, known)}")
        given.sources.append(as_source(str(path), items))
    given.sources.append(as_source("", flag_items(flags)))
    for source in given.sources:
        for key, class_path in source.classes.items():
            given.classes[key] = resolved_class(source.name, key, class_path)
        for key in source.values:
            check_name(source.name, key, given.classes)
    return given


def flag_items(flags: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the settings that flags give; YAML in place of a class name is read."""
    for key, value in split_flags(flags):
        if value is None and key != "print_config" and not key.endswith(".help"):
            raise UsageError(f"--{key}: expected a value after it, got none")
        key = key.removesuffix("+").replace(".init_args", "")
        if key in CLASS_KEYS and value is not None and value.startswith("{"):
            import yaml

            try:
                yield key, yaml.safe_load(value)
            except yaml.YAMLError:
                raise UsageError(f"--{key}: expected a class or YAML, got {value}") from None
        else:
            yield key, value


def as_source(name: str, items: Iterable[tuple[str, Any]]) -> Source:
    """Return a source with these settings, which may be nested."""
    source = Source(name, {}, {})

    def add(key: str, value: Any) -> None:
        if key.endswith(".class_path"):
            add(key.removesuffix(".class_path"), value)
        elif key in CLASS_KEYS and isinstance(value, Mapping):
            arguments = {k: v for k, v in value.items() if k not in ("class_path", "init_args")}
            arguments.pop("dict_kwargs", None)
            if "class_path" in value:
                source.classes[key] = str(value["class_path"])
            for inner, content in {**arguments, **(value.get("init_args") or {})}.items():
                add(f"{key}.{inner}", content)
        elif key in CLASS_KEYS and isinstance(value, str) and value not in ("null", ""):
            # jsonargparse reads a YAML in place of a class.
            (source.values if value.endswith((".yaml", ".yml")) else source.classes)[key] = value
        elif key in CLASS_KEYS and isinstance(value, list | int | float):
            label = f"{name}: {key}" if name else f"--{key}"
            raise UsageError(f"{label}: expected settings by name, got {value}")
        else:
            source.values[key] = value

    for key, value in items:
        add(key, value)
    return source


def check_name(source: str, key: str, classes: Mapping[str, str]) -> None:
    """Raise UsageError unless a setting exists in the class that it belongs to."""
    owner = max((c for c in classes if key.startswith(f"{c}.")), key=len, default=None)
    if owner is None or key.endswith(".help"):
        return
    name = key.removeprefix(f"{owner}.").partition(".")[0]
    settings = settings_of(classes[owner])
    if name in settings:
        return
    names = settings.keys() - {*CLASS_KEYS[owner].linked}
    label = f"{source}: " if source else ""
    raise UsageError(
        f"{label}unknown setting {owner}.{name} of {classes[owner].rpartition('.')[2]}"
        f"{or_nearest(name, names, f'{owner}.')}"
    )
