"""The decisions: configuration, polling, detection, alerts, forwarding, the service and its command line."""
