"""A repository under load and accidents for minutes: `make soak`. Not part of `make test`."""
