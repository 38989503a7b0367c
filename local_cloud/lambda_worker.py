"""Runs a Lambda function's handler: one execution environment, one request at a time.

Run as a plain script in the folder of the function's package:

    lambda_worker.py SOCKET

SOCKET is the number of an open socket to the gateway. Both sides write JSON behind its length in
four bytes. The first message says whether the handler could be imported; from then on every event
is answered. What the handler prints goes to standard output, between the lines that Lambda writes
to a function's log. When the gateway's end of the socket closes, everything here ends at once.
Imports nothing of this project: its folder is taken off the path.
"""

import sys

sys.path.pop(0)

import importlib
import json
import os
import queue
import resource
import signal
import socket
import struct
import threading
import time
import traceback

MIB = 1 << 20
# ru_maxrss is in KiB on Linux, in bytes on macOS.
RSS_UNIT = 1 if sys.platform == "darwin" else 1 << 10


class Context:
    """The second argument of a handler.

    Source: AWS Lambda developer guide, "Using the Lambda context object to retrieve Python function
    information".
    """

    def __init__(self, request, deadline):
        self.aws_request_id = request["id"]
        self.function_name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = os.environ["AWS_LAMBDA_FUNCTION_VERSION"]
        self.invoked_function_arn = request["arn"]
        self.memory_limit_in_mb = os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = os.environ["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        self.identity = self.client_context = None
        self._deadline = deadline

    def get_remaining_time_in_millis(self):
        return max(0, round(1000 * (self._deadline - time.monotonic())))

    def log(self, message):
        print(message)


def receive(stream):
    """The next message, or None where the other side has closed."""
    head = stream.read(4)
    body = stream.read(struct.unpack("!I", head)[0]) if len(head) == 4 else b""
    return json.loads(body) if body else None


def send(channel, message):
    body = json.dumps(message).encode()
    channel.sendall(struct.pack("!I", len(body)) + body)


def read_requests(stream, requests):
    """Hand on what comes; end this process and its children, whatever they do, when it is over."""
    while (request := receive(stream)) is not None:
        requests.put(request)
    os.killpg(0, signal.SIGKILL)


def load_handler():
    """The function that `$_HANDLER` names, as `module.function` or `folder/module.function`."""
    module, _, name = os.environ["_HANDLER"].rpartition(".")
    sys.path.insert(0, os.getcwd())
    return getattr(importlib.import_module(module.replace("/", ".")), name)


def answer(handler, request):
    """What the handler makes of one event: its result as JSON text, or that it failed."""
    start = time.monotonic()
    print(f"START RequestId: {request['id']} Version: $LATEST")
    context = Context(request, start + request["seconds"])
    try:
        message = {"result": json.dumps(handler(request["event"], context))}
    except Exception as error:
        traceback.print_exc()
        message = {"error": type(error).__name__}
    took = 1000 * (time.monotonic() - start)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / MIB
    print(f"END RequestId: {request['id']}")
    print(
        f"REPORT RequestId: {request['id']}\tDuration: {took:.2f} ms\t"
        f"Billed Duration: {-(-took // 1):.0f} ms\t"
        f"Memory Size: {context.memory_limit_in_mb} MB\tMax Memory Used: {used:.0f} MB"
    )
    sys.stdout.flush()
    return message


def main(number):
    channel, requests = socket.socket(fileno=int(number)), queue.SimpleQueue()
    # From the beginning: the handler's module may hang while it is imported.
    reading = (channel.makefile("rb"), requests)
    threading.Thread(target=read_requests, args=reading, daemon=True).start()
    try:
        handler = load_handler()
    except Exception as error:
        traceback.print_exc()
        send(channel, {"error": type(error).__name__})
        return
    send(channel, {})
    while True:
        send(channel, answer(handler, requests.get()))


if __name__ == "__main__":
    main(*sys.argv[1:])
