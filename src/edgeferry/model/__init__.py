"""What a model version is: digests, specs, manifests, bundles, and what a model file tells of itself. Pure."""
