"""YAML as people write it: a mistake is one line that says where, and a name that is there twice is one."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.errors import InputError


class _Strict(yaml.SafeLoader):
    """YAML lets the last of two equal keys win, and nobody hears of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: what another mapping has, unless this one has it, too
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """The values of a YAML text.

    Raises:
        InputError: it is no YAML, or a mapping has a key twice; names ``where`` and the line.
    """
    try:
        return yaml.load(text, _Strict)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise InputError(f"{where}: {line}not YAML as it should be: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
