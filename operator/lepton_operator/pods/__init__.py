"""The first substrate: workers are pods of a cluster. Everything that speaks with a Kubernetes API is here."""
