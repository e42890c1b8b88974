"""Requests and tables of rows as the model reads them: by the functions of the build, column by column."""
