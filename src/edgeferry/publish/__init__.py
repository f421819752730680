"""The operator's side: publishing versions, telling the hub which device shall run which, deployment manifests."""
