"""YAML reader that refuses duplicate keys and reports errors as one line with the position."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.errors import InputError


class _Strict(yaml.SafeLoader):
    """Loader that raises on a duplicate key, of which PyYAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<`: keys of this mapping override the merged ones
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Parse a YAML text; ``where`` names it in error messages.

    Raises:
        InputError: not YAML, or a mapping has a duplicate key; names ``where`` and the line.
    """
    try:
        return yaml.load(text, _Strict)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise InputError(f"{where}: {line}not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
