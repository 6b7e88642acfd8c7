"""The REST API: HTTP only. It checks, converts and asks the control plane; what things mean is decided there."""
