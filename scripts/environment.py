"""The environment that `make` gives its programs, for scripts that are run without it."""
import os
import pathlib
import re

_LINES = re.findall(r"^export (\w+) \?= (.+)$", pathlib.Path(__file__).with_suffix(".mk").read_text(), re.MULTILINE)
ENVIRONMENT = dict(_LINES) | os.environ
