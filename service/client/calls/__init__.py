"""What can be asked of the API, a module a feature: see `service.client.asking`."""
