"""The control plane: owns what shall be. Services answer the API, workflows order effects, reconcilers repair.

It never touches the machine: everything it wants of a node it asks through `rpc.node_api.NodeClient`.
"""
