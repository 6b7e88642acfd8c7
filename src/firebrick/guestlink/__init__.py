"""Our side of the guest agent's control routes: ask whether it is ready, hand it its settings, read its log.

Knows one machine's address and token; must not know how the machine was started or who owns it.
"""
