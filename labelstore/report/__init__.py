"""The store as one HTML page: see :func:`labelstore.report.page.write`."""
