"""Raw tables to a feature set: polars, pyarrow and numpy; never torch.

In the order in which data moves: `contract`, `store`, `sources`, `encoding`, `checks`, `fitting`, `point_in_time`,
`requests`, `vectors`, `monitor`, `build`. A package imports only those before it, and the files of this folder.
"""
