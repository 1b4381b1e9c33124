"""From a request to a result: options, resolution, stages and events."""
