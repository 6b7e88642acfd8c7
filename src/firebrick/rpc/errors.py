"""Our errors across gRPC: a status for the protocol, and the stable code in a trailer for our own client."""

import grpc

from firebrick.model.errors import BY_CODE, FirebrickError, Unavailable

CODE_TRAILER = "firebrick-code"

_STATUS = {
    "invalid": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "wrong_state": grpc.StatusCode.FAILED_PRECONDITION,
    "memory_refused": grpc.StatusCode.FAILED_PRECONDITION,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "conflict": grpc.StatusCode.ABORTED,
    "limit_exceeded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "rate_exceeded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "no_capacity": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "disk_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
    "internal": grpc.StatusCode.INTERNAL,
}


def status_of(error: FirebrickError) -> grpc.StatusCode:
    return _STATUS[error.code]


def error_from(code: str, message: str) -> FirebrickError:
    """The error that a node told of in an answer."""
    return BY_CODE.get(code, Unavailable)(message)


def error_of(failure: grpc.aio.AioRpcError, what: str) -> FirebrickError:
    """The error that the node raised; Unavailable when the call itself failed and nothing is known."""
    for key, value in failure.trailing_metadata() or ():
        if key == CODE_TRAILER and value in BY_CODE:
            return BY_CODE[value](failure.details() or f"The node refused: {what}.")
    return Unavailable(f"The node did not answer: {what}.", detail=f"{failure.code()}: {failure.details()}")
