"""The settings of the commands: frozen dataclasses, their checks, and their form as flags and YAML.

Not here: reading the data or models that the settings name.
"""
