"""Commands whose output is JSON."""

import json

from skexit.cli import main


def run_json(capsys, *arguments):
    """What a command prints, which must be valid JSON."""
    assert main([*arguments, "--json"]) == 0

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)
