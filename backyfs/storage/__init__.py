"""The storage: where objects are kept. `protocol` says what every storage does, `registry` which storages there are."""
