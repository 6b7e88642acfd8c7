"""Keeps the roles of one machine alive: node agent, control plane and edge.

The roles are processes of their own, in sessions of their own. The supervisor starts them, notices their end
by pidfd and starts them again; it adopts the ones that a killed supervisor left. It knows nothing of
sandboxes: they belong to the node agent and outlive every process here.
"""
