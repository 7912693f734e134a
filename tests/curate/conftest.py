"""Lets the tests of this folder import its helper module."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
