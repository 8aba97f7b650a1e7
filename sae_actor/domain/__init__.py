"""The rules of the service as pure functions over frozen values. No torch, no I/O, no clock."""
