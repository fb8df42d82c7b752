"""Manifests for KubeRay, built and checked before they meet a cluster."""
