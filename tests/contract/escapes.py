"""Escapes that strangers' code tries: a function returns if it gets what it must not have, and raises if it is stopped.

Each name has the source of a tool `attempt()`, and the reasons with which its call may end.
"""

from __future__ import annotations

from collections.abc import Mapping

from kfm.error.v1 import error_pb2 as e
from kfm.error.v1.error_pb2 import ErrorReason

FAILED = e.ERROR_REASON_TOOL_FAILED
CRASHED = e.ERROR_REASON_TOOL_CRASHED
CPU = e.ERROR_REASON_TOOL_CPU_LIMIT
MEMORY = e.ERROR_REASON_TOOL_MEMORY_LIMIT
OUTPUT = e.ERROR_REASON_TOOL_OUTPUT_LIMIT
INVALID = e.ERROR_REASON_TOOL_OUTPUT_INVALID
TIMEOUT = e.ERROR_REASON_TOOL_TIMEOUT
DENIED = e.ERROR_REASON_TOOL_ABILITY_DENIED
HOST_CALLS = e.ERROR_REASON_TOOL_HOST_CALL_LIMIT

SECRET = "SANDBOX_BATTERY_SECRET"  # In the platform's environment.

_CONNECT = """
import socket
def attempt() -> str:
    {made}
    return "open"
"""
_SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def attempt() -> str:
    if libc.{call} < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return "done"
"""


def _function(*body: str, imports: str = "os") -> str:
    return "\n".join([f"import {imports}", "def attempt() -> str:", *(f"    {line}" for line in body)])


ATTEMPTS: Mapping[str, tuple[str, set[ErrorReason.ValueType]]] = {
    # --- the host's files and processes
    "read a file of the host": (_function("return open('/etc/passwd').read()"), {FAILED}),
    "read a key": (_function("return open('/root/.ssh/id_rsa').read()"), {FAILED}),
    "list the root": (_function("return str(os.listdir('/home') + os.listdir('/tmp'))"), {FAILED}),
    "read a file through a link": (
        _function("os.symlink('/etc/passwd', 'link')", "return open('link').read()"),
        {FAILED},
    ),
    "read the environment": (_function(f"return os.environ['{SECRET}']"), {FAILED}),
    "read the environment of its parent": (
        _function("return open(f'/proc/{os.getppid()}/environ').read()"),
        {FAILED},
    ),
    "read the environment of the first process": (_function("return open('/proc/1/environ').read()"), {FAILED}),
    "read its own memory map": (_function("return open('/proc/self/maps').read()"), {FAILED}),
    "read descriptors that it has not opened": (
        _function(
            "for number in range(3, 64):",
            "    try:",
            "        if stat.S_ISREG(os.fstat(number).st_mode):",
            "            return os.pread(number, 100, 0).decode()",
            "    except (OSError, AttributeError):",
            "        continue",
            "raise OSError('there is none')",
            imports="os, stat",
        ),
        {FAILED},
    ),
    # --- the network
    "open a TCP connection": (
        _CONNECT.format(made="socket.create_connection(('127.0.0.1', 22), 1)"),
        {FAILED},
    ),
    "listen": (_CONNECT.format(made="socket.create_server(('127.0.0.1', 0))"), {FAILED}),
    "send a datagram": (
        _CONNECT.format(made="socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))"),
        {FAILED},
    ),
    "open a unix socket": (
        _CONNECT.format(made="socket.socket(socket.AF_UNIX).connect('/run/docker.sock')"),
        {FAILED},
    ),
    "open a vsock": (_CONNECT.format(made="socket.socket(40, socket.SOCK_STREAM)"), {FAILED}),
    "look a host up": (_CONNECT.format(made="socket.getaddrinfo('localhost', 80)"), {FAILED}),
    # --- its surroundings
    "write a file": (_function("open('/tmp/escape', 'w').write('x')", "return 'written'"), {FAILED}),
    "fill the disk": (
        _function("file = open('flood', 'wb')", "while True: file.write(bytes(1 << 20))"),
        {FAILED},
    ),
    "use up inodes": (_function("while True: os.mkdir(f'd{id(object())}')"), {FAILED}),
    "fork a bomb": (_function("while True: os.fork()"), {FAILED}),
    "run a program": (_function("os.execv('/bin/sh', ['sh', '-c', 'id'])"), {FAILED}),
    "run a program beside": (
        _function("return subprocess.check_output(['/bin/id']).decode()", imports="subprocess"),
        {FAILED},
    ),
    "start many threads": (
        _function(
            "while True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            imports="threading, time",
        ),
        {FAILED},
    ),
    "kill its parent": (_function("os.kill(os.getppid(), 9)", "return 'killed'"), {FAILED}),
    "kill everybody": (_function("os.kill(-1, 9)", "return 'killed'"), {FAILED}),
    "become root": (_function("os.setuid(0)", "return 'root'"), {FAILED}),
    # --- the kernel, by system calls
    "call the kernel": (_SYSCALL.format(call="syscall(41, 2, 1, 0)"), {FAILED}),  # socket
    "trace its parent": (_SYSCALL.format(call="ptrace(16, 1, None, None)"), {FAILED}),
    "make a namespace": (_SYSCALL.format(call="unshare(0x10000000)"), {FAILED}),
    "mount": (_SYSCALL.format(call="mount(b'none', b'/tmp', b'tmpfs', 0, None)"), {FAILED}),
    "open a ring": (_SYSCALL.format(call="syscall(425, 8, bytes(120))"), {FAILED}),  # io_uring_setup
    "load a program into the kernel": (_SYSCALL.format(call="syscall(321, 0, bytes(72), 72)"), {FAILED}),  # bpf
    "read keys of the kernel": (_SYSCALL.format(call="syscall(250, 0, -3, 1)"), {FAILED}),  # keyctl
    # --- resources beyond its limits
    "never end": (_function("while True: pass"), {CPU}),
    "never end, whatever comes": (
        _function("while True:", "    try:", "        while True: pass", "    except BaseException: pass"),
        {CPU},
    ),
    "sleep past its time": (_function("time.sleep(3600)", imports="time"), {TIMEOUT}),
    "match for ever": (
        _function("return str(re.match('(a+)+$', 'a' * 64 + 'b'))", imports="re"),
        {CPU},
    ),
    "take much memory": (_function("return str(len(bytearray(1 << 30)))"), {MEMORY}),
    "use up memory": (_function("return str(len([bytearray(1 << 24) for _ in range(1000)]))"), {MEMORY, CPU}),
    "make a huge number": (_function("return str(len(str(10 ** (10 ** 9))))"), {CPU, MEMORY, FAILED}),
    "flood its streams": (
        _function("while True: print('x' * 65536); os.write(2, b'y' * 65536)"),
        {CPU, FAILED, TIMEOUT},
    ),
    "answer a flood": (_function("return 'x' * (1 << 18)"), {OUTPUT}),
    "recurse without an end": (_function("return attempt()"), {FAILED}),
    "recurse beyond the stack": (
        _function("sys.setrecursionlimit(10 ** 9)", "return attempt()", imports="sys"),
        {CRASHED, CPU, FAILED, MEMORY},
    ),
    "answer what nests without an end": (
        _function("found = []", "for _ in range(900): found = [found]", "return found"),
        {INVALID, FAILED},
    ),
    # --- the interpreter, from within
    "run poisoned bytecode": (
        _function(
            "code = attempt.__code__.replace(co_code=bytes(range(256)) * 4)",
            "return types.FunctionType(code, {})()",
            imports="types",
        ),
        {CRASHED, FAILED, CPU, MEMORY, TIMEOUT},
    ),
    "exit": (_function("os._exit(0)"), {CRASHED, FAILED}),
    "raise what nobody catches": (_function("raise SystemExit(0)"), {FAILED}),
    # --- lies
    "say what is no answer": (
        _function("sys.modules['runner'].json.dumps = lambda *_, **__: 'nonsense'", "return 'x'", imports="sys"),
        {INVALID, CRASHED},
    ),
    "ask the host for what it has not": (_function("return host._ask('read_file', {})", imports="host"), {DENIED}),
    "ask the host again after it refused": (
        _function(
            "while True:",
            "    try: host._ask('read_file', {})",
            "    except BaseException: pass",
            imports="host",
        ),
        {DENIED},
    ),
    "go to the Web without leave": (
        _function("return host.http_get('http://127.0.0.1/')['text']", imports="host"),
        {DENIED},
    ),
    "ask the host without an end": (_function("while True: host.progress('x')", imports="host"), {HOST_CALLS}),
}
