"""Labelling jobs (`msft teachers generate`): the only room of teachers that uses the store.

`plan` checks the settings and reads what a job needs, `job` runs it, `calls` handles the calls of a query's windows,
and `merge_journal` moves the journal into the store. `dry_run` forecasts the cost.
"""
