"""YAML read strictly: no duplicate keys, no aliases, no Python objects; 1e-3 is a number."""

import re
from typing import Any

import yaml

from pointillist.types import InputError

LARGEST_FILE = 1 << 20


class _Loader(yaml.SafeLoader):
    """Safe YAML without duplicate keys and aliases, in which 1e-3 is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise InputError(f"line {event.start_mark.line + 1}: aliases are not read here; "
                             f"write the value out")  # fmt: skip
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise InputError(
                    f"line {key.start_mark.line + 1}: key {key.value} stands there twice; keep one"
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, name: str) -> Any:
    """One YAML document; InputError names `name` and the line."""
    if len(text) > LARGEST_FILE:
        raise InputError(f"{name} has {len(text)} characters; a configuration has at most 1 MiB")
    try:
        return _Loader(text).get_single_data()
    except InputError as error:
        raise InputError(f"{name}, {error}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise InputError(f"{name}{where} is not valid YAML: {problem}") from None
