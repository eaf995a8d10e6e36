"""Every setting, declared once: type, range, default, help text, and whether a run may change it when it resumes.

The sections are in images.py, method.py, machine.py and running.py; settings.py puts them together; check.py checks a
configuration against them; `python -m config.schema` prints them, and writes config/default.yaml and docs/settings.md.
"""
