"""`msft teachers generate`: the one part of teachers that knows the store.

`plan` reads what a job needs, `job` runs it, `calls` carries a query through its windows, `merge` takes the journal
into the store; `forecast` says beforehand what it will cost.
"""
