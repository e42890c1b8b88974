"""The commands: thin stages that can be run again, each over `features` and `ctr`.

In the order in which imports may run: `job`, `tune`, `study`, `inspect`, `report`, `cli`.
"""
