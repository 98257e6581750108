"""The real thing, killed: a Prefect server, a Dask cluster and a store, and what a machine does wrong."""
