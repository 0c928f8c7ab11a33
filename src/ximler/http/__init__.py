"""Ximler over HTTP, beside GraphQL: who asks, how errors look, health and metrics, the pages that links lead to."""
