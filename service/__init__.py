"""API, worker, store, client and command line; search and prediction meet here."""
